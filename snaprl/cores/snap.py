"""SnAp-n: the influence that can arrive within n steps of the core.

Reference: Menick et al., "Practical Real Time Recurrent Learning with a Sparse Approximation",
ICLR 2021 (arXiv 2006.07232). The pattern S_n of (4) is structural, never read off values. At order
1 a weight into unit i keeps its influence on unit i alone (`traces`); from order 2 on, it keeps it
on the units which unit i reaches through the sparse recurrent weights (`pairs`).
"""

import dataclasses

import flax.linen as nn
import jax

from snaprl.cores import backprop, exact, general, pairs, segment
from snaprl.cores.bptt import NOTHING
from snaprl.cores.cells import is_unitwise, unitwise
from snaprl.cores.checks import check_whole
from snaprl.cores.method import Remembering
from snaprl.cores.rtrl import sparse
from snaprl.cores.traces import traces
from snaprl.cores.types import Array, CoreState, Params, PyTree, Sparsity
from snaprl.cores.unitwise import diagonal_block


@dataclasses.dataclass(frozen=True)
class SnAp(Remembering):
    """Sparse n-step approximation of real-time recurrent learning.

    Attributes:
      order: for how many steps of the core a weight's influence is followed. Order 0 has no memory,
        order 1 costs about what backpropagation costs, and what more of it costs depends on how
        sparse the recurrent weights are: where they are dense, order 2 is `RTRL()`.

      entries: whether the pattern is the paper's to the letter, entry by entry, also on cells whose
        units have several state variables, which are in or out together otherwise. It is made for
        comparisons, and takes the slow path of cells that are not unit-wise.

    Raises:
      ValueError: the order is below 0, or `entries` neither True nor False.
    """

    order: int = 1
    entries: bool = False

    def __post_init__(self):
        check_whole(self, "order", least=0)
        if not isinstance(self.entries, bool):
            raise ValueError(f"SnAp(entries={self.entries!r}): entries is True or False")

    def memory(self, cell: nn.RNNCellBase, sparsity: Sparsity) -> segment.Memory:
        """The influence of (5), as the tail of another method may carry it."""
        if sparsity.pattern != ():
            return pairs.MEMORY
        # with dense recurrent weights every unit reaches every other in one step of the core; with
        # none, no unit ever reaches another
        if self.order >= 2 and unitwise(cell).recurrent:
            return exact.DENSE
        return TRACES if self.order else NOTHING

    def adjoint(self, cell: nn.RNNCellBase, sparsity: Sparsity) -> segment.Adjoint:
        """(11) or (15): as much of D_t as the influence follows."""
        return self.memory(cell, sparsity).adjoint or segment.immediate_adjoint

    def pattern(
        self, cell: nn.RNNCellBase, params: Params, mask: Params, inputs: Array, like: PyTree = ()
    ) -> PyTree:
        """Which units a weight reaches (4); () where its own unit is all or nothing is left out."""
        if self._is_general(cell):
            if not self.order:
                return ()
            return general.pattern(cell, params, mask, inputs, self.order, like)
        view = unitwise(cell)
        if self.order < 2 or not sparse(view, mask):
            return ()
        return pairs.pattern(view, params, mask, self.order, like)

    def init(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        sparsity: Sparsity,
        batch_size: int,
        key: Array,
    ) -> PyTree:
        """Zeros: at order 1 U trees shaped like `params`, each leaf with the streams in front.

        From order 2 on, with sparse recurrent weights, U arrays `[B, pairs, weights of a unit]`; on
        cells that are not unit-wise one array `[B, entries]`.
        """
        if self._is_general(cell):
            return general.init(params, sparsity, batch_size) if self.order else ()
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
        if self._is_general(cell):
            return general.transfer(before, after, influence) if self.order else ()
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
        if not self._is_general(cell):
            return super().unroll(cell, params, sparsity, state, xs, resets)
        if self.order:
            return general.follow(cell, params, sparsity, state, xs, resets)
        hidden = jax.lax.stop_gradient(state.hidden)
        hidden, ys = backprop.unroll(cell, params, hidden, xs, resets, through_time=False)
        return jax.lax.stop_gradient(CoreState(hidden, ())), ys

    def _is_general(self, cell: nn.RNNCellBase) -> bool:
        return self.entries or not is_unitwise(cell)


TRACES = traces(diagonal_block)
