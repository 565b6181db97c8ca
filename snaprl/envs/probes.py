"""The smallest environments that can catch a broken learner, each for one of its parts.

Every one of them has a value that is known by heart; a learner that misses it is wrong in the part
that the probe isolates, and no benchmark needs to be run to see it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jax import Array

from snaprl.envs.types import PureEnv, Step


class ProbeState(NamedTuple):
    """What the reward of a probe can depend on."""

    sign: Array  # [] float32  +1 or -1, drawn at the start
    time: Array  # [] int32


def _probe(
    observe: Callable[[ProbeState], Array],
    reward: Callable[[ProbeState, Array], Array],
    length: int = 1,
) -> PureEnv:
    """Returns an environment of `length` steps with two actions and an observation [1] float32."""

    def observation(state: ProbeState) -> Array:
        return jnp.reshape(observe(state), (1,)).astype(jnp.float32)

    def reset(key: Array) -> tuple[ProbeState, Array]:
        state = ProbeState(jax.random.rademacher(key, (), jnp.float32), jnp.int32(0))
        return state, observation(state)

    def step(state: ProbeState, action: Array, key: Array) -> tuple[ProbeState, Step]:
        del key  # only the sign is random
        r_t = reward(state, action).astype(jnp.float32)
        state = ProbeState(state.sign, state.time + 1)
        no = jnp.bool_(False)
        return state, Step(observation(state), r_t, state.time >= length, no, no)

    return PureEnv(
        reset=reset,
        step=step,
        observation_space=spaces.Box(-1.0, 1.0, (1,), np.float32),
        action_space=spaces.Discrete(2),
        knows_success=False,
    )


def _nothing(state: ProbeState) -> Array:
    return jnp.zeros_like(state.sign)


@functools.cache
def constant_reward() -> PureEnv:
    """One step, one observation (0), reward 1.  V = 1: does the value learn at all?"""
    return _probe(_nothing, lambda state, action: jnp.ones_like(state.sign))


@functools.cache
def observed_reward() -> PureEnv:
    """One step, reward = observation, +1 or -1.  V(o) = o: does the observation get through?"""
    return _probe(lambda state: state.sign, lambda state, action: state.sign)


@functools.cache
def delayed_reward() -> PureEnv:
    """Two steps, observing 0 and then 1, reward 1 at the end.  V(0) = discount, V(1) = 1."""
    return _probe(lambda state: state.time == 1, lambda state, action: state.time == 1, length=2)


@functools.cache
def action_reward() -> PureEnv:
    """One step, reward +1 for action 1 and -1 for action 0.  Does the policy learn at all?"""
    return _probe(_nothing, lambda state, action: 2 * action - 1)


@functools.cache
def matching_reward() -> PureEnv:
    """One step, +1 if action 1 answers observation +1 or action 0 answers -1, otherwise -1.

    The policy has to depend on the observation.
    """
    return _probe(
        lambda state: state.sign,
        lambda state, action: jnp.where((action == 1) == (state.sign > 0), 1.0, -1.0),
    )


PROBES: dict[str, Callable[[], PureEnv]] = {
    "constant_reward": constant_reward,
    "observed_reward": observed_reward,
    "delayed_reward": delayed_reward,
    "action_reward": action_reward,
    "matching_reward": matching_reward,
}
