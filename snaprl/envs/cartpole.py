"""CartPole without velocities: gymnasium's own, of which only the two positions are seen.

To balance, an agent has to remember where cart and pole were a step ago, and what it did.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv, CartPoleVectorEnv
from gymnasium.vector.utils import batch_space

POSITIONS = slice(None, None, 2)  # of cart and pole; velocities lie between them


class MaskedCartPole(CartPoleEnv):
    """One CartPole; observations are `[2]`, the cart's position and the pole's angle."""

    def __init__(self, *, sutton_barto_reward: bool = False, render_mode: str | None = None):
        """Takes gymnasium's arguments."""
        super().__init__(sutton_barto_reward, render_mode)
        self.observation_space = _positions(self.observation_space)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        observation, info = super().reset(seed=seed, options=options)
        return observation[POSITIONS], info

    def step(self, action: Any) -> Any:
        """Pushes the cart."""
        observation, reward, terminated, truncated, info = super().step(action)
        return observation[POSITIONS], float(reward), terminated, truncated, info


class MaskedCartPoleVector(CartPoleVectorEnv):
    """Many copies, `[B, 2]`, in NEXT_STEP autoreset mode."""

    def __init__(
        self,
        num_envs: int,
        *,
        max_episode_steps: int = 500,
        sutton_barto_reward: bool = False,
        render_mode: str | None = None,
    ):
        """Makes `num_envs` copies, with gymnasium's arguments."""
        super().__init__(num_envs, max_episode_steps, render_mode, sutton_barto_reward)
        self.single_observation_space = _positions(self.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode in every copy."""
        observation, info = super().reset(seed=seed, options=options)
        return observation[:, POSITIONS], info

    def step(self, action: Any) -> Any:
        """Pushes every cart."""
        observation, *rest = super().step(action)
        return observation[:, POSITIONS], *rest


def _positions(space: Any) -> spaces.Box:
    return spaces.Box(space.low[POSITIONS], space.high[POSITIONS], dtype=np.float32)
