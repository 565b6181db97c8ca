"""Wrappers that configs of tests name: an action of several parts, and environments that fail."""

from collections.abc import Callable

import gymnasium
import numpy as np
from gymnasium import spaces

GOOD_STEPS = 7  # of the life of an actor


def two_levers(env: gymnasium.Env) -> gymnasium.Env:
    """An environment of two actions that is worked by the first of two levers."""
    space = spaces.MultiDiscrete([2, 3])
    return gymnasium.wrappers.TransformAction(env, lambda action: int(action[0]), space)


class Failing(gymnasium.Wrapper):
    """Does well for a few steps, and then not."""

    def __init__(self, env: gymnasium.Env, spoil: Callable[[np.ndarray], np.ndarray]):
        super().__init__(env)
        self._spoil, self._left = spoil, GOOD_STEPS

    def step(self, action):
        observation, *rest = self.env.step(action)
        self._left -= 1
        return self._spoil(observation) if self._left < 0 else observation, *rest


def raises(env: gymnasium.Env) -> gymnasium.Env:
    def spoil(observation: np.ndarray) -> np.ndarray:
        raise KeyError("the door is gone")

    return Failing(env, spoil)


def gives_nan(env: gymnasium.Env) -> gymnasium.Env:
    return Failing(env, lambda observation: observation * np.float32("nan"))


def gives_another_shape(env: gymnasium.Env) -> gymnasium.Env:
    return Failing(env, lambda observation: observation[:2])
