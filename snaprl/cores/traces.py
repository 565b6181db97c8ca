"""Influence of the weights on their own unit alone: as large as the parameters, per stream.

    E_t[g, i, j] = d_t[i] E_tm1[g, i, j] + sigma_t[g, i] read(h_tm1)[j]                        (10)

Inside a segment the parameters do not change: (10) is a linear recurrence with a diagonal, and its
gradient has an adjoint.

    lambda_t = dL_t/dh_t + d_{t+1} lambda_{t+1}                                              (11)
    dL/dW[g] = sum_t (lambda_t sigma_t[g]) read(h_tm1)^T + (d_1 lambda_1) E_0[g]             (12)
    E_T[g]   = sum_t (p_t sigma_t[g]) read(h_tm1)^T + (prod_t d_t) E_0[g]                    (13)

Which d_t is a choice: `unitwise.diagonal_block` is the diagonal of the true D_t (8), `own_block` is
what a unit keeps without its weights.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from snaprl.cores import recurrence, segment, streams
from snaprl.cores.masks import apply_mask
from snaprl.cores.resets import reset_after, where_reset
from snaprl.cores.types import Array, Params, Sparsity
from snaprl.cores.unitwise import (
    Block,
    Derivatives,
    UnitwiseCell,
    Vector,
    over_units,
    plain_total,
    vector_block,
    written_out,
)

# Steps up to which the sum in (13) is written out: it then fuses with what is kept of the old
# influence into one pass over memory, and a short segment costs little else. From some length on a
# matrix product is faster, though its result is written and read once more.
SHORT = 8

Diagonal = Callable[[UnitwiseCell, Params, Derivatives], Block]  # d_t, U x U


def own_block(cell: UnitwiseCell, params: Params, derivatives: Derivatives) -> Block:
    """`delta_t`: what a unit keeps of itself, whatever its weights are."""
    del cell, params
    return derivatives.delta


def traces(diagonal: Diagonal) -> segment.Memory:
    """Returns the memory, and its adjoint, that follow d_t = `diagonal`."""

    def adjoint(
        cell: UnitwiseCell,
        params: Params,
        sparsity: Sparsity,
        linearised: segment.Linearised,
        ct_ys: Array,
    ) -> tuple[Vector, Vector]:
        """(11): elementwise, no matrix product."""
        del sparsity
        d = diagonal(cell, params, linearised.derivatives)
        zero = jnp.zeros_like(linearised.h_tm1[0][0])
        arriving, end = (segment.arrivals(cell, ct_ys),), ((zero,) * cell.states,)
        resets = linearised.resets
        (lambda_0,), (lambdas,) = recurrence.backward(len(ct_ys), d, arriving, end, resets)
        return lambdas, lambda_0

    def advance(
        cell: UnitwiseCell,
        params: Params,
        sparsity: Sparsity,
        linearised: segment.Linearised,
        influence: tuple[Params, ...],
    ) -> tuple[Params, ...]:
        d = diagonal(cell, params, linearised.derivatives)
        return _advance(cell, params, sparsity, linearised, d, influence)

    return segment.Memory(_init, advance, _contract, segment.masked_trees, adjoint)


def _init(
    cell: UnitwiseCell, params: Params, sparsity: Sparsity, batch_size: int
) -> tuple[Params, ...]:
    del sparsity
    dtype = segment.influence_dtype(params)
    # not one tree U times: a buffer that is there twice cannot be donated
    return tuple(
        jax.tree.map(lambda p: jnp.zeros((batch_size, *p.shape), dtype), params)
        for _ in range(cell.states)
    )


def _advance(
    cell: UnitwiseCell,
    params: Params,
    sparsity: Sparsity,
    linearised: segment.Linearised,
    d: Block,
    influence: tuple[Params, ...],
) -> tuple[Params, ...]:
    """The influence after the segment (13), from the one before it."""
    resets = linearised.resets
    p, p_0 = _decays(cell, d, linearised)
    p_0 = jax.tree.map(streams.computed_once, p_0)
    gone, gone_0 = reset_after(resets)

    def layers(u: int, names: tuple[str, ...], source: Array, derivative: Block) -> dict[str, Any]:
        source = where_reset(gone, 0.0, source)
        # p_t sigma_t[g], G x [T, B, N]
        arriving = written_out(vector_block(p[u], derivative), p[u][0])
        arriving = where_reset(gone, 0.0, arriving)
        if len(source) <= SHORT:
            arriving = jax.tree.map(streams.computed_once, arriving)
        return {
            name: {
                leaf: row(u, leaf, source, target, tuple(tree[name][leaf] for tree in influence))
                for leaf in params[name]
            }
            for name, target in zip(names, arriving, strict=True)
        }

    def local(u: int) -> dict[str, Any]:
        arriving = written_out(vector_block(p[u], derivatives.local), p[u][0])
        arriving = where_reset(gone, 0.0, arriving)
        return {
            name: row(u, "bias", None, target, tuple(tree[name] for tree in influence))
            for name, target in zip(cell.local, arriving, strict=True)
        }

    def row(
        u: int, leaf: str, source: Array | None, target: Array, old: tuple[Array, ...]
    ) -> Array:
        kept = plain_total(_over_fan_in(x, e) * e for x, e in zip(p_0[u], old, strict=True))
        if leaf == "bias" or source is None:
            new = target.sum(0)
        elif len(target) <= SHORT:
            new = plain_total(
                s[:, :, None] * x[:, None] for s, x in zip(source, target, strict=True)
            )
        else:  # one product per gate: joining the gates costs more than it saves
            new = jnp.einsum("tbj,tbk->bjk", source, target)
        return new + where_reset(gone_0, 0.0, kept)

    derivatives, read = linearised.derivatives, linearised.h_tm1[cell.read]
    return tuple(
        apply_mask(
            layers(u, cell.inputs, linearised.xs, derivatives.alpha)
            | layers(u, cell.recurrent, read, derivatives.sigma)
            | local(u),
            sparsity.mask,
        )
        for u in range(cell.states)
    )


def _decays(
    cell: UnitwiseCell, d: Block, linearised: segment.Linearised
) -> tuple[tuple[Vector, ...], tuple[Vector, ...]]:
    """`p_t = d_T d_{T-1} ... d_{t+1}`, for every step, U x U x `[T, B, N]`, and p_0.

    As if nothing had been reset: what came before a reset is dropped by `reset_after`.
    """
    like = linearised.h_tm1[0][0]
    none, one = jnp.zeros_like(like), jnp.ones_like(like)
    units = range(cell.states)
    end = tuple(tuple(one if u == v else none for v in units) for u in units)
    nothing = ((None,) * cell.states,) * cell.states
    p_0, p = recurrence.backward(len(linearised.xs), d, nothing, end, None)
    return p, p_0


def _over_fan_in(unit: Array, like: Array) -> Array:
    """`[B, N]` broadcast over the weights that enter a unit: kernels are `[B, K, N]`."""
    return unit[:, None] if like.ndim > unit.ndim else unit


def _contract(
    cell: UnitwiseCell,
    params: Params,
    sparsity: Sparsity,
    influence: tuple[Params, ...],
    lambda_0: Vector,
    anew: Array | None,
) -> Params:
    """`lambda_0 . J_0`, summed over streams: the second term of (12)."""
    del cell, params, sparsity

    def stream(influence: tuple[Params, ...], lambda_0: Vector, anew: Array | None) -> Params:
        def leaf(*rows: Array) -> Array:
            terms = zip(lambda_0, rows, strict=True)
            met = plain_total(over_units(x, e) * e for x, e in terms)
            return where_reset(anew, 0.0, met)

        return jax.tree.map(leaf, *influence)

    lambda_0 = jax.tree.map(streams.computed_once, lambda_0)
    return streams.total_of_elements(stream, influence, lambda_0, anew)
