"""The loop on the device: its segments are what happened, and its sums are what was earned."""

import jax
import numpy as np
import pytest
from unit.training.loops import (
    LENGTH,
    MAZE_NETWORK,
    MAZE_READ,
    MAZE_SPACES,
    TIMEOUT,
    maze_agent,
    replay,
    segments,
    spying,
    unrolled,
)

from snaprl.agents import ActorCriticLoss, make_agent
from snaprl.envs import TMaze, auto_reset
from snaprl.training.device_loop import DeviceLoop

B, T, UPDATES = 3, 4, 25
ENV = auto_reset(TMaze(length=LENGTH, timeout=TIMEOUT).make())


def make_loop(agent, learning_rate=0.0):
    learner = spying(agent, learning_rate)
    return DeviceLoop(agent, learner, ENV, streams=B, unroll=T, updates_per_chunk=UPDATES)


@pytest.fixture(scope="module")
def agent():
    return maze_agent()


@pytest.fixture(scope="module")
def loop(agent):
    return make_loop(agent)


@pytest.fixture(scope="module")
def chunk(loop):
    return loop.run(loop.init(jax.random.key(1)), UPDATES)[1]


@pytest.fixture(scope="module")
def history(chunk):
    return segments(chunk.metrics, MAZE_READ)


def test_segments_are_what_happened(history, chunk):
    sums = replay(history)
    assert sums.episodes > 10
    assert 0 < sums.success < sums.episodes
    for name, value in sums._asdict().items():
        np.testing.assert_allclose(chunk.episodes[name], value, rtol=1e-5)


def test_both_ends_of_an_episode_and_a_reset_at_every_place_were_seen(history):
    mask = np.stack([segment.mask for segment in history])
    discount = np.stack([segment.discount for segment in history])
    assert ((mask == 0).any(axis=(0, 2))).all()
    terminated = (discount == 0).sum()
    assert 0 < terminated < (mask == 0).sum()


def test_the_learner_gives_actions_the_probabilities_with_which_they_were_chosen(loop, history):
    """So both read the same observations, from the same hidden state, with the same resets."""
    variables = loop.init(jax.random.key(1)).learner.variables
    unroll = jax.jit(unrolled)
    for segment, following in zip(history, history[1:], strict=False):
        log_prob, hidden = unroll(variables, segment)
        np.testing.assert_allclose(log_prob, segment.behaviour_log_prob, atol=1e-6)
        np.testing.assert_allclose(hidden, following.hidden, atol=1e-6)
    assert np.std([segment.behaviour_log_prob for segment in history]) > 1e-3


def test_what_is_learned_from_a_reward_may_be_clipped(history, chunk):
    """What the network reads, and episodes are measured by, are rewards as they are."""
    agent = make_agent(*MAZE_SPACES, MAZE_NETWORK, ActorCriticLoss(), reward_clip=0.05)
    loop = make_loop(agent)
    clipped = loop.run(loop.init(jax.random.key(1)), UPDATES)[1]
    for ours, plain in zip(segments(clipped.metrics, MAZE_READ), history, strict=True):
        np.testing.assert_array_equal(ours.reward, np.clip(plain.reward, -0.05, 0.05))
        jax.tree.map(np.testing.assert_array_equal, ours.observation, plain.observation)
    assert max(np.abs(segment.reward).max() for segment in history) == 4
    assert clipped.episodes == chunk.episodes


def test_a_run_in_pieces_is_one_run_and_compiles_once(agent):
    loop = make_loop(agent, learning_rate=0.1)
    whole, chunk = loop.run(loop.init(jax.random.key(2)), 9)
    state, pieces = loop.init(jax.random.key(2)), []
    for updates in (2, 1, 6):
        state, piece = loop.run(state, updates)
        state = loop.restore(jax.device_get(state))  # as a checkpoint gives it back
        pieces.append(piece)
    assert loop._chunk._cache_size() == 1

    def numbers(state):
        return jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))

    jax.tree.map(np.testing.assert_array_equal, numbers(state), numbers(whole))
    assert state.learner.updates == 9
    assert np.ptp(chunk.metrics["entropy"][:9]) > 0  # something was learned
    for name, values in chunk.metrics.items():
        joined = np.concatenate([p.metrics[name][: p.updates] for p in pieces])
        np.testing.assert_array_equal(joined, values[:9])
    for name, value in chunk.episodes.items():
        np.testing.assert_allclose(sum(p.episodes[name] for p in pieces), value, rtol=1e-6)
