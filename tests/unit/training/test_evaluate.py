"""Evaluation counts episodes, all alike, however long they are."""

from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from snaprl.agents import Action, Agent
from snaprl.cores import CoreState
from snaprl.envs import PureEnv, Step, auto_reset
from snaprl.training.errors import Stopped
from snaprl.training.evaluate import COPIES, device_evaluator, host_evaluator
from snaprl.training.host_envs import HostEnvs

SHORT, LONG, NEVER = 1, 9, 10**6
SPACES = spaces.Box(0, 1, (), np.float32), spaces.Discrete(2)


def rigged() -> Agent:
    """Acts 0 when greedy and 1 when it draws; its state counts the steps since the last reset."""

    def act(variables, hidden, observation, first, key):
        hidden = jnp.where(first, 0, hidden) + 1
        chosen = jnp.zeros_like(hidden) if key is None else jnp.ones_like(hidden)
        return hidden, Action(chosen, chosen.astype(jnp.float32), chosen.astype(jnp.float32))

    return Agent(
        init=lambda key, streams: {},
        initial_state=lambda key, streams: CoreState(jnp.zeros(streams, jnp.int32), ()),
        observe=lambda observation, action, reward, first: observation,
        act=act,
        loss=lambda *_: (jnp.zeros(()), (CoreState((), ()), {})),
        to_env=lambda action: action,
        no_action=lambda streams: jnp.full(streams, -1),
    )


class State(NamedTuple):
    length: jax.Array
    time: jax.Array


def lengths(short: int, long: int, knows_success: bool = True) -> PureEnv:
    """Episodes of two lengths, equally often; every reward is the action; long ones succeed."""

    def reset(key):
        length = jnp.where(jax.random.bernoulli(key), long, short)
        return State(length, jnp.int32(0)), jnp.float32(0)

    def step(state, action, key):
        state = State(state.length, state.time + 1)
        over = state.time >= state.length
        no = jnp.bool_(False)
        reward, success = action.astype(jnp.float32), over & (state.length == long)
        return state, Step(jnp.float32(0), reward, over, no, success)

    return PureEnv(reset, step, *SPACES, knows_success)


def on_device(env: PureEnv, **options) -> dict[str, float]:
    options = {"episodes": 1000, "greedy": True, "max_steps": 50} | options
    return device_evaluator(rigged(), auto_reset(env), **options)({}, jax.random.key(0))


@pytest.mark.parametrize("episodes", [1, 5, COPIES, COPIES + 1, 1000])
def test_as_many_episodes_as_were_asked_for_or_a_few_more(episodes):
    found = on_device(lengths(SHORT, LONG), episodes=episodes)["episodes"]
    assert episodes <= found < episodes + -(-episodes // COPIES)


def test_short_episodes_do_not_count_more_than_long_ones():
    found = on_device(lengths(SHORT, LONG), episodes=4 * COPIES)
    # standard deviation of the mean: 4 / sqrt(1024); the first to end would be 1.x steps long
    assert found["episodes"] == 4 * COPIES
    assert abs(found["episode_length"] - 5) < 4 * 4 / 32
    np.testing.assert_allclose(found["success"], (found["episode_length"] - 1) / 8, atol=1e-5)


def test_greedy_and_drawn_actions():
    env = lengths(3, 3)
    assert on_device(env, greedy=True)["episode_return"] == 0
    assert on_device(env, greedy=False)["episode_return"] == 3


def test_an_episode_that_does_not_end_counts_as_it_stands():
    found = on_device(lengths(NEVER, NEVER), episodes=7, max_steps=20, greedy=False)
    assert found == {"episodes": 7, "episode_return": 20, "episode_length": 20, "success": 0}


def test_episodes_of_just_the_most_steps_are_whole():
    found = on_device(lengths(6, 6), episodes=3 * COPIES, max_steps=6)
    assert found == {
        "episodes": 3 * COPIES,
        "episode_return": 0,
        "episode_length": 6,
        "success": 1,
    }


def test_success_that_nobody_knows_is_left_out():
    assert "success" not in on_device(lengths(1, 1, knows_success=False), episodes=3)


class Lengths(gymnasium.Env):
    """Copy k alternates between episodes of 1 and 9 steps, the even copies starting with 1."""

    observation_space, action_space = SPACES

    def __init__(self, copy: int, only: int | None = None):
        self._episode, self._only = copy, only

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._left = self._only or (SHORT, LONG)[self._episode % 2]
        self._episode += 1
        return np.float32(0), {}

    def step(self, action):
        self._left -= 1
        return np.float32(0), float(action), self._left == 0, False, {}


def on_host(mode: AutoresetMode, copies: int = 4, only: int | None = None, **options):
    makers = [lambda k=k: Lengths(k, only) for k in range(copies)]
    envs = HostEnvs(SyncVectorEnv(makers, autoreset_mode=mode))
    options = {"episodes": 8, "greedy": True, "max_steps": 50} | options
    found = host_evaluator(rigged(), envs, **options)({}, jax.random.key(0))
    envs.close()
    return found


def test_on_the_host_it_can_be_broken_off():
    envs = HostEnvs(SyncVectorEnv([lambda: Lengths(0, NEVER)]))
    play = host_evaluator(rigged(), envs, episodes=1, greedy=True, max_steps=NEVER)
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        play({}, jax.random.key(0), lambda: next(asked))
    envs.close()


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=str)
def test_on_the_host_too(mode):
    found = on_host(mode)
    # every copy plays one of each
    assert found == {"episodes": 8, "episode_return": 0, "episode_length": 5}
    assert on_host(mode, only=3, greedy=False)["episode_return"] == 3
    assert on_host(mode, episodes=5)["episodes"] == 8  # filled up
    assert on_host(mode, only=NEVER, episodes=4, max_steps=7) == {
        "episodes": 4,
        "episode_return": 0,
        "episode_length": 7,
    }
    assert on_host(mode, only=6, episodes=12, max_steps=6)["episode_length"] == 6
