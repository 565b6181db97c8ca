"""Streams of sequences, each of which is a function of a key, its length and the time in it.

A stream stores no sequence: what stands at a step is drawn anew from the sequence's key whenever
it is asked for, so that a sequence may be as long as it likes, and looking back costs nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from snaprl.training.supervised.types import Array, Piece, PyTree

ENDLESS = 2**31 - 2  # steps; time is counted in 32 bits

# (key, shared) -> length; length -> steps; (key, length, t) -> input [K], target [K], has a target
DrawLength = Callable[[Array, PyTree], Array]
Duration = Callable[[Array], Array]
Emit = Callable[[Array, Array, Array], tuple[Array, Array, Array]]


class Place(NamedTuple):
    """Where streams stand in their sequences."""

    key: Array  # [B]  of the stream, from which those of its sequences come
    sequence: Array  # [B] int32  the number of the sequence
    length: Array  # [B] int32
    time: Array  # [B] int32  of the step that was given last
    clock: Array  # [B] int32  steps since the last boundary that no sequence may cross


def init(data: PyTree, key: Array, streams: int) -> Place:
    """Streams before their first sequence; `key` is consumed."""
    del data
    zeros = jnp.zeros(streams, jnp.int32)
    return Place(jax.random.split(key, streams), zeros - 1, zeros, zeros + ENDLESS, zeros)


def drawing(
    draw_length: DrawLength, duration: Duration, emit: Emit, *, within: int = 0
) -> Callable:
    """Makes a task's `draw`.

    Args:
      draw_length: `(key, shared) -> length` of a new sequence.
      duration: how many steps a sequence of that length takes.
      emit: what stands at a step, for one stream: `(key, length, t) -> (input, target, mask)`. It
        may draw from the key as often as it likes, and must always draw the same.
      within: steps, counted from the stream's first, into which sequences have to fit whole: one
        that would be cut waits for the next such stretch, and `t` goes on past the duration of the
        one before. What is longer than a stretch is cut after all. 0 for none of that.

    Returns:
      `(data, places, shared, T) -> (places, Piece)`.
    """

    def draw(data: PyTree, place: Place, shared: PyTree, steps: int) -> tuple[Place, Piece]:
        del data

        def step(place: Place, _: None) -> tuple[Place, Place]:
            over = place.time + 1 >= duration(place.length)
            keys = jax.vmap(jax.random.fold_in)(place.key, 2 * (place.sequence + 1))
            lengths = jax.vmap(lambda key: draw_length(key, shared))(keys)
            begins, clock = over, place.clock
            if within:
                begins = (over & (clock + duration(lengths) <= within)) | (clock == 0)
                clock = (clock + 1) % within
            place = Place(
                place.key,
                place.sequence + begins,
                jnp.where(begins, lengths, place.length),
                jnp.where(begins, 0, place.time + 1),
                clock,
            )
            return place, place._replace(key=place.sequence)  # keys do not change: none is stacked

        place, way = jax.lax.scan(step, place, None, length=steps)

        def at(key: Array, sequence: Array, length: Array, time: Array) -> tuple:
            return emit(jax.random.fold_in(key, 2 * sequence + 1), length, time)

        over_streams = jax.vmap(at)
        inputs, targets, mask = jax.vmap(over_streams, in_axes=(None, 0, 0, 0))(
            place.key, way.sequence, way.length, way.time
        )
        return place, Piece(inputs, targets, mask, way.time == 0)

    return draw


def symbol(key: Array, t: Array, count: int) -> Array:
    """The symbol that stands at time t of a sequence, each of `count` as likely: [] int32."""
    return jax.random.randint(jax.random.fold_in(key, t), (), 0, count)


def endless(emit: Emit) -> Callable:
    """`drawing` of a single sequence per stream, which never ends."""
    return drawing(
        lambda key, shared: jnp.int32(ENDLESS), lambda length: jnp.full_like(length, ENDLESS), emit
    )
