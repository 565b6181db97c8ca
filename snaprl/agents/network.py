"""The network of a recurrent actor-critic: encoder, core, heads."""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from snaprl.agents.encoder import Encoder
from snaprl.agents.types import Array, PyTree
from snaprl.cores import CoreState, GradientMethod, OnlineRNN, SnAp, sparsity


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """What the network is made of.

    Attributes:
      cell: a flax cell class, such as `flax.linen.GRUCell`.
      features: its units.
      method: how its gradient travels through time.
      pattern: of the recurrent weights, drawn once; None for all of them.
      shared: whether the gates share what is drawn.
      encoder: widths of the hidden layers between observation and core.
      last_action: whether the core reads the last action.
      last_reward: whether the core reads the last reward.
      memory: whether the core remembers; without, it is reset before every step, so that the same
        network shows what a task is worth to an agent that sees the present alone.
      dtype: type of parameters and activations.

    Raises:
      TypeError: the cell, the method or a width is not of its kind.
      ValueError: a width is less than 1.
    """

    cell: Callable[..., nn.RNNCellBase] = nn.GRUCell
    features: int = 64
    method: GradientMethod = SnAp(order=1)
    pattern: sparsity.Pattern | None = None
    shared: bool = True
    encoder: tuple[int, ...] = ()
    last_action: bool = True
    last_reward: bool = True
    memory: bool = True
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self) -> None:
        """Refuses what flax and jax would stumble over later, in words of their own."""
        if not callable(self.cell) or isinstance(self.cell, nn.Module):
            shown = " ".join(repr(self.cell).split())  # a module takes several lines
            raise TypeError(f"cell is {shown}, not a cell class: give one such as linen.GRUCell")
        if isinstance(self.method, str | type):
            raise TypeError(
                f"method is {self.method!r}, not a gradient method: give one such as "
                "snaprl.cores.SnAp(order=1)"
            )
        if not isinstance(self.encoder, Sequence) or isinstance(self.encoder, str):
            raise TypeError(
                f"encoder is {self.encoder!r}, not a tuple of widths: a layer of 64 is "
                "encoder=(64,)"
            )
        object.__setattr__(self, "encoder", tuple(self.encoder))  # a list has no hash
        _check_width("features", self.features, "; encoder takes the widths of layers before it")
        for width in self.encoder:
            _check_width("a width in encoder", width)

    def core(self) -> OnlineRNN:
        """The recurrent core."""
        cell = self.cell(self.features, param_dtype=self.dtype)
        mask = None
        if self.pattern is not None:
            mask = sparsity.mask(cell, 1, self.pattern, shared=self.shared)
        return OnlineRNN(cell, self.method, mask)

    def observed(
        self, observation_space: gymnasium.Space, action_space: gymnasium.Space
    ) -> spaces.Dict:
        """The space of what the network reads, from the environment's and the actions'."""
        parts = {"observation": observation_space}
        if self.last_action:
            parts["last_action"] = action_space
        if self.last_reward:
            parts["last_reward"] = spaces.Box(-jnp.inf, jnp.inf, ())
        return spaces.Dict(parts)


class RecurrentActorCritic(nn.Module):
    """Encoder, recurrent core, a policy head and a value head.

    Attributes:
      config: what it is made of.
      observed: the space of what it reads, `NetworkConfig.observed`.
      outputs: how many numbers the policy takes per step.
    """

    config: NetworkConfig
    observed: gymnasium.Space
    outputs: int

    def setup(self):
        """Makes the parts."""
        c = self.config
        self.encoder = Encoder(self.observed, c.encoder, c.dtype)
        self.core = c.core()
        # a small first policy is close to uniform, whatever the core puts out
        small = nn.initializers.variance_scaling(1e-4, "fan_in", "truncated_normal")
        self.policy_head = nn.Dense(self.outputs, kernel_init=small, param_dtype=c.dtype)
        self.value_head = nn.Dense(1, param_dtype=c.dtype)

    def __call__(
        self, carry: CoreState, observation: PyTree, first: Array
    ) -> tuple[CoreState, Array, Array]:
        """Runs a segment and reads one observation more.

        Args:
          carry: where the streams stand.
          observation: `[T+1, B, ...]`.
          first: bool `[T+1, B]`.

        Returns:
          The state after step T, the policy's numbers `[T, B, outputs]`, the values `[T+1, B]`, of
          which the last only bootstraps.
        """
        first = self._resets(first)
        xs = self.encoder(observation)
        carry, ys = self.core(carry, xs[:-1], first[:-1])
        _, last = self.core.step(carry, jax.lax.stop_gradient(xs[-1]), first[-1])
        features = jnp.concatenate([ys, jax.lax.stop_gradient(last)[None]])
        return carry, _wide(self.policy_head(ys)), _wide(self.value_head(features)[..., 0])

    def step(
        self, carry: CoreState, observation: PyTree, first: Array
    ) -> tuple[CoreState, Array, Array]:
        """Acts: one step of B streams, the influence untouched; numbers `[B, outputs]`, values."""
        carry, y = self.core.step(carry, self.encoder(observation), self._resets(first))
        return carry, _wide(self.policy_head(y)), _wide(self.value_head(y)[..., 0])

    def _resets(self, first: Array) -> Array:
        """Where the core is reset, of where episodes start."""
        return first if self.config.memory else jnp.ones_like(first)

    @nn.nowrap
    def initial_state(self, key: Array, streams: int, width: int) -> CoreState:
        """The state of streams that have seen nothing; the core reads `width` numbers."""
        return self.config.core().initialize_carry(key, (streams, width))


def _check_width(name: str, width: object, more: str = "") -> None:
    """Raises TypeError or ValueError where `width` is no number of units."""
    if not isinstance(width, int | np.integer) or isinstance(width, bool):
        raise TypeError(f"{name} is {width!r}: give one whole number of units{more}")
    if width < 1:
        raise ValueError(f"{name} is {width}: give 1 or more units")


def _wide(x: Array) -> Array:
    """At least 32 bits, for losses sum over many steps."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
