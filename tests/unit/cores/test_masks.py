"""Masks as values: compared, hashed, checked against a cell's parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snaprl.cores import Mask, OnlineRNN
from snaprl.cores.masks import apply_mask

EYE = np.eye(2)
PARAMS = {"h": {"kernel": np.ones((2, 2)), "bias": np.ones(2)}, "i": {"kernel": np.ones((3, 2))}}


def test_masks_are_equal_where_their_entries_are():
    assert Mask({"h": {"kernel": EYE}}) == Mask({"h": {"kernel": EYE.astype(bool)}})
    assert hash(Mask({"h": {"kernel": EYE}})) == hash(Mask({"h": {"kernel": EYE.astype(int)}}))
    assert Mask({"h": {"kernel": EYE}}) != Mask({"h": {"kernel": 1 - EYE}})
    assert Mask({"h": {"kernel": EYE}}) != Mask({"i": {"kernel": EYE}})
    assert Mask({"h": {"kernel": EYE}}) != Mask({"h": {"kernel": EYE.reshape(1, 4)}})
    assert Mask({}) == Mask({}) != "something else"


def test_the_order_of_names_does_not_matter():
    kernel, bias = np.eye(2), np.ones(2)
    one = Mask({"h": {"kernel": kernel, "bias": bias}, "i": {"kernel": kernel}})
    other = Mask({"i": {"kernel": kernel}, "h": {"bias": bias, "kernel": kernel}})
    assert one == other
    assert hash(one) == hash(other)


def test_a_mask_is_a_copy_that_nobody_changes():
    kernel = np.eye(2)
    mask = Mask({"h": {"kernel": kernel}})
    kernel[:] = 0
    assert mask == Mask({"h": {"kernel": EYE}})
    with pytest.raises(ValueError, match="read-only"):
        mask.leaves["h", "kernel"][0, 0] = 0


def test_a_mask_names_its_leaves():
    mask = Mask({"h": {"kernel": EYE, "bias": np.ones(2)}})
    assert repr(mask) == "Mask(h/bias, h/kernel)"


def test_a_mask_as_a_tree():
    tree = Mask({"h": {"kernel": EYE}, "i": {"kernel": [[1, 0], [0, 0], [1, 1]]}}).tree()
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) == {
        "h": {"kernel": ((2, 2), jnp.bool_)},
        "i": {"kernel": ((3, 2), jnp.bool_)},
    }
    np.testing.assert_array_equal(tree["i"]["kernel"], [[1, 0], [0, 0], [1, 1]])


@pytest.mark.parametrize("bad", [0.5, -1.0, 2.0, np.nan])
def test_a_mask_has_no_other_entries_than_0_and_1(bad):
    kernel = np.eye(2)
    kernel[0, 1] = bad
    with pytest.raises(ValueError, match=r"^mask h/kernel has entries other than 0 and 1$"):
        Mask({"h": {"kernel": kernel}})


def test_a_mask_fits_its_parameters():
    Mask({"h": {"kernel": EYE}}).check(PARAMS)
    Mask({}).check(PARAMS)
    with pytest.raises(
        ValueError,
        match=r"^mask h/weight masks no parameter of the cell; it has "
        r"h/bias, h/kernel, i/kernel$",
    ):
        Mask({"h": {"weight": EYE}}).check(PARAMS)
    with pytest.raises(
        ValueError, match=r"^mask i/kernel has shape \(2, 2\); the parameter has \(3, 2\)$"
    ):
        Mask({"i": {"kernel": EYE}}).check(PARAMS)


def test_a_mask_puts_zeros_and_stops_gradients():
    """NaN and infinity too: 0 times them would not be 0."""
    params = {"h": {"kernel": jnp.array([[1.0, jnp.nan], [jnp.inf, 4.0]]), "bias": jnp.ones(2)}}
    masked = apply_mask(params, {"h": {"kernel": EYE}})
    np.testing.assert_array_equal(masked["h"]["kernel"], [[1, 0], [0, 4]])
    np.testing.assert_array_equal(masked["h"]["bias"], [1, 1])

    def loss(params):
        return sum(
            jnp.sum(x**2) for x in jax.tree.leaves(apply_mask(params, {"h": {"kernel": EYE}}))
        )

    gradient = jax.grad(loss)(params)
    np.testing.assert_array_equal(gradient["h"]["kernel"], [[2, 0], [0, 8]])


def test_a_mask_serves_leaves_with_more_axes_in_front():
    influence = {"h": {"kernel": jnp.ones((5, 2, 2))}, "i": {"kernel": jnp.ones((5, 3, 2))}}
    masked = apply_mask(influence, {"h": {"kernel": EYE}})
    np.testing.assert_array_equal(masked["h"]["kernel"], np.broadcast_to(EYE, (5, 2, 2)))
    np.testing.assert_array_equal(masked["i"]["kernel"], np.ones((5, 3, 2)))


def test_what_is_no_tree_is_refused():
    sentence = (
        "mask is of type ndarray; it must be nested dicts of 0/1 arrays under the cell's own names"
    )
    for make in (Mask, lambda mask: OnlineRNN(nn.GRUCell(3), mask=mask)):
        with pytest.raises(TypeError, match=sentence):
            make(np.eye(3))
