"""Trees as one flat buffer."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaprl.training.actors.layout import Layout

TYPES = [np.float32, np.int32, np.uint8, np.bool_, jnp.bfloat16]
ARRAYS = st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(TYPES))
TREES = st.recursive(
    ARRAYS,
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner) | st.lists(inner, max_size=3),
    max_leaves=6,
)


def draw(tree, seed):
    """Numbers for a tree of `(shape, type)`."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: np.asarray(rng.integers(0, 2, leaf[0]) * 3).astype(leaf[1]),
        tree,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for f, w in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert f.dtype == w.dtype
        np.testing.assert_array_equal(f, w)


@given(TREES, st.integers(0, 99))
def test_what_is_written_is_read(tree, seed):
    wanted = draw(tree, seed)
    layout = pickle.loads(pickle.dumps(Layout(wanted)))
    buffer = bytearray(layout.nbytes)
    layout.write(wanted, buffer)
    assert_same(layout.views(buffer), wanted)


@given(TREES, st.integers(0, 99))
def test_a_device_packs_what_the_host_would_write(tree, seed):
    wanted = draw(tree, seed)
    layout = Layout(wanted)
    packed = np.asarray(layout.pack(jax.tree.map(jnp.asarray, wanted)))
    written = np.zeros(layout.nbytes, np.uint8)
    layout.write(wanted, written)
    np.testing.assert_array_equal(packed, written)


@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), np.zeros((2, 2)), np.zeros(4, np.int8)])
def test_another_shape_or_type_is_named(wrong):
    layout = Layout({"fine": np.zeros(1), "odd": np.zeros((2, 2), np.float32)})
    with pytest.raises(ValueError, match=r"'odd'.*expected"):
        layout.write({"fine": np.zeros(1), "odd": wrong}, bytearray(layout.nbytes))
