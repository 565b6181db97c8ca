"""Many updates in one program: what loops on the device have in common."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from snaprl.training.meters import Chunk

Array = jax.Array
PyTree = Any
Update = Callable[[Any], tuple[Any, tuple[dict, dict]]]


def make_updates(update: Update, state: PyTree, updates: Array, most: int) -> tuple[PyTree, Chunk]:
    """Makes `updates` updates, as many as are asked for while the program runs; to be traced.

    Args:
      update: `state -> (state, (metrics, sums))`.
      state: before the first.
      updates: `[]`.
      most: that `updates` may be.

    Returns:
      The state after the last, the metrics of every update, and the sums over all.
    """
    metrics, sums = jax.eval_shape(update, state)[1]
    history = jax.tree.map(lambda m: jnp.zeros((most, *m.shape), m.dtype), metrics)
    sums = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), sums)

    def body(k: Array, carry: tuple) -> tuple:
        state, history, sums = carry
        state, (metrics, news) = update(state)
        history = jax.tree.map(lambda h, m: h.at[k].set(m), history, metrics)
        return state, history, jax.tree.map(jnp.add, sums, news)

    state, history, sums = jax.lax.fori_loop(0, updates, body, (state, history, sums))
    return state, Chunk(updates=0, metrics=history, episodes=sums)
