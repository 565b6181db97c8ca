"""Real-time recurrent learning: the exact influence of every weight on every unit (2).

Reference: Williams and Zipser, "A Learning Algorithm for Continually Running Fully Recurrent
Neural Networks", Neural Computation 1989. Memory is N times that of the parameters per stream.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn

from snaprl.cores import exact, general, pairs, reach, segment
from snaprl.cores.bptt import BPTT, full_adjoint
from snaprl.cores.cells import is_unitwise, unitwise
from snaprl.cores.method import Remembering
from snaprl.cores.types import Array, CoreState, Params, PyTree, Sparsity
from snaprl.cores.unitwise import UnitwiseCell


@dataclasses.dataclass(frozen=True)
class RTRL(Remembering):
    """Exact, whatever the split into segments: `J_t = I_t + D_t J_tm1` (2).

    Inside a segment the exact gradient is backpropagation's, so (3) is had as (16): the influence
    meets the adjoint once, at the segment's start. Where the recurrent weights are sparse, what is
    zero by structure is not stored.
    """

    order: ClassVar[None] = None  # n of (4): there is no end to what is followed

    def memory(self, cell: nn.RNNCellBase, sparsity: Sparsity) -> segment.Memory:
        """The influence of (2), as the tail of another method may carry it."""
        del cell
        return exact.DENSE if sparsity.pattern == () else exact.SPARSE

    def pattern(
        self, cell: nn.RNNCellBase, params: Params, mask: Params, inputs: Array, like: PyTree = ()
    ) -> PyTree:
        """Which units a weight ever reaches; () where the recurrent weights are dense."""
        if not is_unitwise(cell):
            return general.pattern(cell, params, mask, inputs, reach.EVERYTHING, like)
        view = unitwise(cell)
        if not sparse(view, mask):
            return ()
        return pairs.pattern(view, params, mask, reach.EVERYTHING, like)

    def adjoint(self, cell: nn.RNNCellBase, sparsity: Sparsity) -> segment.Adjoint:
        """Backpropagation's: inside the segment it is exact already."""
        del cell, sparsity
        return full_adjoint

    def init(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        sparsity: Sparsity,
        batch_size: int,
        key: Array,
    ) -> PyTree:
        """Zeros: U trees shaped like `params`, streams and then units (rows) in front.

        With sparse recurrent weights, or a cell that is not unit-wise, those of `SnAp`.
        """
        if not is_unitwise(cell):
            return general.init(params, sparsity, batch_size)
        return super().init(cell, params, sparsity, batch_size, key)

    def transfer(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        before: Sparsity,
        after: Sparsity,
        influence: PyTree,
    ) -> PyTree:
        """See `GradientMethod.transfer`."""
        if not is_unitwise(cell):
            return general.transfer(before, after, influence)
        return super().transfer(cell, params, before, after, influence)

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
        return BPTT(tail=self).unroll(cell, params, sparsity, state, xs, resets)


def sparse(cell: UnitwiseCell, mask: Params) -> bool:
    """Whether the recurrent weights of the cell are sparse, so that (4) leaves something out."""
    return any("kernel" in mask.get(name, {}) for name in cell.recurrent)
