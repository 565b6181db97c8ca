"""Many updates in one program: what loops on the device have in common."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snaprl.training.meters import Chunk

Array = jax.Array
PyTree = Any
Update = Callable[[Any], tuple[Any, tuple[dict, dict]]]
LEAST_S, MOST_S = 0.3, 0.8  # that a program is to take, which nothing stops on its way


def make_updates(
    update: Update, state: PyTree, updates: Array, most: int
) -> tuple[PyTree, tuple[dict, dict]]:
    """Makes `updates` updates, as many as are asked for while the program runs; to be traced.

    Args:
      update: `state -> (state, (metrics, sums))`.
      state: before the first.
      updates: `[]`.
      most: that `updates` may be.

    Returns:
      The state after the last, and the metrics and the sums of every update, `[most]` each.
    """
    history = jax.tree.map(
        lambda m: jnp.zeros((most, *m.shape), m.dtype), jax.eval_shape(update, state)[1]
    )

    def body(k: Array, carry: tuple) -> tuple:
        state, history = carry
        state, news = update(state)
        return state, jax.tree.map(lambda h, m: h.at[k].set(m), history, news)

    return jax.lax.fori_loop(0, updates, body, (state, history))


def until_report(update: int, updates: int, per_report: int) -> int:
    """How many updates to make until the next report.

    Reports come every `per_report` updates, wherever the run was stopped in between. The last one
    takes in what would be less than half of another, which would tell of noise.

    Args:
      update: how many were made.
      updates: of the whole training.
      per_report: of a report.
    """
    count, left = per_report - update % per_report, updates - update
    return left if left - count < per_report / 2 else count


def most_at_once(per_report: int) -> int:
    """The most that `until_report` asks for."""
    return per_report * 3 // 2


class Stoppable:
    """Makes updates for a moment at a time, and asks in between whether it is to stop."""

    def __init__(self, program: Callable[[PyTree, Array], tuple[PyTree, tuple[dict, dict]]]):
        """Wraps a jitted `(state, updates) -> (state, (metrics, sums))` made of `make_updates`."""
        self._program, self._at_once = program, 1

    def __call__(
        self, state: PyTree, updates: int, stop: Callable[[], bool]
    ) -> tuple[PyTree, Chunk]:
        """Makes `updates` updates, or fewer, though some, where it is asked to stop."""
        parts: list[Any] = []
        left = updates
        while left and not (parts and stop()):
            count, begin_s = min(self._at_once, left), time.monotonic()
            state, history = self._program(state, jnp.int32(count))
            parts.append(jax.tree.map(lambda h, n=count: h[:n], jax.device_get(history)))
            took_s = time.monotonic() - begin_s
            if took_s < LEAST_S and count == self._at_once:
                self._at_once *= 2
            elif took_s > MOST_S:
                self._at_once = max(1, count // 2)
            left -= count
        metrics, sums = jax.tree.map(lambda *moments: np.concatenate(moments), *parts)
        # summed here and not in the program: the same to the bit, however long the moments were
        episodes = {name: np.sum(values, 0, np.float64) for name, values in sums.items()}
        return state, Chunk(updates - left, metrics, episodes)
