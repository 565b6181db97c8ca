"""From an observation of any supported space to one vector."""

from collections.abc import Sequence

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from snaprl.agents.types import Array, PyTree


class Encoder(nn.Module):
    """Encodes observations leaf by leaf and joins the leaves.

    Discrete and MultiDiscrete become one-hot (a negative entry becomes zeros), MultiBinary and Box
    become floats, three-axis uint8 boxes are images `[H, W, C]` and pass a small CNN; Dict and
    Tuple are taken apart. Hidden ReLU layers may follow.

    Attributes:
      space: the observation space; `check_space` tells beforehand whether it is supported.
      hidden: widths of the hidden layers.
      dtype: type of the numbers that leave.
    """

    space: gymnasium.Space
    hidden: Sequence[int] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, observation: PyTree) -> Array:
        """Encodes.

        Args:
          observation: as the space says, any axes in front, the same for every leaf.

        Returns:
          `[..., F]`.
        """
        x = jnp.concatenate(self._leaves(self.space, observation, "x"), axis=-1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, param_dtype=self.dtype)(x))
        return x

    def _leaves(self, space: gymnasium.Space, x: PyTree, name: str) -> list[Array]:
        match space:
            case spaces.Dict():
                parts = [(key, part, x[key]) for key, part in space.spaces.items()]
            case spaces.Tuple():
                parts = [(k, part, x[k]) for k, part in enumerate(space.spaces)]
            case _:
                return [self._leaf(space, x, name)]
        return [leaf for k, part, y in parts for leaf in self._leaves(part, y, f"{name}_{k}")]

    def _leaf(self, space: gymnasium.Space, x: Array, name: str) -> Array:
        x = jnp.asarray(x)
        lead = x.shape[: x.ndim - len(space.shape or ())]
        match space:
            case spaces.Discrete():
                return jax.nn.one_hot(x - int(space.start), int(space.n), dtype=self.dtype)
            case spaces.MultiDiscrete():
                entries = zip(space.start.tolist(), space.nvec.tolist(), strict=True)
                hot = [
                    jax.nn.one_hot(x[..., k] - start, n, dtype=self.dtype)
                    for k, (start, n) in enumerate(entries)
                ]
                return jnp.concatenate(hot, axis=-1)
            case _ if _is_image(space):
                return _ImageEncoder(self.dtype, name=f"image_{name}")(x)
            case _:
                scale = 255.0 if space.dtype == np.uint8 else 1.0
                return x.reshape(*lead, -1).astype(self.dtype) / scale


class _ImageEncoder(nn.Module):
    """A small CNN: strides for what is large, none for a grid of a few cells."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.astype(self.dtype) / 255.0
        for features in (16, 32, 32):
            stride = 2 if min(x.shape[-3:-1]) > 7 else 1
            x = nn.relu(nn.Conv(features, (3, 3), (stride, stride), param_dtype=self.dtype)(x))
        x = x.reshape(*x.shape[:-3], -1)
        return nn.relu(nn.Dense(128, param_dtype=self.dtype)(x))


def check_space(space: gymnasium.Space, name: str = "observation") -> None:
    """Refuses what `Encoder` cannot encode.

    Raises:
      ValueError: a leaf is not supported; the sentence names it.
    """
    match space:
        case spaces.Dict():
            for key, part in space.spaces.items():
                check_space(part, f"{name}.{key}")
        case spaces.Tuple():
            for k, part in enumerate(space.spaces):
                check_space(part, f"{name}.{k}")
        case spaces.Discrete() | spaces.MultiBinary() | spaces.Box():
            pass
        case spaces.MultiDiscrete() if space.nvec.ndim == 1:
            pass
        case _:
            shown = " ".join(str(space).split())  # arrays take several lines
            raise ValueError(
                f"the {name} space {shown} is not supported; wrap the environment so that it gives "
                "Box, Discrete, MultiDiscrete (one axis), MultiBinary, or a Dict or Tuple of them"
            )


def _is_image(space: gymnasium.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3
