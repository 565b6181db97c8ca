"""Masks inside an optimiser: masked weights stay exactly 0, and pruning follows its schedule."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from unit.cores.sparsity import trees

from snaprl.cores import sparsity


def says(sentence):
    """The whole sentence on a line of its own: jax adds a note on how it filters tracebacks."""
    return pytest.raises(ValueError, match=f"(?m)^{re.escape(sentence)}$")


def gradients(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)


def masked_entries(params, mask):
    values, keep = trees.kernels(params), trees.kernels(mask)
    return np.concatenate([values[name][~keep[name].astype(bool)] for name in keep])


@pytest.mark.parametrize(
    "optimiser",
    [optax.adam(0.1), optax.adamw(0.1), optax.sgd(0.1, momentum=0.9), optax.rmsprop(0.1)],
    ids=["adam", "adamw", "momentum", "rmsprop"],
)
def test_masked_weights_are_0_from_the_first_update_on(optimiser):
    """Dense gradients, weight decay, weights loaded where the mask is 0: all the same."""
    params: Any = jax.tree.map(jnp.asarray, trees.draw_params(6))
    mask = trees.draw_mask(6, 0.5)
    tx = optax.chain(optimiser, sparsity.keep_masked(mask))
    updates: Any
    plain_state, state = optimiser.init(params), tx.init(params)
    for step in range(3):
        plain, plain_state = optimiser.update(gradients(params, step), plain_state, params)
        updates, state = tx.update(gradients(params, step), state, params)
        # the others move as they would without a mask
        for name, keep in trees.kernels(mask).items():
            np.testing.assert_array_equal(
                trees.kernels(updates)[name][keep], trees.kernels(plain)[name][keep]
            )
        trees.assert_same(updates["encoder"], plain["encoder"])
        params = optax.apply_updates(params, updates)
        assert not masked_entries(params, mask).any()


def test_pruning_follows_its_schedule():
    params: Any = jax.tree.map(jnp.asarray, trees.draw_params(7))
    schedule = sparsity.cubic_schedule(0.2, begin=2, end=8, every=3)
    ones = trees.draw_mask(7, 1.1)
    tx = optax.chain(optax.adam(0.1), sparsity.magnitude_pruning(ones, schedule))
    state: Any = tx.init(params)

    @jax.jit
    def update(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    mask = ones
    for step in range(11):
        plain, _ = optax.adam(0.1).update(gradients(params, step), state[0], params)
        moved: Any = optax.apply_updates(params, plain)
        params, state = update(params, state, gradients(params, step))
        # what the update leads to is what is pruned
        mask = sparsity.magnitude_mask(moved, mask, float(schedule(step)))
        trees.assert_same(sparsity.mask_of(state), mask)
        assert not masked_entries(params, mask).any()
        for name, leaf in trees.kernels(mask).items():
            assert leaf.sum() == np.round(np.float32(schedule(step)) * leaf.size), name
    assert trees.programs(update) == 1
    assert state[1].step == 11
    assert sparsity.density(mask)["total"] == pytest.approx(0.2, abs=0.02)


def test_a_schedule_that_rises_brings_nothing_back():
    params: Any = jax.tree.map(jnp.asarray, trees.draw_params(8))

    def falls_and_rises(step):
        return jnp.where(step == 1, 0.3, 0.8)

    tx = sparsity.magnitude_pruning(trees.draw_mask(8, 1.1), falls_and_rises)
    state = tx.init(params)
    still = jax.tree.map(jnp.zeros_like, params)
    masks = []
    for _ in range(3):
        updates, state = tx.update(still, state, params)
        params = optax.apply_updates(params, updates)
        masks.append(sparsity.mask_of(state))
    trees.assert_same(masks[2], masks[1])
    assert masks[0]["memory"]["hr"]["kernel"].sum() > masks[1]["memory"]["hr"]["kernel"].sum()


def test_a_narrow_update_still_leads_to_0():
    params: Any = {"h": {"kernel": jnp.array([[1 / 3, 2.0]])}}
    tx = sparsity.keep_masked({"h": {"kernel": np.array([[0, 1]])}})
    narrow = jax.tree.map(lambda p: jnp.ones_like(p, jnp.bfloat16), params)
    updates, _ = tx.update(narrow, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params["h"]["kernel"], [[0, 3]])


def test_an_update_without_parameters():
    params = trees.draw_params(9)
    for tx in (
        sparsity.keep_masked(trees.draw_mask(9, 0.5)),
        sparsity.magnitude_pruning(trees.draw_mask(9, 0.5), lambda step: jnp.asarray(0.5)),
    ):
        with says("masked weights need params; call update(updates, state, params)"):
            tx.update(params, tx.init(params))
        with says(
            "mask memory/hr/bias masks nothing in the tree; it has encoder/bias, encoder/kernel"
        ):
            tx.update({"encoder": params["encoder"]}, tx.init(params), params)
