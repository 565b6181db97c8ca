"""Magnitude pruning: exact numbers, a slow twin, one program for every density."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.cores.sparsity import trees

from snaprl.cores import Mask, sparsity
from snaprl.cores.sparsity import Scope

SCOPES = pytest.mark.parametrize("scope", Scope)


def says(sentence):
    """The whole sentence on a line of its own: jax adds a note on how it filters tracebacks."""
    return pytest.raises(ValueError, match=f"(?m)^{re.escape(sentence)}$")


def twin(weights, present, density):
    """The largest `round(density * E)` of one group's present weights, one after another."""
    kept = np.zeros(len(weights), bool)
    for _ in range(int(np.round(np.float32(density) * np.float32(len(weights))))):
        left = [e for e in range(len(weights)) if present[e] and not kept[e]]
        if left:
            kept[max(left, key=lambda e: abs(weights[e]))] = True
    return kept


@SCOPES
@given(seed=st.integers(0, 99), density=st.floats(0, 1), present=st.sampled_from([0.3, 0.7, 1.0]))
def test_the_largest_weights_stay(scope, seed, density, present):
    params, mask = trees.draw_params(seed), trees.draw_mask(seed, present)
    pruned = sparsity.magnitude_mask(params, mask, density, scope=scope)
    assert {leaf.dtype for leaf in jax.tree.leaves(pruned)} == {jnp.dtype(bool)}
    found, old, weights = (trees.groups(tree, scope) for tree in (pruned, mask, params))
    assert len(found) > 0
    for group, kept in found.items():
        np.testing.assert_array_equal(kept, twin(weights[group], old[group], density))


def test_scopes_differ_where_they_should():
    """By hand: unit 0 has the large weights of layer h, layer i the small ones of all."""
    params = {"h": {"kernel": np.array([[8.0, 2], [7, 1]])}, "i": {"kernel": np.full((2, 2), 0.5)}}
    ones = jax.tree.map(np.ones_like, params)

    def pruned(scope):
        mask = sparsity.magnitude_mask(params, ones, 0.5, scope=scope)
        return {name: (1 * leaf["kernel"]).tolist() for name, leaf in mask.items()}

    # of equal ones, the first
    assert pruned(Scope.UNIT) == {"h": [[1, 1], [0, 0]], "i": [[1, 1], [0, 0]]}
    assert pruned(Scope.LAYER) == {"h": [[1, 0], [1, 0]], "i": [[1, 1], [0, 0]]}
    assert pruned(Scope.GLOBAL) == {"h": [[1, 1], [1, 1]], "i": [[0, 0], [0, 0]]}


@SCOPES
def test_pruning_twice_is_pruning_once_and_nothing_returns(scope):
    params, mask = trees.draw_params(1), trees.draw_mask(1, 1.0)
    half = sparsity.magnitude_mask(params, mask, 0.5, scope=scope)
    trees.assert_same(sparsity.magnitude_mask(params, half, 0.5, scope=scope), half)
    trees.assert_same(sparsity.magnitude_mask(params, half, 0.9, scope=scope), half)
    trees.assert_same(
        sparsity.magnitude_mask(params, half, 0.2, scope=scope),
        sparsity.magnitude_mask(params, mask, 0.2, scope=scope),
    )
    # a weight that is masked does not return, however large
    params["memory"]["hr"]["kernel"][~np.asarray(half["memory"]["hr"]["kernel"])] = 1e6
    trees.assert_same(sparsity.magnitude_mask(params, half, 0.5, scope=scope), half)


@SCOPES
def test_tied_layers_keep_one_mask(scope):
    params, mask = trees.draw_params(2), trees.draw_mask(2, 0.8, shared=True)
    pruned = sparsity.magnitude_mask(params, mask, 0.4, scope=scope, tied=trees.TIED)["memory"]
    np.testing.assert_array_equal(pruned["hr"]["kernel"], pruned["hz"]["kernel"])
    # as if there were one layer, with the norm of both
    memory = params["memory"]
    norm = np.hypot(memory["hr"]["kernel"], memory["hz"]["kernel"])
    one = {"memory": {**memory, "hr": {**memory["hr"], "kernel": norm}}}
    without = {"memory": {name: mask["memory"][name] for name in ("hr", "ir")}}
    expected = sparsity.magnitude_mask(one, without, 0.4, scope=scope)["memory"]
    trees.assert_same({name: pruned[name] for name in ("hr", "ir")}, expected)


def test_layers_of_one_name_in_two_cores_are_not_tied():
    core = {"hr": {"kernel": np.eye(3)}, "hz": {"kernel": 2 * np.eye(3)}}
    params = {"low": core, "high": {"hr": {"kernel": np.ones((3, 3)) - np.eye(3)}}}
    ones = jax.tree.map(np.ones_like, params)
    pruned = sparsity.magnitude_mask(params, ones, 1 / 3, tied=(("hr", "hz"),))
    np.testing.assert_array_equal(pruned["low"]["hr"]["kernel"], np.eye(3))
    np.testing.assert_array_equal(pruned["low"]["hz"]["kernel"], np.eye(3))
    assert not np.diagonal(pruned["high"]["hr"]["kernel"]).any()


def test_a_number_that_is_none_counts_as_nothing():
    params = {"h": {"kernel": np.array([[np.nan, 3], [-np.inf, 2]], "f")}}
    ones = {"h": {"kernel": np.ones((2, 2))}}
    pruned = sparsity.magnitude_mask(params, ones, 0.5)
    np.testing.assert_array_equal(pruned["h"]["kernel"], [[0, 1], [1, 0]])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_small_types(dtype):
    params = {"h": {"kernel": jnp.arange(1000, dtype=jnp.float32).reshape(20, 50).astype(dtype)}}
    pruned = sparsity.magnitude_mask(params, {"h": {"kernel": np.ones((20, 50))}}, 0.1)
    assert pruned["h"]["kernel"].sum() == 100


def test_the_norm_of_small_types_does_not_overflow():
    """The square of 300 is more than float16 holds."""
    kernel = jnp.arange(300, 304, dtype=jnp.float16).reshape(2, 2)
    params = {"hr": {"kernel": kernel}, "hz": {"kernel": kernel}}
    ones = jax.tree.map(np.ones_like, params)
    pruned = sparsity.magnitude_mask(params, ones, 0.5, tied=(("hr", "hz"),))
    np.testing.assert_array_equal(pruned["hr"]["kernel"], [[0, 0], [1, 1]])


@SCOPES
def test_one_program_serves_every_density(scope):
    @jax.jit
    def prune(params, mask, density):
        return sparsity.magnitude_mask(params, mask, density, scope=scope, tied=trees.TIED)

    params, mask = trees.draw_params(3), trees.draw_mask(3, 1.0)
    mask = jax.tree.map(jnp.asarray, mask)
    for density in np.linspace(1, 0, 6, dtype="f"):
        mask = prune(params, mask, density)
        eager = sparsity.magnitude_mask(params, mask, density, scope=scope, tied=trees.TIED)
        trees.assert_same(mask, eager)
    assert trees.programs(prune) == 1
    assert not any(leaf.any() for leaf in jax.tree.leaves(mask))


def test_masks_of_every_kind_are_taken():
    params, mask = trees.draw_params(4), trees.draw_mask(4, 0.7)
    expected = sparsity.magnitude_mask(params, mask, 0.5)
    trees.assert_same(sparsity.magnitude_mask(params, Mask(mask), 0.5), expected)
    ints = jax.tree.map(lambda leaf: leaf.astype(int), mask)
    trees.assert_same(sparsity.magnitude_mask(params, ints, 0.5), expected)
    for scope in Scope:
        assert sparsity.magnitude_mask(params, {}, 0.5, scope=scope) == {}


def test_what_a_mistake_is_told():
    params, mask = trees.draw_params(5), trees.draw_mask(5, 0.7)
    with says("density is 1.5; it must lie in [0, 1]"):
        sparsity.magnitude_mask(params, mask, 1.5)
    with says("density is -0.5; it must lie in [0, 1]"):
        sparsity.magnitude_mask(params, mask, np.float32(-0.5))
    with says("mask memory/hr/bias masks nothing in the tree; it has encoder/bias, encoder/kernel"):
        sparsity.magnitude_mask({"encoder": params["encoder"]}, mask, 0.5)
    with says("mask h/kernel has shape (2, 2); the tree has (3, 2)"):
        sparsity.magnitude_mask({"h": {"kernel": np.ones((3, 2))}}, {"h": {"kernel": np.eye(2)}}, 1)
    with says(
        "tied layers have one mask, but their shapes differ: memory/hr/kernel (7, 6), "
        "memory/ir/kernel (4, 6)"
    ):
        sparsity.magnitude_mask(params, mask, 0.5, tied=(("hr", "ir"),))
