"""UORO: an unbiased estimate of the influence, of rank one.

    s_t = r0 D_t s_tm1 + r1 v_t,     w_t = w_tm1 / r0 + v_t I_t / r1

with random signs v, and r0, r1 that even out the sizes: each is the root of the quotient of two
norms (17). An estimate holds as many numbers as the parameters for each stream, and to go over them
at every step costs more than all else. But what a segment adds to w are the gradients `v_t I_t` of
single steps, outer products all of them (9), so that within it

    w_t = kept_t w_0 + sum_(k <= t) shares_tk v_k I_k                                       (18)

is known by numbers, and so are the norms, from `<w_0, v_t I_t>` and `<v_k I_k, v_t I_t>`: the inner
product of two outer products is that of their left sides times that of their right sides. All are
matrix products over the segment; step by step go only s and those numbers.

Reference: Tallec and Ollivier, "Unbiased Online Recurrent Optimization", ICLR 2018
(arXiv 1702.05043), equations (7) to (9).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from snaprl.cores import loops, segment
from snaprl.cores.resets import at_start, remembered, reset_after, where_reset
from snaprl.cores.segment import Linearised
from snaprl.cores.types import Array, Params
from snaprl.cores.unitwise import (
    UnitwiseCell,
    Vector,
    dense,
    plain_total,
    times,
    total,
    vector_block,
    written_out,
)
from snaprl.cores.walk import (
    Drawn,
    Walk,
    Walking,
    layers_by_source,
    next_keys,
    no_gradient,
)

# Inner products grow with the square of the steps that are taken at once, passes over the estimate
# with how often one begins anew.
AT_ONCE = 32
TINY = 1e-7


class RankOne(NamedTuple):
    """`J = state (x) params` for each stream."""

    state: Vector  # U x [B, N]
    params: Params  # [B, ...]


@dataclasses.dataclass(frozen=True)
class UORO(Walking):
    """Unbiased online recurrent optimization: memory of the parameters, noise of their number."""

    def walk(self) -> Walk:
        """See `Walking.walk`."""
        return Walk(_init, _advance, _known, _contract)


def _init(cell: UnitwiseCell, params: Params, batch_size: int) -> RankOne:
    dtype = segment.influence_dtype(params)
    state = tuple(jnp.zeros((batch_size, cell.features), dtype) for _ in range(cell.states))
    return RankOne(state, jax.tree.map(lambda p: jnp.zeros((batch_size, *p.shape), dtype), params))


def _contract(cell: UnitwiseCell, params: Params, factors: RankOne, lambda_: Vector) -> Params:
    del cell, params
    weight = _weight(factors.state, lambda_)
    return jax.tree.map(lambda w: jnp.tensordot(weight, w, 1), factors.params)


def _weight(state: Vector, lambda_: Vector) -> Array:
    """By how much `lambda_ . J` is the params of an estimate with this state: `[..., B]`."""
    return plain_total((s * x).sum(-1) for s, x in zip(state, lambda_, strict=True))


def _advance(cell: UnitwiseCell, params: Params, linearised: Linearised, drawn: Drawn) -> Drawn:
    def piece(drawn: Drawn, linearised: Linearised) -> Drawn:
        return _walk(cell, params, linearised, drawn).after

    return loops.by_pieces(piece, drawn, linearised, AT_ONCE)


def _known(
    cell: UnitwiseCell, params: Params, linearised: Linearised, drawn: Drawn, lambda_: Vector
) -> Params:
    def piece(state: tuple[Drawn, Params], inputs: tuple) -> tuple[Drawn, Params]:
        (drawn, grads), (linearised, lambda_) = state, inputs
        walked = _walk(cell, params, linearised, drawn)
        weight = _weight(walked.before.state, lambda_)  # [T, B]
        kept = (weight * walked.before.kept).sum(0)
        shares = jnp.einsum("tb,tbk->kb", weight, walked.before.shares)
        before = remembered(at_start(linearised.resets), drawn.factors.params)
        signs = tuple(shares[..., None] * v for v in walked.signs)
        within = segment.outer_products(cell, params, linearised, signs)
        grads = jax.tree.map(
            lambda g, i, w: g + i + jnp.tensordot(kept, w, 1), grads, within, before
        )
        return walked.after, grads

    start = drawn, no_gradient(params, lambda_)
    return loops.by_pieces(piece, start, (linearised, lambda_), AT_ONCE)[1]


class _State(NamedTuple):
    """Where an estimate stands: its `params` are `kept w_0 + sum_k shares[:, k] v_k I_k`."""

    state: Vector  # U x [B, N]
    kept: Array  # [B]
    shares: Array  # [B, T]
    square: Array  # [B] the squared norm of what they amount to


class _Walked(NamedTuple):
    signs: Vector  # U x [T, B, N]
    before: _State  # before each step, after its reset: [T, ...]
    after: Drawn


def _walk(cell: UnitwiseCell, params: Params, linearised: Linearised, drawn: Drawn) -> _Walked:
    """One piece of a segment."""
    factors = remembered(at_start(linearised.resets), drawn.factors)
    dtype = factors.state[0].dtype
    steps, streams = linearised.h_tm1[0].shape[:2]
    signs, key = _signs(cell, drawn.key, steps, dtype)
    met, overlaps = _inner_products(cell, params, linearised, signs, factors.params)

    def step(now: _State, inputs: tuple) -> tuple[_State, _State]:
        t, linearised_t, v, size, r1, met, overlaps = inputs
        before = now = where_reset(linearised_t.resets, 0.0, now)
        moved = dynamics(cell, params, linearised_t, now.state)  # D_t s_tm1
        r0 = _ratio(now.square, _square(moved))
        # a share that a reset has made 0 is of a step that may not have been a number
        crossing = jnp.where(now.kept == 0, 0.0, now.kept * met)
        crossing += jnp.where(now.shares == 0, 0.0, now.shares * overlaps).sum(-1)
        square = now.square / r0**2 + 2 * crossing / (r0 * r1) + size / r1**2
        after = _State(
            tuple(r0[:, None] * s + r1[:, None] * x for s, x in zip(moved, v, strict=True)),
            now.kept / r0,
            jnp.where(jnp.arange(steps)[None] == t, 1 / r1[:, None], now.shares / r0[:, None]),
            jnp.maximum(square, 0.0),
        )
        return after, before

    start = _State(
        factors.state,
        jnp.ones(streams, dtype),
        jnp.zeros((streams, steps), dtype),
        _square(jax.tree.leaves(factors.params)),
    )
    sizes = jnp.einsum("tbt->tb", overlaps)  # |v_t I_t|^2
    ratios = _ratio(sizes, jnp.array(cell.states * cell.features, dtype))  # of v, all signs
    inputs = (jnp.arange(steps), linearised, signs, sizes, ratios, met, overlaps)
    end, before = loops.scan(step, start, inputs)
    grown = _amount(cell, params, linearised, signs, end, factors.params)
    return _Walked(signs, before, Drawn(key, RankOne(end.state, grown)))


def dynamics(cell: UnitwiseCell, params: Params, now: Linearised, state: Vector) -> Vector:
    """`D_t state` (8), U x `[B, N]`: what a change of the units before does to each."""
    sigma, delta = now.derivatives.sigma, now.derivatives.delta
    through = [state[cell.read] @ params[name]["kernel"] for name in cell.recurrent]
    return tuple(
        dense(total(map(times, (*delta[u], *sigma[u]), (*state, *through))), state[0])
        for u in range(cell.states)
    )


def _signs(cell: UnitwiseCell, keys: Array, steps: int, dtype: jnp.dtype) -> tuple[Vector, Array]:
    """v of each step, U x `[T, B, N]`, and the keys after them."""

    def draw(keys: Array, _: Array) -> tuple[Array, Array]:
        key, keys = next_keys(keys)
        return keys, jax.vmap(lambda k: jax.random.rademacher(k, shape, dtype))(key)

    shape = (cell.states, cell.features)
    keys, signs = loops.scan(draw, keys, jnp.arange(steps))
    return tuple(signs[:, :, u] for u in range(cell.states)), keys


def _inner_products(
    cell: UnitwiseCell, params: Params, linearised: Linearised, signs: Vector, w_0: Params
) -> tuple[Array, Array]:
    """`<w_0, v_t I_t>`, `[T, B]`, and `<v_t I_t, v_k I_k>`, `[T, B, T]`."""
    met, overlaps = [], []
    for names, read, derivatives in layers_by_source(cell):
        source = read(linearised)
        targets = written_out(vector_block(signs, derivatives(linearised)), signs[0])
        if source is None:  # a weight of each unit's own
            for name, target in zip(names, targets, strict=True):
                met.append(jnp.einsum("bn,tbn->tb", w_0[name], target))
                overlaps.append(_all_with_all(target))
            continue
        source = source.astype(signs[0].dtype)
        alike = _all_with_all(source)
        for name, target in zip(names, targets, strict=True):
            through = jnp.einsum("tbj,bjn->tbn", source, w_0[name]["kernel"])
            has_bias = "bias" in params[name]
            if has_bias:
                through += w_0[name]["bias"][None]
            met.append((through * target).sum(-1))
            overlaps.append((alike + has_bias) * _all_with_all(target))
    return plain_total(met), plain_total(overlaps)


def _all_with_all(x: Array) -> Array:
    """Inner products of each step `[T, B, N]` with each other one, stream by stream."""
    return jnp.einsum("tbn,kbn->tbk", x, x)


def _amount(
    cell: UnitwiseCell,
    params: Params,
    linearised: Linearised,
    signs: Vector,
    end: _State,
    w_0: Params,
) -> Params:
    """What `end` amounts to, `[B, ...]`."""
    shares = end.shares.T[..., None]
    added = tuple(shares * v for v in signs)
    gone, _ = reset_after(linearised.resets)  # a step before a reset may not have been a number
    steps = where_reset(gone, 0.0, (linearised._replace(resets=None), added))
    # stream by stream, as a batch of segments of one stream each
    alone = jax.tree.map(lambda x: x[:, :, None], steps)
    within = jax.vmap(lambda now, v: segment.outer_products(cell, params, now, v), in_axes=(1, 1))(
        *alone
    )

    def leaf(w: Array, i: Array) -> Array:
        kept = end.kept.reshape(end.kept.shape + (1,) * (w.ndim - 1))
        return jnp.where(kept == 0, 0.0, kept * w) + i

    return jax.tree.map(leaf, w_0, within)


def _square(leaves: Vector | list[Array]) -> Array:
    """The squared norm of each stream, `[B]`."""
    return plain_total((x * x).reshape(len(x), -1).sum(-1) for x in leaves)


def _ratio(above: Array, below: Array) -> Array:
    """`sqrt(|above| / |below|)` from squared norms, 1 where both are 0."""
    return jnp.sqrt((jnp.sqrt(above) + TINY) / (jnp.sqrt(below) + TINY))
