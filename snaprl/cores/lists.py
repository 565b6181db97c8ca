"""Sums over lists of rows: for each pair (r, q) of `reach.Pattern` those of other pairs (l, q).

A row `[P, ...]` is what is known of a pair, such as how unit r hears of each weight into unit q. An
index past the end stands for nobody, and adds nothing.
"""

from collections.abc import Iterable

import jax.numpy as jnp

from snaprl.cores.reach import Indices, Pattern, Tier
from snaprl.cores.streams import rows_at
from snaprl.cores.types import Array, Params
from snaprl.cores.unitwise import Entry, UnitwiseCell, total

Weights = tuple[Array, ...]  # G x [P, n]: the weight that joins a pair to each of its list, or 0


def weights(cell: UnitwiseCell, params: Params, pattern: Pattern, *, told: bool) -> list[Weights]:
    """For every tier, the weights of its lists: those that r reads, or those that read r."""
    kernels = [jnp.pad(params[name]["kernel"], 1)[1:, 1:] for name in cell.recurrent]

    def of(tier: Tier, span: slice) -> Weights:
        r = pattern.row[span]
        return tuple(w[r, tier.units] if told else w[tier.units, r] for w in kernels)

    return [of(tier, span) for tier, span in with_spans(pattern.told if told else pattern.heard)]


def with_spans(tiers: tuple[Tier, ...]) -> list[tuple[Tier, slice]]:
    """Each tier with the pairs that it is about."""
    spans, start = [], 0
    for tier in tiers:
        spans.append(slice(start, start + tier.pairs.shape[1]))
        start = spans[-1].stop
    return list(zip(tiers, spans, strict=True))


def dynamics(sigma: Iterable[Entry], joining: Weights) -> Entry:
    """`sum_g sigma_t[g] W[g]`, an entry of D_t (8) for each of a list: `[P, n, ...]`."""
    return total(None if s is None else s * w for s, w in zip(sigma, joining, strict=True))


def weighted(D: Entry, values: Array, tier: Tier) -> list[Array]:
    """The terms of a sum over lists of rows: P x `[n, ...]`."""
    if D is None:
        return []
    return [D[p][:, None] * rows_at(values, pairs) for p, pairs in enumerate(tier.pairs)]


def at(entry: Entry, index: Indices) -> Entry:
    """`entry[index]` of the units `[N]`, as `[1, P]`; a structural zero stays one."""
    return None if entry is None else entry[None, index]


def column(values: Array, pairs: Indices) -> Array:
    """`values[pairs]`, 0 where the index is past the end."""
    return values.at[pairs].get(mode="fill", fill_value=0)


def columns(values: Array, pattern: Pattern) -> Array:
    """`[E, ...]` as `[S, N, ...]`, the pairs of each unit one below the other."""
    return column(values, pattern.columns)
