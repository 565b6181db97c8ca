"""SnAp-n on unit-wise cells whose pattern is sparse: (14) step by step, (15) and (15b) by segment.

The influence of one state variable is `[B, E, L]`: for each pair (r, q) of `reach.Pattern`, the row
of the L weights that enter unit q. Nothing that is zero by structure is stored.

    J^(i,j)_t = D_t[S_i, S_i] J^(i,j)_tm1 + e_i sigma_t[g, i] read(h_tm1)[j]                    (14)
    lambda^i_t = (dL_t/dh_t)[S_i] + D_{t+1}[S_i, S_i]^T lambda^i_{t+1}                          (15)
    J^(i,j)_T = sum_t P^i_t e_i sigma_t[g, i] read(h_tm1)[j] + P^i_0 J^(i,j)_0                 (15b)

A pair hears only of pairs with the same q, so everything is sums over lists of rows. The rows of
the influence are long, and (14) works on one stream after the other; those of lambda and P are
short, and (15) and (15b) take all streams at once, as the last axis, so that what is added is long.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snaprl.cores import forecast, lists, loops, reach, rows, segment, streams
from snaprl.cores.reach import Pattern
from snaprl.cores.resets import reset_after, where_reset
from snaprl.cores.segment import Linearised
from snaprl.cores.types import Array, Params, PyTree, Sparsity
from snaprl.cores.unitwise import (
    Block,
    UnitwiseCell,
    Vector,
    dense,
    diagonal_block,
    plain_total,
    total,
)

LOOP_UP_TO = 2  # steps; from more of them on, P costs less than the influence step by step


def pattern(
    cell: UnitwiseCell, params: Params, mask: Params, order: int | None, like: Pattern | tuple = ()
) -> Pattern:
    """See `reach.pattern`; `like` has the shapes to use."""
    forecast.check_pairs(cell, params, mask, order)
    room = reach.room_of(like) if isinstance(like, Pattern) else None
    return reach.pattern(cell, params, mask, order, room)


def init(cell: UnitwiseCell, params: Params, sparsity: Sparsity, batch_size: int) -> Vector:
    """Zeros: U x `[B, E, L]`."""
    shape = (batch_size, len(sparsity.pattern.row), rows.length(cell, params, sparsity))
    return tuple(jnp.zeros(shape, segment.influence_dtype(params)) for _ in range(cell.states))


def advance(
    cell: UnitwiseCell,
    params: Params,
    sparsity: Sparsity,
    linearised: Linearised,
    influence: Vector,
) -> Vector:
    """The influence after the segment, from the one before it."""
    d = diagonal_block(cell, params, linearised.derivatives)
    pattern, inputs = sparsity.pattern, (linearised, d)
    places = Places(pattern.columns, pattern.position)
    if len(linearised.xs) > LOOP_UP_TO:

        def block(J_0: Vector, inputs: tuple) -> Vector:
            linearised, d = inputs
            passed_on = _passed_on(cell, params, pattern, linearised, d)

            def stream(J_0: Vector, inputs: tuple) -> Vector:
                linearised, P_0, own = inputs
                P_0 = jax.tree.map(lambda P: lists.columns(P, pattern), P_0)
                return by_segment(
                    cell, params, sparsity, linearised, P_0, own, J_0, "ans,anl->nsl", places
                )

            return streams.update(stream, J_0, (linearised, *passed_on))

        return streams.update_blocks(block, influence, inputs)
    weights = lists.weights(cell, params, pattern, told=False)

    def stream(J_0: Vector, inputs: tuple) -> Vector:
        def step(J_tm1: Vector, inputs_t: tuple) -> tuple[Vector, None]:
            linearised_t, d_t = inputs_t
            return _by_step(cell, params, sparsity, weights, linearised_t, d_t, J_tm1), None

        return loops.scan(step, J_0, inputs)[0]

    return streams.update(stream, influence, inputs)


def contract(
    cell: UnitwiseCell,
    params: Params,
    sparsity: Sparsity,
    influence: Vector,
    lambda_0: Vector,
    anew: Array | None,
) -> Params:
    """`sum lambda_0 . J_0` over streams and pairs: lambda is U x `[B, E]`."""
    columns, last = sparsity.pattern.columns, len(sparsity.pattern.row) - 1

    def stream(look_up: Callable[..., Array], lambda_: Vector, anew: Array | None) -> Array:
        # summed over the pairs of a unit at once: a sum over streams of all pairs would be as large
        # as the influence of one, and be read and written for each
        met = plain_total(
            lists.column(x, pairs)[:, None] * look_up(k, jnp.minimum(pairs, last))
            for pairs in columns
            for k, x in enumerate(lambda_)
        )
        return where_reset(anew, 0.0, met)

    by_unit = streams.total_of_rows(stream, influence, lambda_0, anew)  # [N, L]
    return rows.to_tree(cell, params, sparsity, by_unit)


def lift(sparsity: Sparsity, lambda_: Vector) -> Vector:
    """What a pair (r, q) gets of what reaches unit r: `[B, N]` to `[B, E]`."""
    return tuple(x[:, sparsity.pattern.row] for x in lambda_)


def adjoint(
    cell: UnitwiseCell,
    params: Params,
    sparsity: Sparsity,
    linearised: Linearised,
    ct_ys: Array,
) -> tuple[Vector, Vector]:
    """Runs (15) backward: lambda^i_t[i], U x `[T, B, N]`, and lambda_0 on every pair."""
    pattern = sparsity.pattern
    d = diagonal_block(cell, params, linearised.derivatives)
    weights = lists.weights(cell, params, pattern, told=True)

    def step(lambda_: Vector, inputs_t: tuple) -> tuple[Vector, Vector]:
        now, ct_t = inputs_t
        lambda_ = tuple(
            x if ct is None else x + ct[pattern.row][:, None]
            for x, ct in zip(lambda_, ct_t, strict=True)
        )
        lambda_tm1 = _transposed(cell, pattern, weights, now, lambda_)
        return lambda_tm1, tuple(x[: cell.features, 0] for x in lambda_)

    zero = jnp.zeros((len(pattern.row), 1, ct_ys.shape[1]), ct_ys.dtype)
    inputs = _dynamics_of(linearised, d), _streams_last(segment.arrivals(cell, ct_ys))
    lambda_0, own = loops.scan(step, (zero,) * cell.states, inputs, reverse=True)
    return (
        tuple(jnp.swapaxes(x, 1, 2) for x in own),
        tuple(x[:, 0].T for x in lambda_0),
    )


def transfer(
    cell: UnitwiseCell, params: Params, before: Sparsity, after: Sparsity, influence: Vector
) -> Vector:
    """See `GradientMethod.transfer`."""
    pair = reach.pair_table(before.pattern)  # [q, r]
    old = pair[after.pattern.unit, after.pattern.row]
    where = rows.moved(cell, params, before, after)[np.minimum(after.pattern.unit, len(pair) - 2)]

    def of(J: Array) -> Array:
        found = J.at[:, old].get(mode="fill", fill_value=0)
        found = jnp.pad(found, ((0, 0), (0, 0), (0, 1)))  # past the end: weights that are new
        return jnp.take_along_axis(found, where[None], axis=-1)

    return tuple(of(J) for J in influence)


MEMORY = segment.Memory(init, advance, contract, transfer, adjoint, lift)


# ---- one stream: its arrays lack the axis B ----------------------------------------------------


def _by_step(
    cell: UnitwiseCell,
    params: Params,
    sparsity: Sparsity,
    weights: list[lists.Weights],
    now: Linearised,
    d_t: Block,
    J_tm1: Vector,
) -> Vector:
    """(14): U x `[E, L]`."""
    pattern = sparsity.pattern
    J_tm1 = where_reset(now.resets, 0.0, J_tm1)
    J_t = []
    for u in range(cell.states):
        tiers = []
        for k, (tier, span) in enumerate(lists.with_spans(pattern.heard)):
            r = pattern.row[span]
            sigma = (lists.at(entry, r) for entry in now.derivatives.sigma[u])
            D = lists.dynamics(sigma, weights[k])  # D_t[r, l]
            others = lists.weighted(D, J_tm1[cell.read], tier) if tier.pairs.size else ()
            itself = (
                None if entry is None else entry[r, None] * J[span]
                for entry, J in zip(d_t[u], J_tm1, strict=True)
            )
            # the pairs of the units with themselves come first
            own = _immediate(cell, params, sparsity, now, u) if k == 0 else None
            tiers.append(dense(total((*itself, *others, own)), J_tm1[0][span]))
        J_t.append(jnp.concatenate(tiers))
    return tuple(J_t)


def _immediate(
    cell: UnitwiseCell, params: Params, sparsity: Sparsity, now: Linearised, u: int
) -> Array:
    """I_t (9), for every unit the weights that enter it: `[N, L]`."""
    blocks = []
    for part in rows.parts(cell, params, sparsity, now.derivatives):
        entry = dense(part.entries[u], now.h_tm1[0])
        source = rows.sources(part, cell, sparsity, now.xs, now.h_tm1[cell.read])
        if source is None:
            blocks.append(rows.kept(part, sparsity, entry)[:, None])
        else:
            blocks.append(entry[:, None] * jnp.broadcast_to(source, (len(entry), source.shape[-1])))
    return jnp.concatenate(blocks, -1)


class Places(NamedTuple):
    """Where pairs stand when those of each unit are one below the other, in S rows."""

    columns: Array  # [S, N] the pair; past the end: none
    position: Array  # [E] the row of each pair


def by_segment(
    cell: UnitwiseCell,
    params: Params,
    sparsity: Sparsity,
    linearised: Linearised,
    P_0: tuple[Vector, ...],
    own: tuple[Vector, ...],
    J_0: Vector,
    product: str,
    places: Places,
) -> Vector:
    """(15b): U x `[E, L]`; own is P_t e_i, U x U x `[T, N, S]`.

    `product` says as `einsum` does how one of the U x U of P_0 meets J_0 `[S, N, L]`, in
    `[N, S, L]`.
    """
    gone, gone_0 = reset_after(linearised.resets)
    xs, read, derivatives, own = where_reset(
        gone, 0.0, (linearised.xs, linearised.h_tm1[cell.read], linearised.derivatives, own)
    )
    J_0 = tuple(lists.column(J, places.columns) for J in J_0)  # [S, N, L]
    P_0, J_0 = where_reset(gone_0, 0.0, (P_0, J_0))
    J_T = []
    for u in range(cell.states):
        new = _since(cell, params, sparsity, xs, read, derivatives, own[u])
        for P, J in zip(P_0[u], J_0, strict=True):
            new = new + jnp.einsum(product, P, J)
        J_T.append(new.at[sparsity.pattern.unit, places.position].get(mode="fill", fill_value=0))
    return tuple(J_T)


def _since(
    cell: UnitwiseCell,
    params: Params,
    sparsity: Sparsity,
    xs: Array,
    read: Array,
    derivatives: segment.Derivatives,
    own: Vector,
) -> Array:
    """The sum over the segment's steps in (15b): `[N, S, L]`; own is P_t e_i, U x `[T, N, S]`."""
    parts = list(rows.parts(cell, params, sparsity, derivatives))
    sources = [rows.sources(part, cell, sparsity, xs, read) for part in parts]
    none = jnp.zeros_like(xs, shape=own[0].shape[:2])
    # few products, for each goes over P once: one of all the weights that a unit has for itself,
    # and one of the gates that read the same numbers as all other units
    blocks: dict[int, Array] = {}
    apart = [k for k, source in enumerate(sources) if source is None or source.ndim == 3]
    if apart:

        def factor(k: int, u: int) -> Array:
            entry, source = dense(parts[k].entries[u], none)[..., None], sources[k]
            return entry if source is None else entry * source

        found = plain_total(
            jnp.einsum("tns,tnk->nsk", p, jnp.concatenate([factor(k, u) for k in apart], -1))
            for u, p in enumerate(own)
        )
        ends = np.cumsum([parts[k].span.stop - parts[k].span.start for k in apart])[:-1]
        for k, block in zip(apart, jnp.split(found, ends, -1), strict=True):
            blocks[k] = rows.kept(parts[k], sparsity, block) if sources[k] is None else block
    for names, source in ((cell.inputs, xs), (cell.recurrent, read)):
        joined = [k for k, part in enumerate(parts) if k not in apart and part.name in names]
        if joined:
            arriving = [
                plain_total(
                    p * dense(entry, none)[..., None]
                    for p, entry in zip(own, parts[k].entries, strict=True)
                )
                for k in joined
            ]
            found = jnp.einsum("tgns,tk->gnsk", jnp.stack(arriving, 1), source)
            blocks |= dict(zip(joined, found, strict=True))
    return jnp.concatenate([blocks[k] for k in range(len(parts))], -1)


# ---- all streams at once, as the last axis -----------------------------------------------------


class _Dynamics(NamedTuple):
    """What D_t of (8) is made of, beside the weights."""

    sigma: Block  # U x G  `[T, N, B]`
    d: Block  # U x U  `[T, N, B]`
    resets: Array | None  # [T, B]


def _dynamics_of(linearised: Linearised, d: Block) -> _Dynamics:
    sigma, d = _streams_last((linearised.derivatives.sigma, d))
    return _Dynamics(sigma, d, linearised.resets)


def _streams_last(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.swapaxes(x, 1, 2), tree)


def _passed_on(
    cell: UnitwiseCell, params: Params, pattern: Pattern, linearised: Linearised, d: Block
) -> tuple[tuple[Vector, ...], tuple[Vector, ...]]:
    """P of (15b): row (l, q) of P_t is how the S pairs of q hear, at the end, of l after step t.

    Returns:
      P_0, U x U x `[E, B, S]`, and of every P_t the rows of the units themselves, U x U x
      `[T, B, N, S]`.
    """
    weights = lists.weights(cell, params, pattern, told=True)
    streams, kind = linearised.xs.shape[1], linearised.xs.dtype
    now = jax.nn.one_hot(pattern.position, len(pattern.columns), dtype=kind)  # [E, S]
    now = jnp.broadcast_to(now[..., None], (*now.shape, streams))
    none, states = jnp.zeros_like(now), range(cell.states)
    end = tuple(tuple(now if u == v else none for v in states) for u in states)

    def step(P_t: tuple[Vector, ...], now_t: _Dynamics) -> tuple[tuple, tuple]:
        own = tuple(tuple(x[: cell.features] for x in P) for P in P_t)
        return tuple(_transposed(cell, pattern, weights, now_t, P) for P in P_t), own

    found = loops.scan(step, end, _dynamics_of(linearised, d), reverse=True)
    return jax.tree.map(lambda x: jnp.moveaxis(x, -1, 1), found)


def _transposed(
    cell: UnitwiseCell,
    pattern: Pattern,
    weights: list[lists.Weights],
    now: _Dynamics,
    after: Vector,
) -> Vector:
    """`D_t[S_i, S_i]^T after` for every i: U x `[E, K, B]`; 0 where the step began anew."""
    before = []
    for v in range(cell.states):
        tiers = []
        for k, (tier, span) in enumerate(lists.with_spans(pattern.told)):
            r = pattern.row[span]
            terms = [
                None if entry is None else entry[r][:, None] * x[span]
                for (entry, x) in zip((row[v] for row in now.d), after, strict=True)
            ]
            if v == cell.read and tier.pairs.size:
                for gates, x in zip(now.sigma, after, strict=True):
                    sigma = (None if s is None else lists.column(s, tier.units) for s in gates)
                    D = lists.dynamics(sigma, tuple(w[..., None] for w in weights[k]))  # D_t[l, r]
                    terms += lists.weighted(D, x, tier)
            tiers.append(dense(total(terms), after[0][span]))
        before.append(jnp.concatenate(tiers))
    if now.resets is None:
        return tuple(before)
    return tuple(jnp.where(now.resets, 0.0, x) for x in before)
