"""Patterns that take another one's place: whatever is a part of the old one fits, and is whole."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snaprl.cores import reach
from snaprl.cores.cells import unitwise

N = 9
CELL = unitwise(nn.GRUCell(N))
PARAMS = jax.eval_shape(
    nn.GRUCell(N).init, jax.random.key(0), jnp.zeros((1, N)), jnp.zeros((1, 2))
)["params"]


def pattern(kernel, order, room=None) -> reach.Pattern:
    mask = {name: {"kernel": kernel} for name in ("hr", "hz", "hn")}
    return reach.pattern(CELL, PARAMS, mask, order, room)


def pairs_of(found: reach.Pattern) -> set[tuple[int, int]]:
    unit, row = np.asarray(found.unit), np.asarray(found.row)
    pairs = [(int(r), int(q)) for q, r in zip(unit, row, strict=True) if q < N]
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


def joined(found: reach.Pattern, tiers, reads) -> None:
    """Each pair's list holds just the pairs of the same weights whose units it reads."""
    unit, row = np.asarray(found.unit), np.asarray(found.row)
    start, here = 0, pairs_of(found)
    for tier in tiers:
        for k in range(tier.pairs.shape[1]):
            e = start + k
            if unit[e] == N:
                continue
            others = {int(u) for u in tier.units[:, k] if u < N}
            wanted = {u for u in range(N) if reads[u, row[e]] and u != row[e]}
            assert others == {u for u in wanted if (u, int(unit[e])) in here}
            for place, u in zip(tier.pairs[:, k], tier.units[:, k], strict=True):
                assert (row[place], unit[place]) == ((u, unit[e]) if u < N else (row[e], unit[e]))
        start += tier.pairs.shape[1]
    assert start == len(unit)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    density=st.floats(0.05, 0.6),
    kept=st.floats(0.2, 1.0),
    order=st.sampled_from([2, 3, reach.EVERYTHING]),
)
def test_a_part_of_a_mask_fits_where_the_mask_was(seed, density, kept, order):
    rng = np.random.default_rng(seed)
    kernel = rng.random((N, N)) < density
    fewer = kernel & (rng.random((N, N)) < kept)
    old = pattern(kernel, order)
    new = pattern(fewer, order, reach.room_of(old))
    assert jax.tree.map(np.shape, new) == jax.tree.map(np.shape, old)
    for found, reads in ((old, kernel), (new, fewer)):
        hears = {(r, q) for q, r in zip(*np.nonzero(reach.reach(_off(reads), order)), strict=True)}
        assert pairs_of(found) == hears
        joined(found, found.heard, _off(reads))
        joined(found, found.told, _off(reads).T)


def _off(reads):
    return reads & ~np.eye(N, dtype=bool)


def test_what_does_not_fit_is_said():
    few = pattern(np.random.default_rng(0).random((N, N)) < 0.1, 2)
    with pytest.raises(ValueError, match="does not fit where the old one was"):
        pattern(np.ones((N, N), bool), 2, reach.room_of(few))
