"""A core that does not learn: the neutral element among the methods."""

import dataclasses

import flax.linen as nn
import jax

from snaprl.cores.bptt import BPTT
from snaprl.cores.types import Array, CoreState, Params, PyTree


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Leaves the core's parameters as they are; `xs` receive what backpropagation gives them."""

    def init(
        self, cell: nn.RNNCellBase, params: Params, mask: Params, batch_size: int, key: Array
    ) -> PyTree:
        """Nothing is remembered."""
        return ()

    def unroll(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        mask: Params,
        state: CoreState,
        xs: Array,
        resets: Array | None,
    ) -> tuple[CoreState, Array]:
        """See `GradientMethod.unroll`."""
        return BPTT().unroll(cell, jax.lax.stop_gradient(params), mask, state, xs, resets)
