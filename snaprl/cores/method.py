"""What most gradient methods have in common: a rule on unit-wise cells."""

import flax.linen as nn

from snaprl.cores import segment
from snaprl.cores.cells import unitwise
from snaprl.cores.types import Array, CoreState, Params, PyTree, Sparsity


class Remembering:
    """A method that is an adjoint inside the segment, and a memory of what came before it.

    It names the two; everything else that `GradientMethod` asks for follows from them.
    """

    def memory(self, cell: nn.RNNCellBase, sparsity: Sparsity) -> segment.Memory:
        """How the influence starts, advances, and meets the adjoint."""
        raise NotImplementedError

    def adjoint(self, cell: nn.RNNCellBase, sparsity: Sparsity) -> segment.Adjoint:
        """How the gradient moves backward inside the segment."""
        raise NotImplementedError

    def pattern(
        self, cell: nn.RNNCellBase, params: Params, mask: Params, inputs: Array, like: PyTree = ()
    ) -> PyTree:
        """Nothing: where a method has more to read, it says so in its own."""
        return ()

    def init(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        sparsity: Sparsity,
        batch_size: int,
        key: Array,
    ) -> PyTree:
        """Zeros, in the memory's own shapes."""
        del key
        return self.memory(cell, sparsity).init(unitwise(cell), params, sparsity, batch_size)

    def transfer(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        before: Sparsity,
        after: Sparsity,
        influence: PyTree,
    ) -> PyTree:
        """See `GradientMethod.transfer`."""
        memory = self.memory(cell, before)
        return memory.transfer(unitwise(cell), params, before, after, influence)

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
        rule = segment.by_adjoint(self.adjoint(cell, sparsity), self.memory(cell, sparsity))
        return segment.unroll(cell, rule, params, sparsity, state, xs, resets)
