"""Backpropagation through time inside the segment, with or without a tail before it (16).

    dL/dtheta = BPTT within the segment + (total dL/dh_0, through the segment) J_0          (16)

Without a tail it is truncated backpropagation: whatever lies before the segment is not learnt.
With a tail, another method's influence stands in for it. The idea of joining the two is Williams
and Peng's, "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network
Trajectories", Neural Computation 1990, and Schmidhuber's, "A Fixed Size Storage O(n^3) Time
Complexity Learning Algorithm for Fully Recurrent Continually Running Networks", 1992.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import flax.linen as nn
import jax

from snaprl.cores import backprop, general, segment
from snaprl.cores.cells import is_unitwise, unitwise
from snaprl.cores.checks import check_method, check_whole
from snaprl.cores.resets import at_start, remembered
from snaprl.cores.types import Array, CoreState, Params, PyTree, Sparsity
from snaprl.cores.unitwise import (
    Block,
    Entries,
    UnitwiseCell,
    Vector,
    join,
    joined_layer,
    total,
    vector_block,
)


class Tail(Protocol):
    """A method whose influence can stand for the past of another: any but `BPTT` and `Frozen`."""

    def memory(self, cell: nn.RNNCellBase, sparsity: Sparsity) -> segment.Memory:
        """How the influence starts, advances, and meets the adjoint."""
        ...

    def pattern(
        self, cell: nn.RNNCellBase, params: Params, mask: Params, inputs: Array, like: PyTree = ()
    ) -> PyTree:
        """See `GradientMethod.pattern`."""
        ...

    def init(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        sparsity: Sparsity,
        batch_size: int,
        key: Array,
    ) -> PyTree:
        """See `GradientMethod.init`."""
        ...

    def transfer(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        before: Sparsity,
        after: Sparsity,
        influence: PyTree,
    ) -> PyTree:
        """See `GradientMethod.transfer`."""
        ...


NOTHING = segment.Memory(
    init=lambda cell, params, sparsity, batch_size: (),
    advance=lambda cell, params, sparsity, linearised, influence: influence,
    contract=lambda cell, params, sparsity, influence, lambda_0, anew: None,
    transfer=lambda cell, params, before, after, influence: influence,
)


@dataclasses.dataclass(frozen=True)
class BPTT:
    """Backpropagation through the segment.

    Attributes:
      tail: the method whose influence stands for everything before the segment; None truncates.
        With `RTRL()` the gradient is exact.
      pieces: memory for time. The segment is cut into so many pieces; the backward pass keeps the
        state between them and computes the rest again.

    Raises:
      TypeError: the tail is no gradient method.
      ValueError: there is not even one piece.
    """

    tail: Tail | None = None
    pieces: int = 1

    def __post_init__(self):
        if self.tail is not None:
            check_method("tail", self.tail)
            if not hasattr(self.tail, "memory"):
                raise TypeError(
                    f"tail is {self.tail!r}, which carries nothing from segment to segment; a tail "
                    "is a method with an influence, such as SnAp(order=1)"
                )
        check_whole(self, "pieces", least=1)

    def pattern(
        self, cell: nn.RNNCellBase, params: Params, mask: Params, inputs: Array, like: PyTree = ()
    ) -> PyTree:
        """The tail's; () without one."""
        return self.tail.pattern(cell, params, mask, inputs, like) if self.tail else ()

    def init(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        sparsity: Sparsity,
        batch_size: int,
        key: Array,
    ) -> PyTree:
        """The tail's influence; () without one."""
        return self.tail.init(cell, params, sparsity, batch_size, key) if self.tail else ()

    def transfer(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        before: Sparsity,
        after: Sparsity,
        influence: PyTree,
    ) -> PyTree:
        """See `GradientMethod.transfer`."""
        if self.tail is None:
            return influence
        return self.tail.transfer(cell, params, before, after, influence)

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
        if self.pieces == 1 and not _is_general(self.tail, cell) and unitwise(cell).exact:
            memory = self.tail.memory(cell, sparsity) if self.tail else NOTHING
            rule = segment.by_adjoint(full_adjoint, memory)
            return segment.unroll(cell, rule, params, sparsity, state, xs, resets)
        hidden, influence = jax.lax.stop_gradient(state)
        if self.tail is not None and jax.tree.leaves(influence):  # `SnAp(0)` carries nothing
            past, contract, influence = _past(self.tail, cell, params, sparsity, state, xs, resets)
            hidden = backprop.attach(params, hidden, past, contract)
        hidden, ys = backprop.unroll(cell, params, hidden, xs, resets, pieces=self.pieces)
        return jax.lax.stop_gradient(CoreState(hidden, influence)), ys


def _is_general(tail: Tail | None, cell: nn.RNNCellBase) -> bool:
    """Whether the influence is that of numbers of the state, and not of units."""
    return not is_unitwise(cell) or getattr(tail, "entries", False)


def _past(
    tail: Tail,
    cell: nn.RNNCellBase,
    params: Params,
    sparsity: Sparsity,
    state: CoreState,
    xs: Array,
    resets: Array | None,
) -> tuple[PyTree, backprop.Contract, PyTree]:
    """What is known of the past, how it meets dL/dh_0, and the influence after the segment."""
    fixed, state, xs = jax.lax.stop_gradient((params, state, xs))
    past = fixed, sparsity, state.influence, at_start(resets)
    if _is_general(tail, cell):

        def of_numbers(past: PyTree, ct: PyTree) -> Params:
            fixed, sparsity, before, anew = past
            before = remembered(anew, before)
            lambda_ = general.as_state(ct).astype(before.dtype)
            return general.contract(fixed, sparsity, before, lambda_)

        after = general.influence_after(cell, fixed, sparsity, state, xs, resets)
        return past, of_numbers, after
    view, memory = unitwise(cell), tail.memory(cell, sparsity)

    def contract(past: PyTree, ct: PyTree) -> Params:
        fixed, sparsity, before, anew = past
        dtype = segment.influence_dtype(fixed)
        lambda_ = tuple(x.astype(dtype) for x in segment.pack(ct))
        lambda_ = memory.lift(sparsity, lambda_)
        return memory.contract(view, fixed, sparsity, before, lambda_, anew)

    start = segment.initial_state(cell, xs[0])
    linearised = segment.linearise(view, fixed, start, segment.pack(state.hidden), xs, resets)
    after = memory.advance(view, fixed, sparsity, linearised, state.influence)
    return past, contract, after


def full_adjoint(
    cell: UnitwiseCell,
    params: Params,
    sparsity: Sparsity,
    linearised: segment.Linearised,
    ct_ys: Array,
) -> tuple[Vector, Vector]:
    """`lambda_t = dL_t/dh_t + D_{t+1}^T lambda_{t+1}`, with the whole of (8)."""
    del sparsity
    transpose = dynamics_transposed(cell, params, ct_ys)
    steps = (linearised.derivatives.sigma, linearised.derivatives.delta)
    return segment.backward(transpose, steps, cell, linearised, ct_ys)


def dynamics_transposed(
    cell: UnitwiseCell, params: Params, like: Array
) -> Callable[[Vector, tuple[Block, Block]], Entries]:
    """Returns `(lambda, (sigma, delta)) -> D^T lambda`, of (8): U x `[..., N]`."""
    kernel = None  # of the recurrent layers, transposed: [G N, N]
    if cell.recurrent:
        kernel = joined_layer(params, cell.recurrent)[0].astype(like.dtype).T

    def transpose(lambda_: Vector, step: tuple[Block, Block]) -> Entries:
        sigma, delta = step
        through_units = vector_block(lambda_, delta)
        if kernel is None:
            return through_units
        through_weights = join(vector_block(lambda_, sigma), lambda_[0]) @ kernel
        return tuple(
            total((x, through_weights if u == cell.read else None))
            for u, x in enumerate(through_units)
        )

    return transpose
