"""Trees of arrays as one flat buffer: what goes through shared memory, or over a network."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
PyTree = Any
ALIGNMENT = 64  # bytes: a cache line, and more than any number needs


class _Place(NamedTuple):
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Layout:
    """Where each array of a tree lies in a buffer.

    Attributes:
      nbytes: the buffer's size.
    """

    def __init__(self, like: PyTree):
        """Lays out a tree of arrays of numbers, or of their shapes and types."""
        self._like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
        leaves, self._structure = jax.tree.flatten(self._like)
        self._places, offset = [], 0
        for leaf in leaves:
            place = _Place(offset, tuple(leaf.shape), np.dtype(leaf.dtype))
            self._places.append(place)
            offset += -(-place.nbytes // ALIGNMENT) * ALIGNMENT
        self.nbytes = offset

    def __reduce__(self) -> tuple:
        return Layout, (self._like,)

    def views(self, buffer: Any) -> PyTree:
        """The tree whose numpy arrays are windows into `buffer`."""
        arrays = [
            np.frombuffer(buffer, p.dtype, math.prod(p.shape), p.offset).reshape(p.shape)
            for p in self._places
        ]
        return jax.tree.unflatten(self._structure, arrays)

    def write(self, tree: PyTree, buffer: Any) -> None:
        """Writes a tree of host arrays into `buffer`.

        Raises:
          ValueError: an array has another shape or type than the layout; the message names it.
        """
        found = jax.tree.leaves_with_path(tree)
        for (path, leaf), window in zip(found, jax.tree.leaves(self.views(buffer)), strict=True):
            array = np.asarray(leaf)
            if array.shape != window.shape or array.dtype != window.dtype:
                raise ValueError(
                    f"{jax.tree_util.keystr(path)} is {array.dtype}{list(array.shape)} where "
                    f"{window.dtype}{list(window.shape)} is expected"
                )
            window[...] = array

    def pack(self, tree: PyTree) -> Array:
        """The buffer, uint8 `[nbytes]`, of a tree on a device: traced, so that one copy is made."""
        pieces = []
        for leaf, place in zip(jax.tree.leaves(tree), self._places, strict=True):
            data = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
            pieces.append(jax.lax.bitcast_convert_type(data, jnp.uint8).ravel())
            pieces.append(jnp.zeros(-place.nbytes % ALIGNMENT, jnp.uint8))
        return jnp.concatenate(pieces) if pieces else jnp.zeros(0, jnp.uint8)
