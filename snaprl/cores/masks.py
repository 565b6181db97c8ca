"""Masks: which weights a sparse core has.

A mask is a tree of 0/1 arrays shaped like the cell's parameters; a leaf that is missing is dense.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from snaprl.cores.types import Array, Params


class Mask:
    """A mask that can be compared and hashed, so that a module which holds one can be, too."""

    def __init__(self, tree: Mapping[str, Any], *, room: float = 1.0):
        """Copies `tree`.

        Args:
          tree: nested mappings of 0/1 arrays.
          room: how much larger what `SnAp` of order 2 and higher and `RTRL` carry is made than this
            mask needs, for the masks that `rewire` puts in its place: 1.5 is half as much again.
            The influence holds so many times the pairs of units; a fan-in that is the same for all
            units stays as it is, and another one grows as much, up to every input.

        Raises:
          TypeError: `tree` is no mapping.
          ValueError: an entry is neither 0 nor 1 or is being traced, or the room is no number of at
            least 1.
        """
        if not isinstance(tree, Mapping):
            raise TypeError(
                f"mask is of type {type(tree).__name__}; it must be nested dicts of 0/1 arrays "
                "under the cell's own names, such as sparsity.mask makes"
            )
        if not isinstance(room, numbers.Real) or not 1 <= room < math.inf:
            raise ValueError(
                f"room is {room!r}; it must be a number of at least 1, which is no more than needed"
            )
        self.room = room
        self.leaves = {path: _concrete(path, leaf) for path, leaf in _walk(tree)}
        for path, leaf in self.leaves.items():
            if not np.isin(leaf, (0, 1)).all():
                raise ValueError(f"mask {'/'.join(path)} has entries other than 0 and 1")
            leaf.setflags(write=False)
        self._key = (
            room,
            tuple(
                (path, leaf.shape, leaf.astype(bool).tobytes())
                for path, leaf in self.leaves.items()
            ),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"Mask({', '.join('/'.join(path) for path in self.leaves)})"

    def check(self, params: Params) -> None:
        """Compares the leaves with the parameters that they mask.

        Raises:
          ValueError: a leaf masks no parameter, or has another shape.
        """
        shapes = {path: leaf.shape for path, leaf in _walk(params)}
        for path, leaf in self.leaves.items():
            name = "/".join(path)
            if path not in shapes:
                known = ", ".join("/".join(p) for p in shapes)
                raise ValueError(f"mask {name} masks no parameter of the cell; it has {known}")
            if leaf.shape != shapes[path]:
                raise ValueError(
                    f"mask {name} has shape {leaf.shape}; the parameter has {shapes[path]}"
                )

    def check_leaves(self, old: "Mask") -> None:
        """Raises ValueError where this mask cannot take the place of `old`."""
        if self.leaves.keys() != old.leaves.keys():
            raise ValueError(f"the new mask has other leaves, {self}, than the core's own, {old}")

    def tree(self) -> dict[str, Any]:
        """The mask as nested dicts of boolean numpy arrays."""
        nested: dict[str, Any] = {}
        for (*folders, last), leaf in self.leaves.items():
            place = nested
            for folder in folders:
                place = place.setdefault(folder, {})
            place[last] = leaf.astype(bool)
        return nested


def check_held(held: Mapping[str, Any], own: Params) -> None:
    """Compares what the collection `sparsity` of a core holds with the mask that it was made with.

    Raises:
      ValueError: there is no mask in its place, or one of other leaves, shapes or values.
    """
    if "cell" not in held:
        raise ValueError(
            f"the variables hold sparsity/{', sparsity/'.join(held)} and no sparsity/cell, the "
            'mask\'s place: {"sparsity": {"cell": mask}}'
        )
    if not isinstance(held["cell"], Mapping):
        raise ValueError(
            f"sparsity/cell is of type {type(held['cell']).__name__}; it must be nested dicts of "
            "0/1 arrays, as the module's own mask is"
        )
    found = {"/".join(path): leaf for path, leaf in _walk(held["cell"])}
    shapes = {"/".join(path): leaf.shape for path, leaf in _walk(own)}
    if found.keys() != shapes.keys():
        raise ValueError(
            f"sparsity/cell has the leaves {', '.join(found) or 'none'}, and the mask that the "
            f"module was made with has {', '.join(shapes) or 'none'}"
        )
    for name, leaf in found.items():
        if not hasattr(leaf, "dtype"):
            raise ValueError(
                f"sparsity/cell/{name} is of type {type(leaf).__name__}; it must be an array"
            )
        if np.shape(leaf) != shapes[name]:
            raise ValueError(
                f"sparsity/cell/{name} has shape {np.shape(leaf)}; the parameter has {shapes[name]}"
            )
        # what is being traced has no values yet, and to read others off a device takes its time
        known = leaf.dtype == bool or isinstance(leaf, jax.core.Tracer)
        if not known and not np.isin(leaf, (0, 1)).all():
            raise ValueError(f"sparsity/cell/{name} has entries other than 0 and 1")


def apply_mask(tree: Params, mask: Params) -> dict[str, Any]:
    """Puts 0 where `mask` is 0, whatever stood there; leaves broadcast from the right.

    The gradient of a masked entry is 0.
    """

    def leaf(path: tuple, value: Array) -> Array:
        keep: Any = mask
        for name in names(path):
            keep = keep.get(name) if keep is not None else None
        if keep is None:
            return value
        keep = keep.reshape((1,) * (value.ndim - keep.ndim) + keep.shape)
        return jnp.where(keep != 0, value, 0)

    return jax.tree.map_with_path(leaf, tree)


def names(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """The names on jax's path to a leaf; an nnx variable's array has none beside the variable's."""
    found = tuple(
        getattr(part, "key", getattr(part, "idx", getattr(part, "name", None))) for part in path
    )
    return found[:-1] if path and path[-1] == jax.tree_util.GetAttrKey("value") else found


def _concrete(path: tuple[str, ...], leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.core.Tracer):
        raise ValueError(
            f"mask {'/'.join(path)} is being traced, and what a core carries is made by a mask's "
            "values; make the mask, and what has it, outside of jit"
        )
    return np.array(leaf)


def _walk(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found = []
    named = {str(name): value for name, value in tree.items()}  # nnx counts what is in a list
    for name, value in sorted(named.items()):
        if isinstance(value, Mapping):
            found += _walk(value, (*path, name))
        else:
            found.append(((*path, name), value))
    return found
