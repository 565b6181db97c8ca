"""Streams that start anew inside a segment, and what they forget by it."""

import jax
import jax.numpy as jnp

from snaprl.cores.types import Array, PyTree


def where_reset(reset: Array | None, replacement: PyTree, tree: PyTree) -> PyTree:
    """Puts `replacement` where `reset` is true: by `where`, since 0 x NaN is NaN.

    `reset` has the leading axes of the leaves, `[B]` or `[T, B]`; None resets nothing. A
    `replacement` of 0.0 serves every leaf.
    """
    if reset is None:
        return tree

    def leaf(x: Array, r: Array | float) -> Array:
        return jnp.where(reset.reshape(reset.shape + (1,) * (x.ndim - reset.ndim)), r, x)

    if isinstance(replacement, float):
        return jax.tree.map(lambda x: leaf(x, replacement), tree)
    return jax.tree.map(leaf, tree, replacement)


def remembered(anew: Array | None, influence: PyTree) -> PyTree:
    """The influence before a segment, 0 for the streams `[B]` that start anew at its first step."""

    def leaf(x: Array) -> Array:  # keys are no influence
        return where_reset(anew, 0.0, x) if jnp.issubdtype(x.dtype, jnp.inexact) else x

    return jax.tree.map(leaf, influence)


def at_start(resets: Array | None) -> Array | None:
    """The resets `[B]` before the first step, of those `[T, B]` of a segment."""
    return None if resets is None else resets[0]


def reset_after(resets: Array | None) -> tuple[Array | None, Array | None]:
    """For each step `[T, ...]`, and for the segment's start `[...]`: did a reset come after it?"""
    if resets is None:
        return None, None
    since = jax.lax.cummax(resets.astype(jnp.int32), axis=0, reverse=True).astype(bool)
    return jnp.concatenate([since[1:], jnp.zeros_like(since[:1])]), since[0]
