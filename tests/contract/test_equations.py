"""Laws 2 and 3: every form of a method is its equations, whatever the split into segments.

The twin knows one form: dense Jacobians, masked, step by step. A segment of one step runs another
program than a longer one, with other code in it, and is compared with the same twin.
"""

import hypothesis
import numpy as np
import pytest
from contract import probe, twin
from contract.registry import DETERMINED, METHODS, B, Law, keeping, pairs
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("x64")

# Segments have one step or three, so that two programs serve every split.
SPLITS = [(1,), (3,), (1, 3), (3, 1), (1, 1, 1, 1), (3, 3), (1, 3, 1)]
RUNS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 999),
        "split": st.sampled_from(SPLITS),
        "inputs": st.sampled_from(["normal", "one-hot", "zero"]),
        "reset_rate": st.sampled_from([0.0, 0.25, 0.6]),
        "density": st.sampled_from([1.0, 0.5]),
    }
)


def check(method, cell, *, seed, split, inputs, reset_rate, density):
    variables = probe.draw_variables(cell, seed, density)
    params, mask = variables["params"]["cell"], variables["sparsity"]["cell"]
    segment = probe.draw_segment(seed, sum(split), inputs=inputs, reset_rate=reset_rate)
    carry = probe.fresh(method, cell)
    stand = twin.stand(method, cell, carry, variables)
    for piece in segment.cut(*split):
        found = probe.program(method, cell)(variables, carry, piece)
        expected = twin.unroll(method, cell, params, mask, stand, piece)
        carry, stand = found.carry, expected.stand
        probe.assert_close(twin.result(method, cell, found, variables), expected)


@pairs(DETERMINED)
def test_both_forms_follow_the_equations(method, cell):
    """From a step to a segment and back: plain; one-hot and masked; with resets in between."""
    split = (1, 3, 1)
    check(method, cell, seed=1, split=split, inputs="normal", reset_rate=0.0, density=1.0)
    check(method, cell, seed=2, split=split, inputs="one-hot", reset_rate=0.0, density=0.6)
    check(method, cell, seed=3, split=split, inputs="normal", reset_rate=0.4, density=0.6)


@pytest.mark.parametrize("method", DETERMINED)
@given(run=RUNS)
def test_anything_that_runs_follows_the_equations(method, run):
    check(method, "lstm", **run)


@pytest.mark.slow
@pairs(DETERMINED)
@hypothesis.settings(max_examples=40)
@given(run=RUNS)
def test_anything_that_runs_follows_the_equations_on_every_cell(method, cell, run):
    check(method, cell, **run)


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("method", DETERMINED)
def test_a_reset_may_come_at_any_step(method, step):
    """At the first step it meets the influence, at the last only the state."""
    variables = probe.draw_variables("gru", 5)
    before, segment = probe.draw_segment(5, 6).cut(3, 3)
    segment.resets[step, 0] = True
    carry = probe.program(method, "gru")(variables, probe.fresh(method, "gru"), before).carry
    found = probe.program(method, "gru")(variables, carry, segment)
    params, mask = variables["params"]["cell"], variables["sparsity"]["cell"]
    stand = twin.stand(method, "gru", carry, variables)
    expected = twin.unroll(method, "gru", params, mask, stand, segment)
    probe.assert_close(twin.result(method, "gru", found, variables), expected)


@pairs(keeping(Law.ANY_SPLIT))
def test_any_split_gives_the_same_gradient_and_influence(method, cell):
    variables = probe.draw_variables(cell, 7, density=0.7)
    carry = probe.fresh(method, cell)
    segment = probe.draw_segment(7, 6, reset_rate=0.15)
    runs = [
        probe.run_through(method, cell, variables, carry, segment.cut(*split))
        for split in [(3, 3), (1, 3, 1, 1), (1,) * 6]
    ]
    for outcomes in runs[1:]:
        probe.assert_close(probe.added(outcomes), probe.added(runs[0]))
        probe.assert_close(outcomes[-1].carry, runs[0][-1].carry)


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(keeping(Law.ANY_SPLIT)) - {"frozen"}))
def test_the_other_methods_do_feel_the_split(method):
    """Otherwise the law above would hold for the wrong reason: a past that nobody looks at."""
    variables = probe.draw_variables("residual", 7, density=0.5)
    carry, segment = probe.fresh(method, "residual"), probe.draw_segment(7, 6)
    whole, pieces = (
        probe.added(probe.run_through(method, "residual", variables, carry, segment.cut(*split)))
        for split in [(3, 3), (1,) * 6]
    )
    found, expected = twin.flat(pieces["cell"]), twin.flat(whole["cell"])
    assert np.abs(found - expected).max() > 1e-3


def test_the_twin_by_hand():
    """One unit, one input, two steps of `h_t = tanh(w h_tm1 + a x_t + b)`, done on paper.

    With s_t = 1 - h_t^2 the influences are J^w_2 = s_2 h_1 + s_2 w J^w_1, and J^w_1 = 0 since
    h_0 = 0; J^a_2 = s_2 x_2 + s_2 w s_1 x_1; J^b_2 = s_2 + s_2 w s_1. The twin's three units do
    not know of each other here: their weights are the same and the recurrent kernel is diagonal.
    """
    w, a, b, x_1, x_2 = 0.5, 0.7, -0.2, 1.0, -0.4
    h_1 = np.tanh(a * x_1 + b)
    h_2 = np.tanh(w * h_1 + a * x_2 + b)
    s_1, s_2 = 1 - h_1**2, 1 - h_2**2
    expected = [s_2 * h_1, s_2 * x_2 + s_2 * w * s_1 * x_1, s_2 + s_2 * w * s_1]

    kernel = np.array([[a] * 3, [0.0] * 3])  # the second input is not used
    params = {"h": {"kernel": w * np.eye(3)}, "i": {"bias": np.full(3, b), "kernel": kernel}}
    segment = probe.Segment(
        np.stack([np.full((B, 2), x) for x in (x_1, x_2)]),
        np.zeros((2, B), bool),
        np.stack([np.zeros((B, 3)), np.eye(3)[:B]]),  # stream b's loss is h_2 of unit b
    )
    for method in ("snap1", "rtrl"):
        mask = probe.dense_mask("simple")
        variables = {"params": {"cell": params}, "sparsity": {"cell": mask}}
        stand = twin.stand(method, "simple", probe.fresh(method, "simple"), variables)
        gradient = twin.unroll(method, "simple", params, mask, stand, segment).params
        tree = twin.unflat("simple", gradient)
        found = [tree["h"]["kernel"][0, 0], tree["i"]["kernel"][0, 0], tree["i"]["bias"][0]]
        np.testing.assert_allclose(found, expected, rtol=1e-14)
