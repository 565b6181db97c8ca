"""SET and RigL: the number of weights is kept, and who goes and comes is as the papers say."""

import re

import flax.linen as nn
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


def rewire_set(seed, params, mask, fraction, scope, tied=()):
    key = jax.random.key(seed)
    return sparsity.rewire_set(params, mask, key, fraction=fraction, scope=scope, tied=tied)


def rewire_rigl(seed, params, mask, fraction, scope, tied=()):
    gradient = trees.draw_params(seed + 1000)
    return sparsity.rewire_rigl(params, mask, gradient, fraction=fraction, scope=scope, tied=tied)


METHOD = pytest.mark.parametrize("rewire", [rewire_set, rewire_rigl], ids=["set", "rigl"])


def count(fraction, n):
    return int(np.round(np.float32(fraction) * np.float32(n)))


@METHOD
@SCOPES
@given(seed=st.integers(0, 99), fraction=st.floats(0, 1), density=st.sampled_from([0.1, 0.5, 0.9]))
def test_the_number_of_weights_is_kept(rewire, scope, seed, fraction, density):
    params, mask = trees.draw_params(seed), trees.draw_mask(seed, density)
    rewired = rewire(seed, params, mask, fraction, scope)
    old, new, before, after = (
        trees.groups(tree, scope) for tree in (mask, rewired.mask, params, rewired.params)
    )
    for group in old:
        n, k = old[group].sum(), count(fraction, old[group].sum())
        assert new[group].sum() == n
        dropped, grown = old[group] & ~new[group], new[group] & ~old[group]
        assert dropped.sum() == grown.sum() <= k
        # only the k smallest may go
        smallest = np.sort(np.abs(before[group][old[group]]))[:k]
        assert set(np.abs(before[group][dropped])) <= set(smallest)
        # what stays keeps its value; what has grown starts at 0, and what is masked is 0
        expected = np.where(old[group] & new[group], before[group], 0)
        np.testing.assert_array_equal(after[group], expected)
    trees.assert_same(rewired.params["encoder"], params["encoder"])


def twin(weights, present, gradient, fraction):
    """Algorithm 1 of the RigL paper for one layer, one weight after another."""
    k = count(fraction, present.sum())
    present = present.copy()
    for _ in range(k):
        there = [e for e in range(len(weights)) if present[e]]
        present[min(there, key=lambda e: abs(weights[e]))] = False
    for _ in range(k):
        absent = [e for e in range(len(weights)) if not present[e]]
        present[max(absent, key=lambda e: abs(gradient[e]))] = True
    return present


@SCOPES
@given(seed=st.integers(0, 99), fraction=st.floats(0, 1), density=st.sampled_from([0.1, 0.5, 0.9]))
def test_rigl_is_the_papers(scope, seed, fraction, density):
    params, mask = trees.draw_params(seed), trees.draw_mask(seed, density)
    gradient = trees.draw_params(seed + 1000)
    rewired = rewire_rigl(seed, params, mask, fraction, scope)
    old, new, weights, slopes = (
        trees.groups(tree, scope) for tree in (mask, rewired.mask, params, gradient)
    )
    for group, kept in new.items():
        expected = twin(weights[group], old[group], slopes[group], fraction)
        np.testing.assert_array_equal(kept, expected)


def test_rigl_by_hand():
    """Weights 5, 1, 3 are there; 1 is dropped; the largest gradient among the absent is at 4."""
    params = {"h": {"kernel": np.array([[5.0], [1], [0], [3], [0]])}}
    mask = {"h": {"kernel": np.array([[1], [1], [0], [1], [0]])}}
    gradient = {"h": {"kernel": np.array([[9.0], [0.1], [0.2], [9], [-0.3]])}}
    rewired = sparsity.rewire_rigl(params, mask, gradient, fraction=1 / 3)
    np.testing.assert_array_equal(rewired.mask["h"]["kernel"].ravel(), [1, 0, 0, 1, 1])
    np.testing.assert_array_equal(rewired.params["h"]["kernel"].ravel(), [5, 0, 0, 3, 0])
    # where the gradient asks for it back, it is as if it had never gone
    gradient["h"]["kernel"][1] = 0.4
    rewired = sparsity.rewire_rigl(params, mask, gradient, fraction=1 / 3)
    np.testing.assert_array_equal(rewired.mask["h"]["kernel"], mask["h"]["kernel"])
    np.testing.assert_array_equal(rewired.params["h"]["kernel"], params["h"]["kernel"])


def test_set_grows_anywhere_alike():
    """One weight of six goes; each of the five absent places and its own are as likely."""
    params = {"h": {"kernel": np.array([[3.0, 2, 1, 0, 0, 0, 0, 0]]).T}}
    mask = {"h": {"kernel": np.array([[1, 1, 1, 0, 0, 0, 0, 0]]).T}}

    @jax.vmap
    def kept(key):
        return sparsity.rewire_set(params, mask, key, fraction=0.4).mask["h"]["kernel"]

    rate = kept(jax.random.split(jax.random.key(0), 3000)).mean(axis=0).ravel()
    np.testing.assert_array_equal(rate[:2], 1)
    np.testing.assert_allclose(rate[2:], 1 / 6, atol=4 * (5 / 36 / 3000) ** 0.5)


@METHOD
def test_another_seed_is_another_mask(rewire):
    params, mask = trees.draw_params(0), trees.draw_mask(0, 0.3)
    one, again, other = (rewire(seed, params, mask, 0.5, Scope.LAYER) for seed in (1, 1, 2))
    trees.assert_same(one, again)
    assert (one.mask["memory"]["hr"]["kernel"] != other.mask["memory"]["hr"]["kernel"]).any()


@METHOD
@SCOPES
def test_the_order_of_names_does_not_matter(rewire, scope):
    """jit sorts them: a step must not differ from the same step compiled."""
    params, mask = trees.draw_params(0), trees.draw_mask(0, 0.3)
    turned = {"memory": dict(reversed(mask["memory"].items()))}
    one, other = (rewire(1, params, tree, 0.5, scope).mask for tree in (mask, turned))
    trees.assert_same(one, other)


@METHOD
def test_no_fraction_changes_nothing_but_what_is_masked(rewire):
    params, mask = trees.draw_params(3), trees.draw_mask(3, 0.3)
    rewired = rewire(3, params, mask, 0.0, Scope.LAYER)
    trees.assert_same(rewired.mask, jax.tree.map(jnp.asarray, mask))
    for name, leaf in trees.kernels(rewired.params).items():
        expected = trees.kernels(params)[name] * trees.kernels(mask)[name]
        np.testing.assert_array_equal(leaf, expected)


@METHOD
@SCOPES
def test_tied_layers_keep_one_mask(rewire, scope):
    params, mask = trees.draw_params(4), trees.draw_mask(4, 0.4, shared=True)
    rewired = rewire(4, params, mask, 0.5, scope, tied=trees.TIED).mask["memory"]
    np.testing.assert_array_equal(rewired["hr"]["kernel"], rewired["hz"]["kernel"])
    assert (rewired["hr"]["kernel"] != mask["memory"]["hr"]["kernel"]).any()
    if scope is not Scope.GLOBAL:
        assert rewired["hr"]["kernel"].sum() == mask["memory"]["hr"]["kernel"].sum()


@METHOD
@SCOPES
def test_one_program_serves_every_mask_and_fraction(rewire, scope):
    params, mask = trees.draw_params(5), trees.draw_mask(5, 0.3)
    mask = jax.tree.map(jnp.asarray, mask)
    step = jax.jit(lambda p, m, fraction: rewire(5, p, m, fraction, scope))
    for fraction in np.linspace(0, 1, 5, dtype="f"):
        rewired = step(params, mask, fraction)
        trees.assert_same(rewired, rewire(5, params, mask, fraction, scope))
        mask = jax.tree.map(jnp.roll, mask, jax.tree.map(lambda leaf: 1, mask))
    assert trees.programs(step) == 1


def test_gradients_that_are_no_numbers_cost_no_weight():
    params, mask = trees.draw_params(6), trees.draw_mask(6, 0.5)
    gradient = jax.tree.map(lambda p: np.full_like(p, np.nan), params)
    rewired = sparsity.rewire_rigl(params, mask, gradient, fraction=0.5)
    for name, leaf in trees.kernels(rewired.mask).items():
        assert leaf.sum() == trees.kernels(mask)[name].sum()


def test_a_fan_in_survives_a_hundred_rewirings():
    mask = sparsity.mask(nn.GRUCell(12), 5, sparsity.fixed_fan_in(4))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), mask)
    step = jax.jit(
        lambda params, mask, key: sparsity.rewire_set(
            params, mask, key, scope=Scope.UNIT, tied=sparsity.gates(nn.GRUCell(12))
        )
    )
    first = mask
    for key in jax.random.split(jax.random.key(0), 100):
        params, mask = step(params, mask, key)
    assert trees.programs(step) <= 2  # numpy's masks at first, then jax's
    for name in mask:
        np.testing.assert_array_equal(mask[name]["kernel"].sum(axis=0), 4)
        np.testing.assert_array_equal(mask[name]["kernel"], mask["hr"]["kernel"])
        assert (mask[name]["kernel"] != first[name]["kernel"]).any()


def test_empty_masks():
    params = trees.draw_params(7)
    for scope in Scope:
        for rewire in (rewire_set, rewire_rigl):
            rewired = rewire(7, params, {}, 0.5, scope)
            assert rewired.mask == {}
            trees.assert_same(rewired.params, params)


def test_what_a_mistake_is_told():
    params, mask = trees.draw_params(8), trees.draw_mask(8, 0.5)
    for rewire in (rewire_set, rewire_rigl):
        with says("fraction is 1.5; it must lie in [0, 1]"):
            rewire(8, params, mask, 1.5, Scope.LAYER)
    with says("mask memory/hr/bias masks nothing in the tree; it has encoder/bias, encoder/kernel"):
        sparsity.rewire_rigl(params, mask, {"encoder": params["encoder"]}, fraction=0.5)


def test_the_same_network_with_every_weight_present():
    params, mask = trees.draw_params(9), trees.draw_mask(9, 0.5)
    dense, ones = sparsity.as_dense(params, mask)
    trees.assert_same(dense["encoder"], jax.tree.map(jnp.asarray, params["encoder"]))
    for name, leaf in trees.kernels(dense).items():
        expected = trees.kernels(params)[name] * trees.kernels(mask)[name]
        np.testing.assert_array_equal(leaf, expected)
    for leaf, old in zip(jax.tree.leaves(ones), jax.tree.leaves(mask), strict=True):
        assert leaf.all()
        assert (leaf.shape, leaf.dtype) == (old.shape, old.dtype)
