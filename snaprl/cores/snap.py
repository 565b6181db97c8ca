"""SnAp-n: the influence that can arrive within n steps of the core.

Reference: Menick et al., "Practical Real Time Recurrent Learning with a Sparse Approximation",
ICLR 2021 (arXiv 2006.07232). At order 1 a weight into unit i keeps its influence on unit i alone,
and the influence has the shape of the parameters (10). Its segment form (11)-(13) needs no
influence per step: what the segment adds at its end is one decayed outer product.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from snaprl.cores import segment
from snaprl.cores.cells import unitwise
from snaprl.cores.masks import apply_mask
from snaprl.cores.types import Array, CoreState, Params, PyTree
from snaprl.cores.unitwise import (
    Block,
    UnitwiseCell,
    Vector,
    block_block,
    diagonal_block,
    plain_total,
    vector_block,
    written_out,
)


@dataclasses.dataclass(frozen=True)
class SnAp:
    """Sparse n-step approximation of real-time recurrent learning.

    Attributes:
      order: for how many steps of the core a weight's influence is followed. Order 1 costs what
        backpropagation costs.

    Raises:
      ValueError: the order is not one that is built.
    """

    order: int = 1

    def __post_init__(self):
        if self.order != 1:
            raise ValueError(
                f"SnAp(order={self.order}) is not built; use SnAp(order=1), or RTRL() for the "
                "exact influence"
            )

    @property
    def memory(self) -> segment.Memory:
        """The influence of (10), as the tail of another method may carry it."""
        return TRACES

    def init(
        self, cell: nn.RNNCellBase, params: Params, mask: Params, batch_size: int, key: Array
    ) -> PyTree:
        """Zeros: U trees shaped like `params`, each leaf with the streams in front."""
        del mask, key
        return _init(unitwise(cell), params, batch_size)

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
        return segment.unroll(cell, diagonal_adjoint, TRACES, params, mask, state, xs, resets)


def diagonal_adjoint(
    cell: UnitwiseCell, params: Params, linearised: segment.Linearised, ct_ys: Array
) -> tuple[Vector, Vector]:
    """`lambda_t = dL_t/dh_t + d_{t+1} lambda_{t+1}` (11): elementwise, no matrix product."""
    d = diagonal_block(cell, params, linearised.derivatives)
    return segment.backward(vector_block, d, cell, linearised, ct_ys)


def _init(cell: UnitwiseCell, params: Params, batch_size: int) -> tuple[Params, ...]:
    dtype = segment.influence_dtype(params)
    zeros = jax.tree.map(lambda p: jnp.zeros((batch_size, *p.shape), dtype), params)
    return (zeros,) * cell.states


def _advance(
    cell: UnitwiseCell,
    params: Params,
    mask: Params,
    linearised: segment.Linearised,
    influence: tuple[Params, ...],
) -> tuple[Params, ...]:
    """The influence after the segment (13), from the one before it."""
    resets = linearised.resets
    d = diagonal_block(cell, params, linearised.derivatives)
    p, p_0 = _decays(cell, d, linearised)
    gone, gone_0 = _gone(resets)

    def layers(u: int, names: tuple[str, ...], source: Array, derivative: Block) -> dict[str, Any]:
        source = segment.where_reset(gone, 0.0, source)
        # p_t sigma_t[g], G x [T, B, N]
        arriving = written_out(vector_block(p[u], derivative), p[u][0])
        arriving = segment.where_reset(gone, 0.0, arriving)
        return {
            name: {leaf: row(u, name, leaf, source, target) for leaf in params[name]}
            for name, target in zip(names, arriving, strict=True)
        }

    def row(u: int, name: str, leaf: str, source: Array, target: Array) -> Array:
        old = (tree[name][leaf] for tree in influence)
        kept = plain_total(_over_fan_in(x, e) * e for x, e in zip(p_0[u], old, strict=True))
        if leaf == "bias":
            new = target.sum(0)
        elif len(target) == 1:  # the step form (10): a product over nothing is a loop that fuses
            new = source[0, :, :, None] * target[0, :, None, :]
        else:  # one product per gate: joining the gates costs more than it saves
            new = jnp.einsum("tbj,tbk->bjk", source, target)
        return new + segment.where_reset(gone_0, 0.0, kept)

    derivatives, read = linearised.derivatives, linearised.h_tm1[cell.read]
    return tuple(
        apply_mask(
            layers(u, cell.inputs, linearised.xs, derivatives.alpha)
            | layers(u, cell.recurrent, read, derivatives.sigma),
            mask,
        )
        for u in range(cell.states)
    )


def _decays(
    cell: UnitwiseCell, d: Block, linearised: segment.Linearised
) -> tuple[tuple[Vector, ...], tuple[Vector, ...]]:
    """`p_t = d_T d_{T-1} ... d_{t+1}`, for every step, U x U x `[T, B, N]`, and p_0.

    As if nothing had been reset: what came before a reset is dropped by `_gone`.
    """
    like = linearised.h_tm1[0][0]
    none, one = jnp.zeros_like(like), jnp.ones_like(like)
    units = range(cell.states)
    end = tuple(tuple(one if u == v else none for v in units) for u in units)

    def step(p_t: tuple[Vector, ...], d_t: Block) -> tuple[PyTree, PyTree]:
        return tuple(written_out(row, like) for row in block_block(p_t, d_t)), p_t

    p_0, p = segment.scan(step, end, d, reverse=True)
    return p, p_0


def _gone(resets: Array | None) -> tuple[Array | None, Array | None]:
    """For each step `[T, B]`, and for the segment's start `[B]`: did a reset come after it?"""
    if resets is None:
        return None, None
    since = jax.lax.cummax(resets.astype(jnp.int32), axis=0, reverse=True).astype(bool)
    return jnp.concatenate([since[1:], jnp.zeros_like(since[:1])]), since[0]


def _over_fan_in(unit: Array, like: Array) -> Array:
    """`[B, N]` broadcast over the weights that enter a unit: kernels are `[B, K, N]`."""
    return unit[:, None] if like.ndim > unit.ndim else unit


def _contract(influence: tuple[Params, ...], lambda_0: Vector, reset: Array | None) -> Params:
    """`lambda_0 . J_0`, summed over streams: the second term of (12)."""

    def leaf(*rows: Array) -> Array:
        rows = segment.where_reset(reset, 0.0, rows)
        terms = zip(lambda_0, rows, strict=True)
        return plain_total((_over_fan_in(x, e) * e).sum(0) for x, e in terms)

    return jax.tree.map(leaf, *influence)


TRACES = segment.Memory(_init, _advance, _contract, diagonal_adjoint)
