"""Mask trees: for every cell of flax's, shared by the gates or one for each."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snaprl.cores import LRUCell, Mask, sparsity

M, N = 6, 8
RECURRENT = {
    nn.SimpleCell: ["h"],
    nn.GRUCell: ["hr", "hz", "hn"],
    nn.MGUCell: ["hf", "hn"],
    nn.LSTMCell: ["hi", "hf", "hg", "ho"],
    nn.OptimizedLSTMCell: ["hi", "hf", "hg", "ho"],
}
INPUT = {kind: ["i" + name[1:] for name in names] for kind, names in RECURRENT.items()}
INPUT[nn.SimpleCell] = ["i"]
EVERY = pytest.mark.parametrize("kind", RECURRENT)
FEW = sparsity.fixed_fan_in(3)


def says(sentence, kind=ValueError):
    return pytest.raises(kind, match=f"^{re.escape(sentence)}$")


def shapes(cell):
    def init():
        carry = cell.initialize_carry(jax.random.key(0), (1, M))
        return cell.init(jax.random.key(0), carry, jnp.zeros((1, M)))

    return jax.eval_shape(init)["params"]


@EVERY
def test_a_mask_fits_its_cell(kind):
    cell = kind(N)
    recurrent = sparsity.mask(cell, M, FEW)
    both = sparsity.mask(cell, M, FEW, inputs=sparsity.fixed_fan_in(2))
    inputs = sparsity.mask(cell, M, None, inputs=sparsity.fixed_fan_in(2))
    for tree in (recurrent, both, inputs):
        Mask(tree).check(shapes(cell))
    assert list(recurrent) == RECURRENT[kind]
    assert sorted(both) == sorted(RECURRENT[kind] + INPUT[kind])
    assert list(inputs) == INPUT[kind]
    for name in RECURRENT[kind]:
        np.testing.assert_array_equal(both[name]["kernel"].sum(axis=0), 3)
        # a pattern for the inputs does not disturb that of the units
        np.testing.assert_array_equal(both[name]["kernel"], recurrent[name]["kernel"])
    for name in INPUT[kind]:
        np.testing.assert_array_equal(both[name]["kernel"].sum(axis=0), 2)
    assert sparsity.mask(cell, M, None) == {}


@EVERY
def test_gates_share_a_mask_or_do_not(kind):
    one, *others = sparsity.mask(kind(N), M, FEW).values()
    for other in others:
        np.testing.assert_array_equal(one["kernel"], other["kernel"])
        assert not np.shares_memory(one["kernel"], other["kernel"])
    one, *others = sparsity.mask(kind(N), M, FEW, shared=False).values()
    assert all((one["kernel"] != other["kernel"]).any() for other in others)


@EVERY
def test_gates_are_the_layers_that_a_mask_is_shared_by(kind):
    assert sparsity.gates(kind(N)) == (tuple(RECURRENT[kind]), tuple(INPUT[kind]))


def test_the_seed_decides():
    def kernels(seed):
        tree = sparsity.mask(nn.GRUCell(N), M, FEW, inputs=FEW, shared=False, seed=seed)
        return np.concatenate([leaf["kernel"] for leaf in tree.values()])

    np.testing.assert_array_equal(kernels(1), kernels(1))
    np.testing.assert_array_equal(kernels(1), kernels(np.random.default_rng(1)))
    assert (kernels(1) != kernels(2)).any()
    rng = np.random.default_rng(1)
    assert (kernels(rng) != kernels(rng)).any()


def test_a_users_own_pattern():
    def band(shape, rng):
        del rng
        below = np.tri(shape[0], shape[1], 1, dtype=int)
        return below * below.T

    tree = sparsity.mask(nn.SimpleCell(N), M, band)
    assert tree["h"]["kernel"].dtype == bool
    np.testing.assert_array_equal(tree["h"]["kernel"], band((N, N), None))


def test_what_a_mistake_is_told():
    with says(
        "the pattern gave an array of shape (3,) for a kernel of shape (8, 8); it must keep the "
        "shape"
    ):
        sparsity.mask(nn.GRUCell(N), M, lambda shape, rng: np.ones(3))
    with says("the pattern gave entries other than 0 and 1; a mask has no others"):
        sparsity.mask(nn.GRUCell(N), M, lambda shape, rng: np.full(shape, 0.5))
    with says("input_size is 0; it must be an integer of at least 1"):
        sparsity.mask(nn.GRUCell(N), 0, FEW)
    with pytest.raises(TypeError, match="ConvLSTMCell"):
        sparsity.mask(nn.ConvLSTMCell(N, (3,)), M, FEW)


def test_a_cell_without_recurrent_kernels():
    """A tree without a leaf would be a dense core, and nobody would know."""
    with says(
        "the units of LRUCell read no others: it has no recurrent kernel for a pattern; give None "
        "for it, and inputs= where the input kernels are to have one"
    ):
        sparsity.mask(LRUCell(N), M, FEW)
    assert sparsity.mask(LRUCell(N), M, None, inputs=FEW)
