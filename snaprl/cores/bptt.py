"""Backpropagation through time inside the segment, with or without a tail before it (16).

    dL/dtheta = BPTT within the segment + (total dL/dh_0, through the segment) J_0          (16)

Without a tail it is truncated backpropagation: whatever lies before the segment is not learnt.
With a tail, another method's influence stands in for it. The idea of joining the two is Williams
and Peng's, "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network
Trajectories", Neural Computation 1990, and Schmidhuber's, "A Fixed Size Storage O(n^3) Time
Complexity Learning Algorithm for Fully Recurrent Continually Running Networks", 1992.
"""

import dataclasses
from typing import Protocol

import flax.linen as nn

from snaprl.cores import segment
from snaprl.cores.types import Array, CoreState, Params, PyTree
from snaprl.cores.unitwise import (
    Entries,
    UnitwiseCell,
    Vector,
    join,
    joined_layer,
    total,
    vector_block,
)


class Tail(Protocol):
    """A method whose influence can stand for the past of another: `SnAp`, `RTRL`."""

    @property
    def memory(self) -> segment.Memory:
        """How the influence starts, advances, and meets the adjoint."""
        ...

    def init(
        self, cell: nn.RNNCellBase, params: Params, mask: Params, batch_size: int, key: Array
    ) -> PyTree:
        """See `GradientMethod.init`."""
        ...


NOTHING = segment.Memory(
    init=lambda cell, params, batch_size: (),
    advance=lambda cell, params, mask, linearised, influence: influence,
    contract=lambda influence, lambda_0, reset: None,
)


@dataclasses.dataclass(frozen=True)
class BPTT:
    """Backpropagation through the segment.

    Attributes:
      tail: the method whose influence stands for everything before the segment; None truncates.
        With `RTRL()` the gradient is exact.
    """

    tail: Tail | None = None

    def init(
        self, cell: nn.RNNCellBase, params: Params, mask: Params, batch_size: int, key: Array
    ) -> PyTree:
        """The tail's influence; () without one."""
        return self.tail.init(cell, params, mask, batch_size, key) if self.tail else ()

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
        memory = self.tail.memory if self.tail else NOTHING
        return segment.unroll(cell, full_adjoint, memory, params, mask, state, xs, resets)


def full_adjoint(
    cell: UnitwiseCell, params: Params, linearised: segment.Linearised, ct_ys: Array
) -> tuple[Vector, Vector]:
    """`lambda_t = dL_t/dh_t + D_{t+1}^T lambda_{t+1}`, with the whole of (8)."""
    kernel = joined_layer(params, cell.recurrent)[0].astype(ct_ys.dtype).T  # [G N, N]

    def transpose(lambda_: Vector, steps: tuple) -> Entries:
        sigma, delta = steps
        through_units = vector_block(lambda_, delta)
        through_weights = join(vector_block(lambda_, sigma), lambda_[0]) @ kernel
        return tuple(
            total((x, through_weights if u == cell.read else None))
            for u, x in enumerate(through_units)
        )

    steps = (linearised.derivatives.sigma, linearised.derivatives.delta)
    return segment.backward(transpose, steps, cell, linearised, ct_ys)
