"""Lottery tickets: what is left, and from where it starts again."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.cores.sparsity import trees

from snaprl.cores import sparsity
from snaprl.cores.sparsity import Scope

SCOPES = pytest.mark.parametrize("scope", Scope)


def says(sentence):
    return pytest.raises(ValueError, match=f"^{re.escape(sentence)}$")


@SCOPES
@given(seed=st.integers(0, 99), fraction=st.floats(0, 1), density=st.sampled_from([0.2, 0.6, 1.0]))
def test_a_round_drops_the_smallest_of_the_survivors(scope, seed, fraction, density):
    trained, early = trees.draw_params(seed), trees.draw_params(seed + 100)
    mask = trees.draw_mask(seed, density)
    ticket = sparsity.lottery_round(trained, mask, early, fraction=fraction, scope=scope)
    old, new, end, start, found = (
        trees.groups(tree, scope) for tree in (mask, ticket.mask, trained, early, ticket.params)
    )
    for group, kept in new.items():
        n = old[group].sum()
        gone = old[group] & ~kept
        assert not (kept & ~old[group]).any()
        assert gone.sum() == int(np.round(np.float32(fraction) * np.float32(n)))
        if gone.any() and kept.any():
            assert np.abs(end[group][gone]).max() <= np.abs(end[group][kept]).min()
        # survivors are where they were early, the others 0
        np.testing.assert_array_equal(found[group], np.where(kept, start[group], 0))
    # what has no mask is rewound too
    trees.assert_same(ticket.params["encoder"], jax.tree.map(jnp.asarray, early["encoder"]))


def test_rounds_in_a_row():
    """100 weights, a fifth at a time: 80, 64, 51, 41 (of 51, 10.2), compiled once."""
    rng = np.random.default_rng(0)
    early = {"h": {"kernel": rng.normal(size=(10, 10))}}
    mask = {"h": {"kernel": jnp.ones((10, 10), bool)}}
    step = jax.jit(lambda *trees, fraction: sparsity.lottery_round(*trees, fraction=fraction))
    left = []
    for _ in range(4):
        trained = {"h": {"kernel": rng.normal(size=(10, 10))}}
        params, mask = step(trained, mask, early, fraction=0.2)
        left.append(int(mask["h"]["kernel"].sum()))
        assert sparsity.density(params) == sparsity.density(mask)
    assert left == [80, 64, 51, 41]
    step(early, mask, early, fraction=0.5)
    assert trees.programs(step) == 1


@SCOPES
def test_tied_layers_keep_one_mask(scope):
    trained, mask = trees.draw_params(1), trees.draw_mask(1, 0.6, shared=True)
    ticket = sparsity.lottery_round(
        trained, mask, trees.draw_params(2), fraction=0.5, scope=scope, tied=trees.TIED
    )
    pruned = ticket.mask["memory"]
    np.testing.assert_array_equal(pruned["hr"]["kernel"], pruned["hz"]["kernel"])
    assert pruned["hr"]["kernel"].sum() < mask["memory"]["hr"]["kernel"].sum()


def test_what_a_mistake_is_told():
    params, mask = trees.draw_params(3), trees.draw_mask(3, 0.6)
    with says("fraction is -0.1; it must lie in [0, 1]"):
        sparsity.lottery_round(params, mask, params, fraction=-0.1)
    with says(
        "memory/hr/bias has shape None in early and (6,) in params; rewind to parameters of the "
        "same network"
    ):
        less = params | {"memory": params["memory"] | {"hr": {"kernel": np.ones((7, 6))}}}
        sparsity.lottery_round(params, mask, less)
