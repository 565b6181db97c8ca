"""What an environment is here: a few pure functions and the spaces that they speak."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import gymnasium
from jax import Array

PyTree: TypeAlias = Any


class Step(NamedTuple):
    """What one step of an environment brings.  Unbatched: the caller vmaps.

    An episode is over where `terminated` or `truncated` is true; the two are never true together.
    """

    observation: PyTree  # as the observation space says; of an episode's end, its last one
    reward: Array  # [] float32
    terminated: Array  # [] bool   the task is over: nothing is to be expected from here
    truncated: Array  # [] bool   cut short: a value of the last observation still stands
    success: Array  # [] bool   last step of an episode that solved the task


class PureEnv(NamedTuple):
    """An environment as pure functions of unbatched arrays, fit for `jax.vmap` and `jax.lax.scan`.

    `reset(key) -> (state, observation)` and `step(state, action, key) -> (state, Step)` consume
    their typed key (`jax.random.key`).  What follows the end of an episode is undefined: wrap with
    `snaprl.envs.auto_reset.auto_reset`.  Where `knows_success` is false, `Step.success` is always
    false and says nothing.
    """

    reset: Callable[[Array], tuple[PyTree, PyTree]]
    step: Callable[[PyTree, Array, Array], tuple[PyTree, Step]]
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    knows_success: bool
