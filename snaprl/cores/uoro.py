"""UORO: an unbiased estimate of the influence, of rank one.

Reference: Tallec and Ollivier, "Unbiased Online Recurrent Optimization", ICLR 2018
(arXiv 1702.05043), equations (7) to (9).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from snaprl.cores import segment
from snaprl.cores.segment import Linearised
from snaprl.cores.types import Array, Params
from snaprl.cores.unitwise import UnitwiseCell, Vector, plain_total
from snaprl.cores.walk import Walk, Walking, dynamics


class RankOne(NamedTuple):
    """`J = state (x) params` for each stream."""

    state: Vector  # U x [B, N]
    params: Params  # [B, ...]


@dataclasses.dataclass(frozen=True)
class UORO(Walking):
    """Unbiased online recurrent optimization: memory of the parameters, noise of their number."""

    def walk(self) -> Walk:
        """See `Walking.walk`."""
        return Walk(_init, _step, _contract)


def _init(cell: UnitwiseCell, params: Params, batch_size: int) -> RankOne:
    dtype = segment.influence_dtype(params)
    state = tuple(jnp.zeros((batch_size, cell.features), dtype) for _ in range(cell.states))
    return RankOne(state, jax.tree.map(lambda p: jnp.zeros((batch_size, *p.shape), dtype), params))


def _step(
    cell: UnitwiseCell, params: Params, key: Array, now: Linearised, factors: RankOne
) -> RankOne:
    """`s_t = r0 D s + r1 v`, `w_t = w / r0 + v I / r1`: random signs v, r to even out the sizes."""
    moved = dynamics(cell, params, now, factors.state)  # D_t s_tm1
    shape = (cell.states, cell.features)
    signs = jax.vmap(lambda k: jax.random.rademacher(k, shape, moved[0].dtype))(key)
    v = tuple(signs[:, u] for u in range(cell.states))
    # v I_t (9): the gradient of one step, stream by stream
    one_step = jax.vmap(lambda now, v: segment.outer_products(cell, params, now, v), in_axes=(1, 1))
    with_time = jax.tree.map(lambda x: x[None, :, None], (now._replace(resets=None), v))
    immediate = one_step(*with_time)
    r0 = _ratio(factors.params, moved)
    r1 = _ratio(immediate, v)
    return RankOne(
        tuple(_times(r0, s) + _times(r1, x) for s, x in zip(moved, v, strict=True)),
        jax.tree.map(lambda w, i: _times(1 / r0, w) + _times(1 / r1, i), factors.params, immediate),
    )


def _contract(cell: UnitwiseCell, params: Params, factors: RankOne, lambda_: Vector) -> Params:
    del cell, params
    weight = plain_total((s * x).sum(-1) for s, x in zip(factors.state, lambda_, strict=True))
    return jax.tree.map(lambda w: jnp.tensordot(weight, w, 1), factors.params)


def _ratio(above: Params | Vector, below: Params | Vector) -> Array:
    """`sqrt(|above| / |below|)` for each stream, 1 where both are 0: `[B]`."""
    tiny = 1e-7
    return jnp.sqrt((_norm(above) + tiny) / (_norm(below) + tiny))


def _norm(tree: Params | Vector) -> Array:
    leaves = jax.tree.leaves(tree)
    return jnp.sqrt(plain_total((x * x).reshape(len(x), -1).sum(-1) for x in leaves))


def _times(factor: Array, x: Array) -> Array:
    """`factor [B]` times `x [B, ...]`."""
    return factor.reshape(factor.shape + (1,) * (x.ndim - 1)) * x
