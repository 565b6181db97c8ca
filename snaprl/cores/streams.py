"""Streams one after the other, or side by side.

On a CPU a stream's influence should stay in the caches while it is worked on, and should be written
back where it was: a whole new copy costs three times the update. An accelerator takes all at once,
and so do several devices, over which streams may be spread.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from snaprl.cores.types import PyTree


def _side_by_side() -> bool:
    return jax.default_backend() != "cpu" or jax.device_count() > 1


def update(advance: Callable[[Any, Any], Any], state: PyTree, inputs: PyTree) -> PyTree:
    """`advance(state_b, inputs_b)` for every stream b: state `[B, ...]`, inputs `[T, B, ...]`."""
    if _side_by_side():
        return jax.vmap(advance, in_axes=(0, 1))(state, inputs)

    def body(b: int, state: PyTree) -> PyTree:
        after = advance(_take(state, b, 0), _take(inputs, b, 1))
        return jax.tree.map(
            lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, b, 0), state, after
        )

    return jax.lax.fori_loop(0, _streams(state), body, state)


def each(f: Callable[[Any], Any], inputs: PyTree) -> PyTree:
    """`f(inputs_b)` for every stream b, stacked in front; inputs are `[T, B, ...]`."""
    if _side_by_side():
        return jax.vmap(f, in_axes=1)(inputs)
    return jax.lax.map(lambda b: f(_take(inputs, b, 1)), jnp.arange(_streams(inputs, axis=1)))


def total(f: Callable[..., Any], *states: PyTree) -> PyTree:
    """The sum of `f(*states_b)` over all streams b; states are `[B, ...]`."""
    if _side_by_side():
        return jax.tree.map(lambda x: x.sum(0), jax.vmap(f)(*states))
    first = f(*_take(states, 0, 0))

    def body(b: int, sums: PyTree) -> PyTree:
        return jax.tree.map(jnp.add, sums, f(*_take(states, b, 0)))

    return jax.lax.fori_loop(1, _streams(states), body, first)


def _streams(tree: PyTree, axis: int = 0) -> int:
    return jax.tree.leaves(tree)[0].shape[axis]


def _take(tree: PyTree, stream: Any, axis: int) -> PyTree:
    def leaf(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(x, stream, axis, keepdims=False)

    return jax.tree.map(leaf, tree)
