"""Unbiased estimates of the influence that are sums of Kronecker products: KF-RTRL and OK-RTRL.

All weights of one layer multiply the same source (9), so what a step adds to the influence is one
product `source (x) derivatives`, exactly. Recurrent and input layers have a sum each.

References: Mujika, Meier and Steger, "Approximating Real-Time Recurrent Learning with Random
Kronecker Factors", NeurIPS 2018 (arXiv 1805.10842); Benzing, Gauy, Mujika, Martinsson and Steger,
"Optimal Kronecker-Sum Approximation of Real Time Recurrent Learning", ICML 2019 (arXiv 1902.03993).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snaprl.cores import segment
from snaprl.cores.checks import check_whole
from snaprl.cores.segment import Linearised
from snaprl.cores.types import Array, Params
from snaprl.cores.unitwise import UnitwiseCell, Vector, dense, total, written_out
from snaprl.cores.walk import Layers, Walk, Walking, by_steps, layers_by_source


class Sum(NamedTuple):
    """`J = sum_r source[r] (x) units[r]` for the layers that read one source, per stream."""

    source: Array  # [B, R, K + 1]  what the weights and, last, the biases multiply
    units: Vector  # U x [B, N, R, G, N]  how row r hears of gate g of unit i


@dataclasses.dataclass(frozen=True)
class KFRTRL(Walking):
    """Kronecker-factored RTRL: one product, into which each step's is mixed by random signs."""

    def walk(self) -> Walk:
        """See `Walking.walk`."""
        return _walk(1, _mix_two)


@dataclasses.dataclass(frozen=True)
class OKRTRL(Walking):
    """Optimal Kronecker-sum RTRL: R products; of R + 1 the best unbiased R are kept.

    Attributes:
      rank: R. Time and memory grow with it, the noise falls.

    Raises:
      ValueError: the rank is below 1.
    """

    rank: int = 1

    def __post_init__(self):
        check_whole(self, "rank", least=1)

    def walk(self) -> Walk:
        """See `Walking.walk`."""
        return _walk(self.rank, _keep_best)


# (source [B, R, K + 1], units [B, R, ...], keys [B]) of R + 1 products to R
Reduce = Callable[[Array, Array, Array], tuple[Array, Array]]


def _walk(rank: int, reduce: Reduce) -> Walk:
    def init(cell: UnitwiseCell, params: Params, batch_size: int) -> list[Sum]:
        dtype = segment.influence_dtype(params)
        sums = []
        for names, _, _ in layers_by_source(cell):
            kernel = params[names[0]]
            width = kernel["kernel"].shape[0] + 1 if names is not cell.local else 1
            shape = (batch_size, cell.features, rank, len(names), cell.features)
            units = tuple(jnp.zeros(shape, dtype) for _ in range(cell.states))
            sums.append(Sum(jnp.zeros((batch_size, rank, width), dtype), units))
        return sums

    def step(
        cell: UnitwiseCell, params: Params, key: Array, now: Linearised, factors: list[Sum]
    ) -> list[Sum]:
        sums = []
        for k, (layers, old) in enumerate(zip(layers_by_source(cell), factors, strict=True)):
            keys = jax.vmap(lambda key, k=k: jax.random.fold_in(key, k))(key)
            moved = _moved(cell, params, now, old.units)
            source, units = _immediate(layers, now)
            source = jnp.concatenate([old.source, source[:, None]], axis=1)
            both = tuple(
                jnp.concatenate([x, y[:, :, None]], axis=2)
                for x, y in zip(moved, units, strict=True)
            )
            joined = jnp.stack(both, 1)  # [B, U, N, R + 1, G, N]
            shape = joined.shape
            flat = jnp.moveaxis(joined, 3, 1).reshape(shape[0], rank + 1, -1)
            source, flat = reduce(source, flat, keys)
            joined = jnp.moveaxis(flat.reshape(shape[0], rank, *shape[1:3], *shape[4:]), 1, 3)
            sums.append(Sum(source, tuple(joined[:, u] for u in range(cell.states))))
        return sums

    return by_steps(init, step, _contract)


def _moved(cell: UnitwiseCell, params: Params, now: Linearised, units: Vector) -> Vector:
    """`D_t units` (8): so many columns that D_t is written out, one matrix for all gates."""
    sigma, delta = now.derivatives.sigma, now.derivatives.delta
    rows = []
    for u in range(cell.states):
        D = total(
            None if gate is None else gate[:, :, None] * params[name]["kernel"].T[None]
            for gate, name in zip(sigma[u], cell.recurrent, strict=True)
        )
        mixed = None if D is None else jnp.einsum("bil,bl...->bi...", D, units[cell.read])
        kept = (
            None if entry is None else entry[:, :, None, None, None] * x
            for entry, x in zip(delta[u], units, strict=True)
        )
        rows.append(dense(total((mixed, *kept)), units[0]))
    return tuple(rows)


def _immediate(layers: Layers, now: Linearised) -> tuple[Array, Vector]:
    """I_t (9): the source `[B, K + 1]` and, per state variable, derivatives `[B, N, G, N]`."""
    like = now.h_tm1[0]
    eye = jnp.eye(like.shape[-1], dtype=like.dtype)
    source = layers.source(now)
    one = jnp.ones((len(like), 1), like.dtype)
    units = tuple(
        jnp.stack(written_out(row, like), axis=-1)[..., None] * eye[None, :, None, :]
        for row in layers.derivatives(now)
    )
    return one if source is None else jnp.concatenate([source, one], axis=-1), units


def _contract(
    cell: UnitwiseCell, params: Params, factors: list[Sum], lambda_: Vector
) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for layers, (source, units) in zip(layers_by_source(cell), factors, strict=True):
        reached = sum(
            jnp.einsum("bn,bnrgi->brgi", x, rows) for x, rows in zip(lambda_, units, strict=True)
        )
        grads = jnp.einsum("brk,brgi->gki", source, reached)  # [G, K + 1, N]
        for name, grad in zip(layers.names, grads, strict=True):
            if layers.names is cell.local:
                tree[name] = grad[-1]
            else:
                tree[name] = {"kernel": grad[:-1]}
                if "bias" in params[name]:
                    tree[name]["bias"] = grad[-1]
    return tree


def _mix_two(source: Array, units: Array, key: Array) -> tuple[Array, Array]:
    """Two products into one: Mujika et al., algorithm 1."""
    signs = jax.vmap(lambda k: jax.random.rademacher(k, (2,), source.dtype))(key)
    tiny = 1e-7
    scale = jnp.sqrt(
        (jnp.linalg.norm(units, axis=-1) + tiny) / (jnp.linalg.norm(source, axis=-1) + tiny)
    )
    mixed = jnp.einsum("br,brk->bk", signs * scale, source)
    return mixed[:, None], jnp.einsum("br,brk->bk", signs / scale, units)[:, None]


@jax.vmap
def _keep_best(source: Array, units: Array, key: Array) -> tuple[Array, Array]:
    """R + 1 products into R: Benzing et al., algorithm 1 and theorem 1.

    Args:
      source: `[R + 1, K]` of one stream.
      units: `[R + 1, ...]`, flattened.
      key: consumed.
    """
    # sum_i source_i (x) units_i = sum_i values_i left_i (x) right_i, both sides orthonormal
    (factors, basis), (others, other_basis) = _orthonormal(units), _orthonormal(source)
    turned, values, left = jnp.linalg.svd(factors.T @ others)  # small, whatever the rows are
    mixing = _unbiased_root(values, key)  # [R + 1, R]
    return mixing.T @ left @ other_basis, mixing.T @ turned.T @ basis


def _orthonormal(rows: Array) -> tuple[Array, Array]:
    """`rows = factors @ basis`, with a basis of orthonormal rows, by Gram and Schmidt, twice.

    LAPACK's QR takes longer: these are many, and a few long rows each.
    """
    n = len(rows)

    def body(j: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        factors, basis = state
        row, known = rows[j], jnp.zeros(n, rows.dtype)
        for _ in range(2):
            shares = basis @ row
            row, known = row - shares @ basis, known + shares
        length = jnp.linalg.norm(row)
        basis = basis.at[j].set(row / jnp.where(length > 0, length, 1))
        return factors.at[j].set(known.at[j].set(length)), basis

    return jax.lax.fori_loop(0, n, body, (jnp.zeros((n, n), rows.dtype), jnp.zeros_like(rows)))


def _unbiased_root(values: Array, key: Array) -> Array:
    """X `[n, n - 1]` with `E[X X^T] = diag(values)` and the least variance; values fall.

    The largest values are kept as they are; the others share what columns are left, turned so that
    they are orthogonal to z, and given random signs.
    """
    n = len(values)
    place = jnp.arange(n)
    rest = jnp.cumsum(values[::-1])[::-1]  # of this value and all smaller ones
    columns = n - 1 - place  # that are left for them
    first = jnp.argmax(columns * values <= rest)  # the first value that is not kept as it is
    shared = place >= first
    total, k = rest[first], columns[first]
    safe = jnp.where(total > 0, total, 1)
    z = jnp.sqrt(jnp.clip(jnp.where(shared, 1 - values * k / safe, 0), 0))
    last = (place == n - 1).astype(values.dtype)
    z = jnp.where(total > 0, z / jnp.linalg.norm(z), last)
    # the reflection that takes z to the last axis: its other columns are orthogonal to z
    v = z - last
    norm = v @ v
    turn = jnp.eye(n, dtype=values.dtype) - jnp.where(
        norm > 1e-14, 2 / jnp.where(norm > 0, norm, 1), 0
    ) * jnp.outer(v, v)
    signs = jnp.where(shared, jax.random.rademacher(key, (n,), values.dtype), 1)
    scale = jnp.sqrt(jnp.where(shared, total / jnp.maximum(k, 1), values))
    return signs[:, None] * turn[:, :-1] * scale[None, :-1]
