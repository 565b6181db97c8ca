"""Trees by the paths of their leaves: masks name some of a tree's leaves, not all."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from snaprl.cores.masks import Mask
from snaprl.cores.types import Array, Params, PyTree

Path = tuple[Any, ...]  # names, mostly
MaskTree = Mapping[str, Any] | Mask


def flat(tree: MaskTree) -> dict[Path, Any]:
    """The leaves of a tree or mask by their paths."""
    return traverse_util.flatten_dict(tree.tree() if isinstance(tree, Mask) else tree)


def flat_mask(mask: MaskTree) -> dict[Path, Array]:
    """The leaves of a mask by their paths, bool, in the order that jax gives them.

    They are copies. A mask lies beside the parameters and in an optimiser's state, and a step that
    may overwrite both must not find one buffer in two places.
    """
    return {path: jnp.array(leaf, bool) for path, leaf in sorted(flat(mask).items())}


def plain_mask(mask: MaskTree) -> dict[str, Any]:
    """A mask as nested dicts of bool arrays."""
    return nested(flat_mask(mask))


def nested(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """Undoes `flat`."""
    return traverse_util.unflatten_dict(leaves)


def replaced(tree: PyTree, leaves: Mapping[Path, Any]) -> PyTree:
    """A tree with some leaves exchanged; its kinds of nodes stay as they are."""

    def leaf(path: tuple, value: Any) -> Any:
        return leaves.get(tuple(getattr(part, "key", None) for part in path), value)

    return jax.tree.map_with_path(leaf, tree)


def fitting(tree: Params, mask: Mapping[Path, Array]) -> dict[Path, Array]:
    """The leaves of `tree` that a mask names.

    Raises:
      ValueError: a leaf is missing or has another shape; the sentence names it.
    """
    leaves = flat(tree)
    for path, keep in mask.items():
        name = "/".join(path)
        if path not in leaves:
            known = ", ".join("/".join(p) for p in leaves)
            raise ValueError(f"mask {name} masks nothing in the tree; it has {known}")
        if jnp.shape(leaves[path]) != keep.shape:
            raise ValueError(
                f"mask {name} has shape {keep.shape}; the tree has {jnp.shape(leaves[path])}"
            )
    return {path: leaves[path] for path in mask}
