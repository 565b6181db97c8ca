"""Law 6: streams do not know of each other, and an episode does not know of the one before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import probe
from contract.registry import DETERMINED, METHODS, B, pairs

pytestmark = pytest.mark.usefixtures("x64")

METHOD = pytest.mark.parametrize("method", METHODS)


def of_stream(tree, stream):
    """One stream of a carry `[B, ...]`, still with its axis."""
    return jax.tree.map(lambda leaf: leaf[stream : stream + 1], tree)


def poisoned(segment, stream):
    """The segment with NaN for this stream's inputs, and with no loss on its outputs."""
    xs, weights = segment.xs.copy(), segment.weights.copy()
    xs[:, stream], weights[:, stream] = np.nan, 0.0
    return segment._replace(xs=xs, weights=weights)


@METHOD
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_batch_is_a_loop_over_its_streams(method, cell):
    variables = probe.draw_variables(cell, 21, density=0.8)
    segments = probe.draw_segment(21, 4, reset_rate=0.3).cut(1, 3)
    together = probe.run_through(method, cell, variables, probe.fresh(method, cell), segments)
    # a stream beside itself: the same program, and nobody else to know of
    fresh = probe.fresh(method, cell)
    alone = [
        probe.run_through(
            method,
            cell,
            variables,
            jax.tree.map(lambda leaf, b=b: leaf[jnp.full(B, b)], fresh),  # with its own key
            [s.stream(*[b] * B) for s in segments],
        )
        for b in range(B)
    ]
    for b in range(B):
        for whole, part in zip(together, alone[b], strict=True):
            for k in range(B):
                probe.assert_close(part.ys[:, k], whole.ys[:, b])
                probe.assert_close(part.xs[:, k], whole.xs[:, b])
                probe.assert_close(of_stream(part.carry, k), of_stream(whole.carry, b))
    of_all = probe.added([outcome for run in alone for outcome in run])
    probe.assert_close(probe.added(together), jax.tree.map(lambda g: g / B, of_all))


@pairs()
@pytest.mark.parametrize("steps", [1, 3])
def test_nan_stays_in_its_stream_and_ends_with_a_reset(method, cell, steps):
    variables = probe.draw_variables(cell, 22, density=0.8)
    clean, after = probe.draw_segment(22, 2 * steps).cut(steps, steps)
    run = probe.program(method, cell)
    healthy = run(variables, probe.fresh(method, cell), clean)
    sick = run(variables, probe.fresh(method, cell), poisoned(clean, 1))
    assert all(np.isnan(h[1]).any() for h in jax.tree.leaves(sick.carry.hidden))
    # the streams beside it: not touched at all
    probe.assert_close(of_stream(sick.carry, 0), of_stream(healthy.carry, 0), 0.0)
    probe.assert_close(sick.ys[:, 0], healthy.ys[:, 0], 0.0)
    probe.assert_close(sick.xs[:, 0], healthy.xs[:, 0], 0.0)

    after.resets[0, 1] = True
    recovered = run(variables, sick.carry, after)
    expected = run(variables, healthy.carry, after)
    for part in ("carry", "ys", "params", "xs"):
        probe.assert_close(getattr(recovered, part), getattr(expected, part), 0.0)


@METHOD
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("reset", [1, 2])
def test_inputs_that_are_nan_end_with_a_reset_in_the_middle(method, cell, reset):
    """Nothing that came before it is in the carry, or in what comes after."""
    variables, segment = probe.draw_variables(cell, 28), probe.draw_segment(28, 3)
    segment.resets[reset, 1] = True
    sick = segment._replace(xs=segment.xs.copy())
    sick.xs[:reset, 1] = np.nan
    run, carry = probe.program(method, cell), probe.fresh(method, cell)
    found, expected = run(variables, carry, sick), run(variables, carry, segment)
    probe.assert_close(found.carry, expected.carry, 0.0)
    probe.assert_close(found.ys[reset:], expected.ys[reset:], 0.0)


@METHOD
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_an_influence_that_is_nan_ends_with_a_reset_in_the_middle(method, cell):
    """The carry afterwards is that of a stream that never was sick; 0 x NaN would be NaN."""
    variables, segment = probe.draw_variables(cell, 23), probe.draw_segment(23, 3)
    segment.resets[1, 1] = True
    segment.weights[0, 1] = 0.0
    carry = probe.fresh(method, cell)
    sick = carry._replace(
        influence=jax.tree.map(
            lambda leaf: leaf.at[1].set(jnp.nan) if leaf.dtype != jnp.uint32 else leaf,
            carry.influence,
        )
    )
    run = probe.program(method, cell)
    found, expected = run(variables, sick, segment), run(variables, carry, segment)
    probe.assert_close(found.carry, expected.carry, 0.0)
    probe.assert_close(found.ys, expected.ys, 0.0)


@pairs(DETERMINED)
def test_two_episodes_in_one_stream_are_two_streams(method, cell):
    """One stream that starts anew at its second step; and each episode in a stream of its own."""
    variables = probe.draw_variables(cell, 24)
    segment = probe.draw_segment(24, 3, streams=1)
    segment.resets[1] = True
    # the streams all have three steps; what comes after an episode's end carries no loss
    xs = np.concatenate([segment.xs, np.roll(segment.xs, -1, axis=0)], axis=1)
    weights = np.concatenate([segment.weights, np.roll(segment.weights, -1, axis=0)], axis=1)
    weights[1:, 0] = 0.0
    weights[2:, 1] = 0.0
    run = probe.program(method, cell)
    apart = run(
        variables,
        probe.fresh(method, cell),
        probe.Segment(xs, np.zeros((3, B), bool), weights),
    )
    twice = jax.tree.map(lambda x: np.concatenate([x, x], axis=1), segment)
    in_one = run(variables, probe.fresh(method, cell), twice)
    ys = np.concatenate([apart.ys[:1, 0], apart.ys[:2, 1]])
    probe.assert_close(in_one.ys[:, 0], ys)
    gradient = jax.tree.map(lambda g: g / 2, in_one.params)  # the stream ran twice, side by side
    probe.assert_close(gradient, apart.params)


@pairs(DETERMINED)
def test_a_reset_forgets_everything(method, cell):
    """A stream that resets at once ends where a new one ends, whatever it carried."""
    variables = probe.draw_variables(cell, 25)
    before, segment = probe.draw_segment(25, 6).cut(3, 3)
    used = probe.program(method, cell)(variables, probe.fresh(method, cell), before).carry
    fresh = probe.program(method, cell)(variables, probe.fresh(method, cell), segment)
    segment.resets[0] = True
    found = probe.program(method, cell)(variables, used, segment)
    for part in ("carry", "ys", "params", "xs"):
        probe.assert_close(getattr(found, part), getattr(fresh, part))


@METHOD
def test_a_segment_without_resets_needs_none(method):
    """None is a program of its own; it gives what an array of False gives."""
    variables, segment = probe.draw_variables("gru", 26), probe.draw_segment(26, 3)
    carry = probe.fresh(method, "gru")
    run = probe.program(method, "gru")
    found = run(variables, carry, segment._replace(resets=None))
    probe.assert_close(found, run(variables, carry, segment))


@METHOD
def test_nothing_flows_into_the_carry_nor_back_from_it(method):
    """Whatever is done with the carry, before or after, has no gradient through the core."""
    cell = "lstm"
    variables = probe.with_pattern(probe.core(method, cell), probe.draw_variables(cell, 27))
    before, segment = probe.draw_segment(27, 6).cut(3, 3)
    carry = probe.program(method, cell)(variables, probe.fresh(method, cell), before).carry
    found = probe.program(method, cell)(variables, carry, segment)
    for gradient in probe.floats(found.old_carry):
        assert not gradient.any()

    def loss(params, xs, carry):
        after, _ = probe.core(method, cell).apply(
            variables | {"params": params}, carry, xs, segment.resets
        )
        return sum(jnp.sum(leaf**2) for leaf in probe.floats(after))

    arguments = (variables["params"], segment.xs, carry)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2), allow_int=True))(*arguments)
    assert len(probe.floats(gradients)) >= 5
    for gradient in probe.floats(gradients):
        assert not gradient.any()
