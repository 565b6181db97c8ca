"""Segments reach the learner in order, or their gap is counted."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from snaprl.agents import Segment
from snaprl.training.actors.actor import Played
from snaprl.training.actors.engine import Message
from snaprl.training.actors.order import Order


class Released(list):
    """Messages of numbered segments that note when their memory is given back."""

    def message(self, actor: int, number: int, life: int = 0) -> Message:
        segment = Segment(*[()] * 9, number=np.full(2, number, np.int32))
        played = Played(segment, np.zeros(4), np.zeros((), bool))
        return Message(played, actor, life, 0, lambda: self.append((actor, life, number)))


def taken(order: Order) -> list[tuple[int, int]]:
    """Actor and number of all that is ready."""
    found = []
    while (messages := order.take(1)) is not None:
        found += [(m.actor, m.number) for m in messages]
    return found


@given(st.integers(2, 9), st.data())
def test_a_shuffle_within_the_window_is_undone(count, data):
    window = data.draw(st.integers(1, 4))
    # no segment is overtaken by more than `window` others
    late = {n: n + data.draw(st.integers(0, window)) for n in range(count)}
    arrivals = sorted(range(count), key=lambda n: (late[n], n))
    order, released = Order([0], window), Released()
    for number in arrivals:
        order.put(released.message(0, number))
    assert taken(order) == [(0, n) for n in range(count)]
    assert (order.missing, order.repeated, order.stale) == (0, 0, 0)
    assert released == []


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.integers(1, 4), st.integers(0, 3))
def test_every_segment_is_used_once_or_counted(numbers, window, first):
    order, released = Order([first], window), Released()
    used = []
    for number in numbers:
        order.put(released.message(0, number))
        used += [number for _, number in taken(order)]
    assert used == sorted(set(used))
    assert len(released) == order.repeated
    held = len(numbers) - len(used) - order.repeated
    assert 0 <= held <= window
    if used:
        skipped = used[-1] + 1 - first - len(used)
        assert order.missing == skipped


def test_what_is_late_beyond_the_window_is_given_up():
    order, released = Order([0], window=2), Released()
    for number in (0, 2, 3):
        order.put(released.message(0, number))
    assert taken(order) == [(0, 0)]
    order.put(released.message(0, 4))
    assert taken(order) == [(0, 2), (0, 3), (0, 4)]
    assert order.missing == 1
    order.put(released.message(0, 1))
    assert (order.repeated, released) == (1, [(0, 0, 1)])


def test_an_update_takes_the_oldest_of_different_actors():
    order, released = Order([0, 0, 0], window=1), Released()
    for actor, number in [(2, 0), (2, 1), (0, 0)]:
        order.put(released.message(actor, number))
    assert order.take(3) is None
    batch = order.take(2)
    assert batch is not None
    assert [(m.actor, m.number) for m in batch] == [(0, 0), (2, 0)]
    assert len(order) == 1
    assert order.take(2) is None


def test_a_replaced_actor_starts_anew():
    order, released = Order([0, 0], window=3), Released()
    order.put(released.message(0, 0))
    order.put(released.message(0, 2))  # waits for 1, which will never come
    order.put(released.message(0, 0, life=1))
    assert released == [(0, 0, 2)]
    order.put(released.message(0, 1))  # on its way when its actor died
    assert released == [(0, 0, 2), (0, 0, 1)]
    assert order.stale == 2
    order.put(released.message(0, 1, life=1))
    assert taken(order) == [(0, 0), (0, 0), (0, 1)]


def test_the_same_number_twice_is_used_once():
    order, released = Order([0], window=3), Released()
    for number in (1, 1, 0, 0):
        order.put(released.message(0, number))
    assert taken(order) == [(0, 0), (0, 1)]
    assert order.repeated == 2
