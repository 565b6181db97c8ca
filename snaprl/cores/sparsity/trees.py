"""Trees by the paths of their leaves: masks name some of a tree's leaves, not all."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from snaprl.cores.masks import Mask, names
from snaprl.cores.types import Array, Params, PyTree

Path = tuple[Any, ...]  # names, mostly
MaskTree = Mapping[str, Any] | Mask


def flat(tree: MaskTree) -> dict[Path, Any]:
    """The leaves of a tree or mask by their paths, in the order that jax gives them.

    A tree may be an `nnx.State`, with or without its variables.
    """
    tree = tree.tree() if isinstance(tree, Mask) else tree
    # a list is an array that is written out
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda node: isinstance(node, list))
    return {names(path): leaf for path, leaf in leaves}


def flat_mask(mask: MaskTree) -> dict[Path, Array]:
    """The leaves of a mask by their paths, bool.

    They are copies. A mask lies beside the parameters and in an optimiser's state, and a step that
    may overwrite both must not find one buffer in two places.
    """
    return {path: jnp.array(leaf, bool) for path, leaf in flat(mask).items()}


def plain_mask(mask: MaskTree) -> dict[str, Any]:
    """A mask as nested dicts of bool arrays."""
    return nested(flat_mask(mask))


def nested(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """Undoes `flat`."""
    return traverse_util.unflatten_dict(leaves)


def replaced(tree: PyTree, leaves: Mapping[Path, Any]) -> PyTree:
    """A tree with some leaves exchanged; its kinds of nodes stay as they are."""

    def leaf(path: tuple, value: Any) -> Any:
        return leaves.get(names(path), value)

    return jax.tree.map_with_path(leaf, tree)


def fitting(tree: Params, mask: Mapping[Path, Array]) -> dict[Path, Array]:
    """The leaves of `tree` that a mask names.

    Raises:
      ValueError: a leaf is missing or has another shape; the sentence names it.
    """
    leaves = flat(tree)
    for path, keep in mask.items():
        name = "/".join(map(str, path))
        if path not in leaves:
            known = ", ".join("/".join(map(str, p)) for p in leaves)
            raise ValueError(f"mask {name} masks nothing in the tree; it has {known}")
        if jnp.shape(leaves[path]) != keep.shape:
            raise ValueError(
                f"mask {name} has shape {keep.shape}; the tree has {jnp.shape(leaves[path])}"
            )
    return {path: leaves[path] for path in mask}
