"""An optimiser's state: its mask is read and changed, and stale moments are reset."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze
from unit.cores.sparsity import trees

from snaprl.cores import sparsity


def says(sentence):
    return pytest.raises(ValueError, match=f"^{re.escape(sentence)}$")


def after_a_step(tx, params):
    grads = jax.tree.map(jnp.ones_like, params)
    return tx.update(grads, tx.init(params), params)[1]


def pruning(mask):
    return sparsity.magnitude_pruning(mask, lambda step: jnp.asarray(1.0))


@pytest.mark.parametrize("hold", [sparsity.keep_masked, pruning], ids=["keep", "prune"])
@pytest.mark.parametrize("nest", [False, True], ids=["chain", "nested"])
def test_the_mask_is_read_and_changed(hold, nest):
    params, mask, other = trees.draw_params(1), trees.draw_mask(1, 0.5), trees.draw_mask(2, 0.5)
    tx = optax.chain(optax.adam(0.1), hold(mask))
    if nest:
        tx = optax.apply_if_finite(tx, 3)
    state: Any = after_a_step(tx, params)
    trees.assert_same(sparsity.mask_of(state), jax.tree.map(jnp.asarray, mask))
    changed = sparsity.with_mask(state, other)
    trees.assert_same(sparsity.mask_of(changed), jax.tree.map(jnp.asarray, other))
    # nothing else, and in the same shapes and types
    trees.assert_same(sparsity.with_mask(changed, mask), state)
    assert jax.tree.map(jnp.result_type, changed) == jax.tree.map(jnp.result_type, state)


def test_a_state_without_a_mask_or_with_two():
    params, mask = trees.draw_params(3), trees.draw_mask(3, 0.5)
    end = "chain the optimiser with one of keep_masked and magnitude_pruning"
    with says(f"opt_state holds 0 masks; {end}"):
        sparsity.mask_of(optax.adam(0.1).init(params))
    with says(f"opt_state holds 2 masks; {end}"):
        sparsity.mask_of(optax.chain(pruning(mask), pruning(mask)).init(params))


def test_a_mask_that_is_not_shaped_like_the_one_before():
    mask = trees.draw_mask(4, 0.5)
    state = sparsity.keep_masked(mask).init(trees.draw_params(4))
    with says(
        "mask h/kernel masks nothing in the tree; it has memory/hr/bias, memory/hr/kernel, "
        "memory/hz/kernel, memory/ir/kernel"
    ):
        sparsity.with_mask(state, {"h": {"kernel": np.eye(3)}})
    with says("mask memory/hr/bias masks nothing in the tree; it has memory/hr/kernel"):
        sparsity.with_mask(state, {"memory": {"hr": {"kernel": mask["memory"]["hr"]["kernel"]}}})


def test_a_mask_in_two_places_is_two_buffers():
    """A step that consumes the variables and the optimiser's state is given both."""
    mask = jax.tree.map(jnp.asarray, trees.draw_mask(5, 0.5))
    state = sparsity.keep_masked(mask).init(trees.draw_params(5))
    for held in (state, sparsity.with_mask(state, mask)):
        held = sparsity.mask_of(held)

        @jax.jit
        def turn(both):
            return jax.tree.map(jnp.logical_not, both)

        jax.jit(turn, donate_argnums=0)((jax.tree.map(jnp.array, mask), held))


MOMENTS = {
    "adam": (optax.adam(0.1), lambda state: [state[0].mu, state[0].nu]),
    "momentum": (optax.sgd(0.1, momentum=0.9), lambda state: [state[0].trace]),
    "rmsprop": (optax.rmsprop(0.1), lambda state: [state[0].nu]),
}


@pytest.mark.parametrize(("optimiser", "moments"), MOMENTS.values(), ids=MOMENTS)
def test_moments_of_dropped_and_grown_weights_are_reset(optimiser, moments):
    params, old, new = trees.draw_params(6), trees.draw_mask(6, 0.5), trees.draw_mask(7, 0.5)
    tx = optax.chain(optimiser, pruning(old))
    state: Any = after_a_step(tx, params)
    found = sparsity.reset_moments(state, old, new)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for before, after in zip(moments(state[0]), moments(found[0]), strict=True):
        trees.assert_same(after["encoder"], before["encoder"])
        for name, leaf in trees.kernels(after).items():
            changed = trees.kernels(old)[name] != trees.kernels(new)[name]
            assert changed.any()
            assert not changed.all()
            was = trees.kernels(before)[name]
            assert was.all()
            np.testing.assert_array_equal(leaf, np.where(changed, 0, was))
    # the mask that the state holds is no moment, nor is a count
    trees.assert_same(found[1], state[1])
    counts = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 0]
    assert counts == [leaf for leaf in jax.tree.leaves(found) if leaf.ndim == 0]


def test_moments_of_another_shape_stay():
    params = {"h": {"kernel": jnp.ones((256, 256))}}
    state: Any = after_a_step(optax.adafactor(0.1, min_dim_size_to_factor=128), params)
    ones = jax.tree.map(jnp.ones_like, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    trees.assert_same(sparsity.reset_moments(state, ones, zeros), state)


def test_resetting_compiles_once():
    params, tx = trees.draw_params(8), optax.adam(0.1)
    reset, state = jax.jit(sparsity.reset_moments), after_a_step(tx, params)
    for seed in range(3):
        reset(state, trees.draw_mask(seed, 0.5), trees.draw_mask(seed + 1, 0.5))
    assert trees.programs(reset) == 1


def test_masks_of_two_shapes():
    state = optax.adam(0.1).init(trees.draw_params(9))
    with says("mask h/kernel has shape (2, 2); the tree has (3, 3)"):
        sparsity.reset_moments(state, {"h": {"kernel": np.eye(3)}}, {"h": {"kernel": np.eye(2)}})


def test_the_kinds_of_nodes_stay():
    """Frozen parameters, and a tree that is no mapping all the way down."""
    mask = {"h": {"kernel": np.eye(2)}}
    ones = {"h": {"kernel": jnp.ones((2, 2))}, "rest": [jnp.ones(3), (jnp.ones(1),)]}
    for params in (ones, freeze(ones)):
        tx = optax.chain(optax.adam(0.1), sparsity.keep_masked(mask))
        state: Any
        updates, state = tx.update(params, tx.init(params), params)
        moved: Any = optax.apply_updates(params, updates)
        assert jax.tree.structure(moved) == jax.tree.structure(params)
        np.testing.assert_allclose(moved["h"]["kernel"], 0.9 * np.eye(2), rtol=1e-5)
        found = sparsity.reset_moments(state, mask, {"h": {"kernel": 1 - np.eye(2)}})
        assert jax.tree.structure(found) == jax.tree.structure(state)
        assert not found[0][0].mu["h"]["kernel"].any()
        assert found[0][0].mu["rest"][0].all()
