"""Observations are normalised by all that was observed, and learned from as they were acted on."""

import jax
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from unit.agents.laws import ACTIONS, COSTS, OBSERVATION, T, close, network, played

from snaprl.agents import ImpalaLoss, PPOLoss, make_agent, normaliser

POSITION = spaces.Box(-1, 1, (2,), np.float64)
MIXED = spaces.Dict(
    {
        "cards": spaces.Discrete(4),
        "pair": spaces.Tuple((POSITION, spaces.MultiBinary(3))),
        "pixels": spaces.Box(0, 255, (2,), np.uint8),
        "count": spaces.Box(0, 9, (), np.int64),
    }
)


def of(space):
    return {"params": {}, normaliser.COLLECTION: normaliser.init(space)}


@given(
    segments=st.integers(1, 5),
    steps=st.integers(1, 4),
    streams=st.integers(1, 3),
    offset=st.floats(-1e3, 1e3),
    size=st.floats(1e-2, 1e3),
)
def test_statistics_are_those_of_all_that_was_observed(x64, segments, steps, streams, offset, size):
    rng = np.random.default_rng(0)
    seen = offset + size * rng.normal(size=(segments, steps, streams, 2))
    variables = of(POSITION)
    for segment in seen:
        variables = normaliser.revise(variables, POSITION, segment)
    held = variables[normaliser.COLLECTION]
    every = seen.reshape(-1, 2)
    np.testing.assert_allclose(held["mean"]["x"], every.mean(0), rtol=1e-12, atol=1e-12 * size)
    near = 1e-12 * (size + abs(offset)) ** 2
    np.testing.assert_allclose(held["variance"]["x"], every.var(0), rtol=1e-12, atol=near)
    found = normaliser.normalise(variables, POSITION, every)
    wanted = (every - every.mean(0)) / np.sqrt(every.var(0) + 1e-8)
    np.testing.assert_allclose(found, np.clip(wanted, -10, 10), rtol=1e-7, atol=1e-7)


def test_before_any_observation_and_without_statistics_all_is_read_as_it_is(x64):
    seen = np.random.default_rng(0).normal(size=(3, 2))
    close(normaliser.normalise(of(POSITION), POSITION, seen), seen, 1e-7)
    assert normaliser.normalise({"params": {}}, POSITION, seen) is seen


def test_what_never_changed_is_read_as_nothing_and_what_is_far_off_is_cut(x64):
    variables = normaliser.revise(of(POSITION), POSITION, np.full((5, 2, 2), 7.0))
    close(normaliser.normalise(variables, POSITION, np.full(2, 7.0)), np.zeros(2))
    close(normaliser.normalise(variables, POSITION, np.array([9.0, -9.0])), [10.0, -10.0])


def test_numbers_are_normalised_wherever_they_are_and_nothing_else_is(x64):
    rng = np.random.default_rng(0)
    seen = {
        "cards": rng.integers(4, size=(6, 2)),
        "pair": (rng.normal(size=(6, 2, 2)), rng.integers(2, size=(6, 2, 3))),
        "pixels": rng.integers(256, size=(6, 2, 2), dtype=np.uint8),
        "count": rng.integers(10, size=(6, 2)),
    }
    variables = normaliser.revise(of(MIXED), MIXED, seen)
    found = normaliser.normalise(variables, MIXED, seen)
    assert found.keys() == seen.keys()
    for key in ("cards", "pixels"):
        np.testing.assert_array_equal(found[key], seen[key])
    np.testing.assert_array_equal(found["pair"][1], seen["pair"][1])
    for x, was in ((found["pair"][0], seen["pair"][0]), (found["count"], seen["count"])):
        assert not np.allclose(x, was)
        close(np.mean(x, (0, 1)), np.zeros(x.shape[2:]))
        close(np.std(x, (0, 1)), np.ones(x.shape[2:]), 1e-7)


def test_parts_whose_names_read_alike_have_statistics_of_their_own(x64):
    one = spaces.Box(-1, 1, (), np.float64)
    space = spaces.Dict({"arm_left": one, "arm": spaces.Dict({"left": one}), "arm['left']": one})
    rng = np.random.default_rng(0)
    seen = {
        "arm_left": rng.normal(size=(5, 2)),
        "arm": {"left": 100 + rng.normal(size=(5, 2))},
        "arm['left']": 7 * rng.normal(size=(5, 2)),
    }
    found = normaliser.normalise(normaliser.revise(of(space), space, seen), space, seen)
    for x in jax.tree.leaves(found):
        close([x.mean(), x.std()], [0.0, 1.0], 1e-7)


def test_numbers_as_large_as_there_are_leave_statistics_that_are_numbers():
    largest = np.finfo(np.float32).max
    variables = of(POSITION)
    for x in (largest, -largest, 1e20, 0.0):
        variables = normaliser.revise(variables, POSITION, np.full((2, 2, 2), x, np.float32))
    held = variables[normaliser.COLLECTION]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(held))
    assert np.isfinite(normaliser.normalise(variables, POSITION, np.full(2, largest))).all()


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(0, 255, (4,), np.uint8)])
def test_a_space_without_numbers_is_refused(space):
    with pytest.raises(ValueError, match=r"^observations cannot be normalised: .* has no Box of "):
        make_agent(space, ACTIONS["discrete"], network(), ImpalaLoss(), normalise_observations=True)


@pytest.mark.parametrize("loss", [ImpalaLoss(**COSTS), PPOLoss(**COSTS)], ids=["impala", "ppo"])
def test_a_segment_is_learned_from_as_it_was_acted_on(x64, loss):
    """Every ratio is 1, though the statistics have moved by the time the loss is taken."""
    agent = make_agent(
        OBSERVATION, ACTIONS["discrete"], network(), loss, normalise_observations=True
    )
    plain = make_agent(OBSERVATION, ACTIONS["discrete"], network(), loss)
    variables, state, segment, _ = played(agent, ACTIONS["discrete"], jax.random.key(0))
    after, ready = jax.jit(agent.prepare)(variables, state, segment)
    _, (_, metrics) = jax.jit(agent.loss)(after, state, ready)
    close(metrics["rho"] - 1 if "rho" in metrics else metrics["kl"], 0.0)
    # the last observation only bootstraps, and is the next segment's first
    seen = segment.observation["observation"][:T].reshape(-1, 3)
    close(after[normaliser.COLLECTION]["mean"]["x"], seen.mean(0))
    # the second time it matters: the same segment is acted on otherwise
    told = jax.jit(plain.loss)(after, state, segment)[1][1]
    _, ready = jax.jit(agent.prepare)(after, state, segment)
    found = jax.jit(agent.loss)(after, state, ready)[1][1]
    assert abs(found["policy_loss"] - told["policy_loss"]) > 1e-6


def test_an_agent_may_be_drawn_again_after_its_variables_were_donated(x64):
    """Statistics are made anew, and not handed out: a learner may have given them away."""
    agent = make_agent(
        OBSERVATION,
        ACTIONS["discrete"],
        network(),
        ImpalaLoss(),
        popart_step=0.1,
        normalise_observations=True,
    )
    gone = jax.jit(lambda v: jax.tree.map(lambda x: x + 1, v), donate_argnums=0)
    first = agent.init(jax.random.key(0), 2)
    wanted = jax.tree.map(np.asarray, first)
    gone(first)
    again = agent.init(jax.random.key(0), 2)
    jax.tree.map(np.testing.assert_array_equal, again, wanted)


def test_the_unit_of_observations_does_not_matter(x64):
    """Once it is known."""
    agent = make_agent(
        OBSERVATION, ACTIONS["discrete"], network(), ImpalaLoss(), normalise_observations=True
    )
    variables, state, segment, _ = played(agent, ACTIONS["discrete"], jax.random.key(0))
    read = np.asarray(segment.observation["observation"])
    unit = np.array([1e-3, 1.0, 50.0])

    def logits(seen):
        known = normaliser.revise(variables, OBSERVATION, seen)
        last = {**jax.tree.map(lambda x: x[0], segment.observation), "observation": seen[0]}
        return agent.act(known, state.hidden, last, segment.first[0], None)[1].log_prob

    close(logits(read * unit + 7), logits(read), 1e-2)  # 1e-8 stands beside a variance of 1e-6
    close(logits(read * 50), logits(read), 1e-7)
