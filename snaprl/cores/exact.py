"""The exact influence over a segment: (15b), where every weight may reach every unit.

    J_T = sum_t P_t I_t + P_0 J_0,    P_T = 1, P_{t-1} = P_t D_t                              (15b)

P is one matrix for all weights: N^3 a step, and a product of the influence's size once a segment,
where (2) asks for one at every step, N times that of all weights.
"""

import jax
import jax.numpy as jnp

from snaprl.cores import loops, pairs, segment, streams
from snaprl.cores.bptt import dynamics_transposed, full_adjoint
from snaprl.cores.masks import apply_mask
from snaprl.cores.resets import remembered, reset_after, where_reset
from snaprl.cores.segment import Linearised
from snaprl.cores.types import Array, Params, Sparsity
from snaprl.cores.unitwise import (
    Block,
    UnitwiseCell,
    Vector,
    plain_total,
    vector_block,
    written_out,
)
from snaprl.cores.walk import layers_by_source

AT_ONCE = 128  # steps: P is N x N for each, and in long segments would outgrow the influence


def _passed_on(
    cell: UnitwiseCell, params: Params, linearised: Linearised
) -> tuple[tuple[Vector, ...], tuple[Vector, ...]]:
    """P of (15b): how each unit, at the end, hears of all units after step t.

    As if nothing had been reset: what came before a reset is dropped by `reset_after`.

    Returns:
      P, U x U x `[T, B, N, N]`, and P_0, U x U x `[N, B, N]`, rows first.
    """
    derivatives, now = linearised.derivatives, linearised.h_tm1[0][0]
    transpose = dynamics_transposed(cell, params, now)
    one = jnp.broadcast_to(jnp.eye(cell.features, dtype=now.dtype), (*now.shape, cell.features))
    none, states = jnp.zeros_like(one), range(cell.states)
    end = tuple(tuple(one if u == v else none for v in states) for u in states)

    def step(P_t: tuple[Vector, ...], D_t: tuple[Block, Block]) -> tuple[tuple, tuple]:
        D_t = jax.tree.map(lambda x: x[:, None], D_t)  # the same for all rows
        return tuple(written_out(transpose(row, D_t), none) for row in P_t), P_t

    P_0, P = loops.scan(step, end, (derivatives.sigma, derivatives.delta), reverse=True)
    return P, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), P_0)


# ---- dense recurrent weights: trees shaped like the parameters ---------------------------------


def _init(
    cell: UnitwiseCell, params: Params, sparsity: Sparsity, batch_size: int
) -> tuple[Params, ...]:
    del sparsity
    dtype = segment.influence_dtype(params)
    shape = (batch_size, cell.features)
    # not one tree U times: a buffer that is there twice cannot be donated
    return tuple(
        jax.tree.map(lambda p: jnp.zeros((*shape, *p.shape), dtype), params)
        for _ in range(cell.states)
    )


def _advance(
    cell: UnitwiseCell,
    params: Params,
    sparsity: Sparsity,
    linearised: Linearised,
    influence: tuple[Params, ...],
) -> tuple[Params, ...]:
    """(15b), where a weight reaches every unit: J is U (rows) x `[B, N, ...parameter]`."""

    def piece(J_0: tuple[Params, ...], linearised: Linearised) -> tuple[Params, ...]:
        P, P_0 = _passed_on(cell, params, linearised)
        # side by side: by turns each stream's own would be copied out first
        J_T = jax.vmap(stream, (0, 1))(J_0, (linearised, P, P_0))
        return tuple(apply_mask(J, sparsity.mask) for J in J_T)

    def stream(J_0: tuple[Params, ...], inputs: tuple) -> tuple[Params, ...]:
        linearised, P, P_0 = inputs
        gone, gone_0 = reset_after(linearised.resets)
        linearised = linearised._replace(resets=None)
        linearised, P = where_reset(gone, 0.0, (linearised, P))
        P_0, J_0 = where_reset(gone_0, 0.0, (P_0, J_0))

        def kept(P_0: Vector) -> Params:
            def leaf(*rows: Array) -> Array:
                terms = zip(P_0, rows, strict=True)
                return plain_total(jnp.einsum("rn,n...->r...", p, J) for p, J in terms)

            return jax.tree.map(leaf, *J_0)

        return tuple(
            jax.tree.map(jnp.add, _since(cell, params, linearised, row), kept(row_0))
            for row, row_0 in zip(P, P_0, strict=True)
        )

    return loops.by_pieces(piece, influence, linearised, AT_ONCE)


def _since(cell: UnitwiseCell, params: Params, linearised: Linearised, P: Vector) -> Params:
    """The sum over a stream's steps in (15b): `[N, ...parameter]`; P is U x `[T, N, N]`."""
    tree: Params = {}
    for layers in layers_by_source(cell):
        source = layers.source(linearised)
        derivatives = jax.tree.map(lambda x: x[:, None], layers.derivatives(linearised))
        arriving = written_out(vector_block(P, derivatives), P[0])  # G x [T, N, N]
        for name, target in zip(layers.names, arriving, strict=True):
            if source is None:
                tree[name] = target.sum(0)
                continue
            tree[name] = {"kernel": jnp.einsum("trn,tk->rkn", target, source)}
            if "bias" in params[name]:
                tree[name]["bias"] = target.sum(0)
    return tree


def _contract(
    cell: UnitwiseCell,
    params: Params,
    sparsity: Sparsity,
    influence: tuple[Params, ...],
    lambda_0: Vector,
    anew: Array | None,
) -> Params:
    """`lambda_0 . J_0`, summed over streams and units: the second term of (16)."""
    del cell, params, sparsity
    influence = remembered(anew, influence)

    def leaf(*rows: Array) -> Array:
        terms = zip(lambda_0, rows, strict=True)
        return plain_total(jnp.einsum("bl,bl...->...", x, J) for x, J in terms)

    return jax.tree.map(leaf, *influence)


DENSE = segment.Memory(_init, _advance, _contract, segment.masked_trees, full_adjoint)


# ---- sparse ones: rows of pairs, as those of SnAp-n --------------------------------------------


def _advance_pairs(
    cell: UnitwiseCell,
    params: Params,
    sparsity: Sparsity,
    linearised: Linearised,
    influence: Vector,
) -> Vector:
    """The influence U x `[B, E, L]` after the segment, from the one before it."""
    pattern, units = sparsity.pattern, cell.features
    # few steps, or weights that reach few units, as in blocks: lists of those are shorter than P
    if len(linearised.xs) <= pairs.LOOP_UP_TO or 2 * len(pattern.columns) < units:
        return pairs.advance(cell, params, sparsity, linearised, influence)
    pair = jnp.full((units, units), len(pattern.row))  # of a row and a unit; past the end: none
    pair = pair.at[pattern.row, pattern.unit].set(jnp.arange(len(pattern.row)), mode="drop")
    places = pairs.Places(pair, pattern.row)

    def piece(J_0: Vector, linearised: Linearised) -> Vector:
        return streams.update(stream, J_0, (linearised, *_passed_on(cell, params, linearised)))

    def stream(J_0: Vector, inputs: tuple) -> Vector:
        linearised, P, P_0 = inputs
        own = jax.tree.map(lambda p: jnp.swapaxes(p, 1, 2), P)  # of every unit: [T, N, rows]
        return pairs.by_segment(
            cell, params, sparsity, linearised, P_0, own, J_0, "rn,nil->irl", places
        )

    return loops.by_pieces(piece, influence, linearised, AT_ONCE)


SPARSE = pairs.MEMORY._replace(advance=_advance_pairs)
