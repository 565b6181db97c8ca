"""How dense a tree is."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from snaprl.cores import Mask, sparsity


def test_the_density_of_a_mask():
    mask = sparsity.mask(
        nn.GRUCell(10), 4, sparsity.fixed_fan_in(3), inputs=sparsity.uniform(0.5), seed=1
    )
    found = sparsity.density(mask)
    expected = {f"h{gate}/kernel": 0.3 for gate in "rzn"} | {f"i{g}/kernel": 0.5 for g in "rzn"}
    assert found == pytest.approx(expected | {"total": (0.3 * 100 + 0.5 * 40) / 140})
    assert found == sparsity.density(Mask(mask))
    assert all(type(value) is float for value in found.values())


def test_the_density_of_parameters_counts_what_is_not_0():
    params = {"h": {"kernel": jnp.array([[0.0, -1], [np.nan, 0]]), "bias": jnp.zeros(2)}}
    assert sparsity.density(params) == {"h/kernel": 0.5, "h/bias": 0.0, "total": 1 / 3}


def test_a_tree_without_entries():
    for tree in ({}, {"h": {"kernel": np.zeros((0, 3))}}):
        with pytest.raises(
            ValueError, match=r"^the tree has no entries; give a mask or parameters$"
        ):
            sparsity.density(tree)
