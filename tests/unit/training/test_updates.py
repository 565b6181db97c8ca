"""Updates in one program: as many as asked for, in moments between which one may ask to stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snaprl.training import updates
from snaprl.training.updates import Stoppable, make_updates

MOST = 100


def counting():
    """Each update adds one, and tells the count."""

    def update(count):
        return count + 1, ({"loss": count * 1.0}, {"episodes": jnp.float32(2)})

    return jax.jit(lambda count, n: make_updates(update, count, n, MOST))


@pytest.mark.parametrize("asked", [1, 2, 37, MOST])
def test_moments_come_to_the_same_as_one_program(asked):
    run = Stoppable(counting())
    count, chunk = run(jnp.int32(0), asked, lambda: False)
    assert (int(count), chunk.updates) == (asked, asked)
    np.testing.assert_array_equal(chunk.metrics["loss"], np.arange(asked))
    assert chunk.episodes["episodes"] == 2 * asked
    count, chunk = run(count, 5, lambda: False)
    np.testing.assert_array_equal(chunk.metrics["loss"], asked + np.arange(5))
    assert chunk.episodes["episodes"] == 10


def test_a_wish_to_stop_is_heard_after_a_moment():
    count, chunk = Stoppable(counting())(jnp.int32(0), MOST, lambda: True)
    assert int(count) == chunk.updates == 1  # some are always made
    asked = iter([False, False, True])
    count, chunk = Stoppable(counting())(jnp.int32(0), MOST, lambda: next(asked))
    assert int(count) == chunk.updates == len(chunk.metrics["loss"]) < MOST


def test_moments_grow_until_they_last_and_shrink_when_they_last_too_long(monkeypatch):
    clock = {"now": 0.0, "each": 0.01}
    monkeypatch.setattr(updates.time, "monotonic", lambda: clock["now"])
    asked = []

    def chunk(count, n):
        asked.append(int(n))
        clock["now"] += clock["each"] * int(n)
        return counting()(count, n)

    run = Stoppable(chunk)
    run(jnp.int32(0), MOST, lambda: False)
    assert asked == [1, 2, 4, 8, 16, 32, 32, 5]
    asked.clear()
    clock["each"] = 0.1
    run(jnp.int32(0), 60, lambda: False)
    assert asked == [32, 16, 8, 4]
