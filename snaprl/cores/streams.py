"""Streams one after the other, or side by side.

On a CPU a stream's influence should stay in the caches while it is worked on, and should be written
back where it was: a whole new copy costs three times the update. An accelerator takes all at once,
and so do several devices, over which streams may be spread.
"""

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp

from snaprl.cores.types import PyTree

TERMS = 16  # of a sum over streams: with 32, the caches' lines for one place run out


def _side_by_side() -> bool:
    return jax.default_backend() != "cpu" or jax.device_count() > 1


def computed_once(x: jax.Array) -> jax.Array:
    """`x`, kept out of the loops that read it.

    XLA's CPU backend fuses elementwise arithmetic into the loop that reads it, even where that loop
    goes over all weights of a unit and so would repeat what is done per unit as often. It does not
    fuse a gather of everything, unless it sees that there is one row only.
    """
    if _side_by_side():
        return x
    axis = next((k for k, length in enumerate(x.shape) if length > 1), 0)
    return jnp.take(x, jnp.arange(x.shape[axis]), axis, mode="clip")


def update(advance: Callable[[Any, Any], Any], state: PyTree, inputs: PyTree) -> PyTree:
    """`advance(state_b, inputs_b)` for every stream b: state `[B, ...]`, inputs `[T, B, ...]`."""
    if _side_by_side():
        return jax.vmap(advance, in_axes=(0, 1))(state, inputs)

    def body(b: int, state: PyTree) -> PyTree:
        # XLA would copy it twice, for what reads its rows in turn and for what looks them up
        before = jax.lax.optimization_barrier(_take(state, b, 0))
        after = advance(before, _take(inputs, b, 1))
        return jax.tree.map(
            lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, b, 0), state, after
        )

    return jax.lax.fori_loop(0, _streams(state), body, state)


def update_blocks(
    advance: Callable[[Any, Any], Any], state: PyTree, inputs: PyTree, size: int = 16
) -> PyTree:
    """The same for `size` streams at a time, for what keeps streams in vectors: one of floats."""
    streams = _streams(state)
    if _side_by_side() or streams <= size:
        return advance(state, inputs)

    def block(start: Any, state: PyTree, size: int) -> PyTree:
        def take(x: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, start, size, axis)

        before = jax.tree.map(lambda x: take(x, 0), state)
        after = advance(before, jax.tree.map(lambda x: take(x, 1), inputs))
        return jax.tree.map(
            lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, 0), state, after
        )

    whole, rest = divmod(streams, size)
    state = jax.lax.fori_loop(0, whole, lambda k, state: block(k * size, state, size), state)
    return block(whole * size, state, rest) if rest else state


def total_of_rows(
    f: Callable[..., Any], matrices: tuple[jax.Array, ...], *states: PyTree
) -> PyTree:
    """The sum of `f(look_up, *states_b)` over all streams b: matrices and states are `[B, ...]`.

    `look_up(k, rows)` gives rows of a stream's `matrices[k]`. On a CPU they are looked up where
    they lie: a stream's own matrix would first be copied out of that of all.
    """
    if _side_by_side():
        found = jax.vmap(lambda own, *states: f(lambda k, rows: rows_at(own[k], rows), *states))
        return jax.tree.map(lambda x: x.sum(0), found(matrices, *states))
    flat = [x.reshape(-1, *x.shape[2:]) for x in matrices]

    def stream(b: Any) -> PyTree:
        starts = [b * x.shape[1] for x in matrices]
        return f(lambda k, rows: rows_at(flat[k], starts[k] + rows), *_take(states, b, 0))

    def body(b: int, sums: PyTree) -> PyTree:
        return jax.tree.map(jnp.add, sums, stream(b))

    return jax.lax.fori_loop(1, _streams(matrices), body, stream(0))


def total_of_elements(f: Callable[..., Any], *states: PyTree) -> PyTree:
    """The sum of `f(*states_b)`, where `f` is elementwise arithmetic, which XLA fuses into the sum.

    On a CPU streams are added up a few at a time, all of them side by side, and so on with the
    sums: a loop over streams would copy them, and a loop that reads more of them at once finds
    their places in the same few lines of the caches.
    """
    streams = _streams(states)
    if _side_by_side():
        return jax.tree.map(lambda x: x.sum(0), jax.vmap(f)(*states))
    if streams == 1:
        return f(*_take(states, 0, 0))

    def some(start: int, stop: int | None) -> PyTree:
        return jax.tree.map(lambda x: x[start:stop], states)

    terms = min(TERMS, streams)
    each, rest = divmod(streams, terms)
    runs = [jax.vmap(f)(*some(k * each, (k + 1) * each)) for k in range(terms)]
    whole = total_of_elements(lambda x: x, jax.tree.map(lambda *xs: reduce(add, xs), *runs))
    if not rest:
        return whole
    return jax.tree.map(jnp.add, whole, total_of_elements(f, *some(terms * each, None)))


def rows_at(values: jax.Array, index: jax.Array) -> jax.Array:
    """`values[index]`, of rows that are there."""
    # indices of ours are never negative nor too large: to ask would be done for every row
    return values.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _streams(tree: PyTree, axis: int = 0) -> int:
    return jax.tree.leaves(tree)[0].shape[axis]


def _take(tree: PyTree, stream: Any, axis: int) -> PyTree:
    def leaf(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(x, stream, axis, keepdims=False)

    return jax.tree.map(leaf, tree)
