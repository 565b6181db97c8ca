"""Choosing weights by their scores, in fixed shapes: how many is data, never a shape.

So one compiled program serves every density. Weights are compared in groups, the columns of
matrices `[E, G]`: E entries compete with one another in each of G groups.
"""

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from snaprl.cores.sparsity.trees import MaskTree, Path, fitting, flat_mask, nested
from snaprl.cores.types import Array, Params

Tied = Iterable[tuple[str, ...]]  # groups of layers, each with one mask for all


class Scope(enum.Enum):
    """Which weights are compared with one another, and among which their number is kept."""

    UNIT = "unit"  # those that enter one unit: its fan-in is counted
    LAYER = "layer"  # those of one kernel
    GLOBAL = "global"  # all that the mask names


def choose(
    select: Callable[..., Array],
    mask: MaskTree,
    *trees: Params,
    scope: Scope,
    tied: Tied = (),
) -> dict[str, Any]:
    """Makes a new mask, group by group.

    Args:
      select: `(present, *scores) -> bool [E, G]`, of the present mask and, for each of `trees`, the
        entries' magnitudes, all `[E, G]`. Magnitudes are at least 0; NaN counts as 0.
      mask: 0/1 leaves.
      *trees: what is compared; each has the leaves that the mask names, in the same shapes. Their
        other leaves are not looked at.
      scope: what a group is.
      tied: groups of layer names, such as `gates(cell)`: those side by side share one mask, and a
        weight's magnitude is the Euclidean norm over them.

    Returns:
      A mask with the leaves of `mask`, bool.

    Raises:
      ValueError: a tree lacks a leaf of the mask, or has it in another shape.
    """
    present = flat_mask(mask)
    compared = [fitting(tree, present) for tree in trees]
    bundles = _bundles(present, tied)
    for paths in bundles:
        _check_tied(paths, present)
    # tied masks are equal; where they are not, any of them keeps a weight
    kept = [jnp.stack([present[path] for path in paths]).any(axis=0) for paths in bundles]
    scores = [[_magnitude([leaves[p] for p in paths]) for paths in bundles] for leaves in compared]
    arranged = [_arrange(leaves, scope) for leaves in (kept, *scores)]
    chosen = [select(*matrices) for matrices in zip(*arranged, strict=True)]
    new = _restore(chosen, kept, scope)
    leaves = {path: leaf for paths, leaf in zip(bundles, new, strict=True) for path in paths}
    return nested({path: leaves[path] for path in present})


def largest(scores: Array, count: Array) -> Array:
    """Marks the `count` largest of every column; of equal ones, the first.

    Args:
      scores: `[E, G]`.
      count: `[]` or `[1, G]`, how many; more than E is all.
    """
    rank = jnp.argsort(jnp.argsort(scores, axis=0, descending=True), axis=0)
    return rank < count


def share(fraction: ArrayLike, of: ArrayLike) -> Array:
    """`round(fraction * of)` as an integer."""
    return jnp.round(fraction * of).astype(jnp.int32)


def check_fraction(name: str, value: ArrayLike) -> None:
    """Raises where a number that is known is not in [0, 1]; a traced one cannot be looked at."""
    if isinstance(value, int | float | np.number) and not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it must lie in [0, 1]")


def _bundles(paths: Iterable[Path], tied: Tied) -> list[tuple[Path, ...]]:
    """Paths that share a mask: layers of one group, side by side, in leaves of one name."""
    group = {layer: number for number, layers in enumerate(tied) for layer in layers}
    bundles: dict[Any, tuple[Path, ...]] = {}
    for path in paths:
        key = path
        if len(path) > 1 and path[-2] in group:
            key = (path[:-2], group[path[-2]], path[-1])
        bundles[key] = (*bundles.get(key, ()), path)
    return list(bundles.values())


def _check_tied(paths: tuple[Path, ...], present: Mapping[Path, Array]) -> None:
    """Raises where leaves of several shapes are to share a mask."""
    if len({present[path].shape for path in paths}) > 1:
        found = ", ".join(f"{'/'.join(path)} {present[path].shape}" for path in paths)
        raise ValueError(f"tied layers have one mask, but their shapes differ: {found}")


def _magnitude(leaves: list[Array]) -> Array:
    """The norm over tied leaves, in float32 at least."""
    joined = jnp.stack(leaves)
    joined = joined.astype(jnp.promote_types(joined.dtype, jnp.float32))
    norm = jnp.abs(joined[0]) if len(leaves) == 1 else jnp.linalg.norm(joined, axis=0)
    return jnp.where(jnp.isnan(norm), 0.0, norm)


def _arrange(leaves: list[Array], scope: Scope) -> list[Array]:
    """Leaves as matrices `[E, G]`."""
    if scope is Scope.UNIT:
        return [leaf.reshape(-1, leaf.shape[-1]) for leaf in leaves]
    columns = [leaf.reshape(-1, 1) for leaf in leaves]
    return [jnp.concatenate(columns)] if scope is Scope.GLOBAL and columns else columns


def _restore(matrices: list[Array], like: list[Array], scope: Scope) -> list[Array]:
    """Undoes `_arrange`."""
    if scope is Scope.GLOBAL and like:
        ends = [sum(leaf.size for leaf in like[: i + 1]) for i in range(len(like) - 1)]
        matrices = jnp.split(matrices[0], ends)
    return [m.reshape(leaf.shape) for m, leaf in zip(matrices, like, strict=True)]
