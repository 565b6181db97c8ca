"""A core that does not learn: the neutral element among the methods."""

import dataclasses

import flax.linen as nn
import jax

from snaprl.cores.bptt import BPTT
from snaprl.cores.types import Array, CoreState, Params, PyTree, Sparsity


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Leaves the core's parameters as they are; `xs` receive what backpropagation gives them."""

    def pattern(
        self, cell: nn.RNNCellBase, params: Params, mask: Params, inputs: Array, like: PyTree = ()
    ) -> PyTree:
        """Nothing is read."""
        return ()

    def init(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        sparsity: Sparsity,
        batch_size: int,
        key: Array,
    ) -> PyTree:
        """Nothing is remembered."""
        return ()

    def transfer(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        before: Sparsity,
        after: Sparsity,
        influence: PyTree,
    ) -> PyTree:
        """See `GradientMethod.transfer`."""
        return influence

    def unroll(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        sparsity: Sparsity,
        state: CoreState,
        xs: Array,
        resets: Array | None,
    ) -> tuple[CoreState, Array]:
        """See `GradientMethod.unroll`."""
        return BPTT().unroll(cell, jax.lax.stop_gradient(params), sparsity, state, xs, resets)
