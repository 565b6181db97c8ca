"""What an agent reads of MiniGrid: its view, one-hot, and whether it reached what it was sent for.

MiniGrid gives each cell of the view three numbers that are names, of an object, a colour and a
state: as amounts they mean nothing.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

NAMES = (11, 6, 3)  # objects, colours, states, as minigrid.core.constants counts them


class OneHotView(gymnasium.ObservationWrapper):
    """The view as a MultiBinary vector; the mission, a text, is left out.

    `info["success"]` comes with an episode's last step: MiniGrid rewards nothing but success.
    """

    def __init__(self, env: gymnasium.Env):
        """Wraps an environment of MiniGrid.

        Raises:
          ValueError: its observations have no view.
        """
        super().__init__(env)
        image = getattr(env.observation_space, "spaces", {}).get("image")
        if image is None:
            raise ValueError(f"{env} has no 'image' in its observations: it is none of MiniGrid's")
        cells = int(np.prod(image.shape[:-1]))
        self.observation_space = spaces.MultiBinary(cells * sum(NAMES))

    def observation(self, observation: dict[str, Any]) -> np.ndarray:
        """`[cells * 20]` int8."""
        kinds = [
            np.eye(n, dtype=np.int8)[observation["image"][..., k]] for k, n in enumerate(NAMES)
        ]
        return np.concatenate(kinds, axis=-1).ravel()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Acts."""
        observation, reward, terminated, truncated, info = super().step(action)
        if terminated or truncated:
            info = info | {"success": float(reward) > 0}
        return observation, reward, terminated, truncated, info
