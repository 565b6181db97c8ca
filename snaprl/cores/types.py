"""Central types of the cores: what a stream carries, and what a gradient method is.

Axes: `T` time, `B` streams, `N` units, `M` inputs, `G` gates, `U` state variables of a unit.
Time comes first, then streams: `[T, B, ...]`. Equation numbers are those of docs/method.md.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax

Array = jax.Array
PyTree = Any
Params = Mapping[str, Any]


class CoreState(NamedTuple):
    """What belongs to a stream and survives segments.

    `hidden` is what `nn.RNN` carries. `influence` knows how each weight has moved it, as far as the
    method remembers that; to act it is not needed: `carry._replace(influence=())`.
    """

    hidden: PyTree  # [B, ...]  the flax cell's carry
    influence: PyTree  # [B, ...]  what the gradient method remembers; () for truncated BPTT


class Sparsity(NamedTuple):
    """Which weights a core has, and what a method made of it once."""

    mask: Params  # 0/1 leaves shaped like some of the parameters; a leaf that is missing is dense
    pattern: PyTree = ()  # what the method's `pattern` returned


@runtime_checkable
class GradientMethod(Protocol):
    """How the gradient of a recurrent core travels through time.

    Methods are frozen dataclasses: hashable, so that modules which hold one stay hashable.
    """

    def pattern(
        self, cell: nn.RNNCellBase, params: Params, mask: Params, inputs: Array, like: PyTree = ()
    ) -> PyTree:
        """Returns what the method reads off the structure of the cell, once: arrays, or ().

        Args:
          cell: the flax cell, unbound.
          params: its parameters, or their shapes and types (`jax.ShapeDtypeStruct`).
          mask: 0/1 numpy arrays shaped like some of `params`; a leaf that is missing is dense.
          inputs: one step's inputs `[B, M]`, or their shape and type.
          like: a pattern whose shapes the new one is to have; () for the smallest.

        Raises:
          ValueError: the new pattern does not fit into the shapes of `like`.
        """
        ...

    def init(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        sparsity: Sparsity,
        batch_size: int,
        key: Array,
    ) -> PyTree:
        """Returns the influence of streams that have seen nothing: leaves `[B, ...]`.

        Args:
          cell: the flax cell, unbound.
          params: its parameters, or their shapes and types (`jax.ShapeDtypeStruct`).
          sparsity: the mask and the method's own pattern.
          batch_size: the number of streams, `B`.
          key: consumed; methods that draw nothing ignore it.
        """
        ...

    def unroll(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        sparsity: Sparsity,
        state: CoreState,
        xs: Array,
        resets: Array | None,
    ) -> tuple[CoreState, Array]:
        """Runs the cell over a segment; `jax.grad` of a function of `ys` gives the method's (3).

        Args:
          cell: the flax cell, unbound.
          params: its parameters, already multiplied by the mask.
          sparsity: as in `init`.
          state: where the streams stand; nothing flows back into it.
          xs: inputs `[T, B, M]`.
          resets: bool `[T, B]`, true where a stream starts anew before the step; None for never.

        Returns:
          `(state, ys)`: the state after the segment, from which nothing flows back, and the
          outputs `[T, B, N]`.
        """
        ...

    def transfer(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        before: Sparsity,
        after: Sparsity,
        influence: PyTree,
    ) -> PyTree:
        """Carries the influence over to another mask: of weights that stay, as it was; else 0."""
        ...
