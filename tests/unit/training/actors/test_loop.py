"""The loop of actors and learner: what an update takes in, what is counted, what is saved."""

import time
from collections import deque

import jax
import numpy as np
import optax
import pytest
from unit.training.loops import GAMMA, LENGTH, MAZE_SPACES, TIMEOUT, maze_agent

from snaprl.agents import Segment
from snaprl.envs import PureVectorEnv, TMaze
from snaprl.training.actors import Actor, ActorLoop, LocalEngine, played_like
from snaprl.training.actors.loop import Ages
from snaprl.training.errors import UserError
from snaprl.training.host_envs import HostEnvs
from snaprl.training.learner import make_learner

B, T = 4, 3  # streams of all actors, steps of a segment
AGENT = maze_agent()


def actor(index: int, actors: int) -> Actor:
    streams = B // actors
    vector = PureVectorEnv(TMaze(length=LENGTH, timeout=TIMEOUT).make(), streams)
    place = {"unroll": T, "discount": GAMMA, "index": index}
    return Actor(AGENT, HostEnvs(vector), **place)


class Scrambled(LocalEngine):
    """A local engine whose messages pass through the hands of a test."""

    def __init__(self, actors: int, change=lambda message, k: [message]):
        super().__init__([actor(k, actors) for k in range(actors)])
        self._change, self._count, self._waiting = change, 0, deque()

    def receive(self, timeout_s):
        if not self._waiting:
            message = super().receive(timeout_s)
            self._waiting.extend(self._change(message, self._count))
            self._count += 1
        return self._waiting.popleft() if self._waiting else None


def make_loop(engine: LocalEngine, actors: int, per_update: int, *, rate: float = 0.1, window=2):
    whole = per_update == actors and type(engine) is LocalEngine
    learner = make_learner(AGENT.loss, optax.sgd(rate), whole_bank=whole)
    sizes = {"streams": B, "unroll": T, "actors": actors, "per_update": per_update}
    return ActorLoop(AGENT, learner, engine, window=window, **sizes)


def leaves(state):
    """All numbers of a state."""
    keys = jax.tree.map(
        lambda x: (
            jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        ),
        state,
    )
    return [np.array(x) for x in jax.tree.leaves(keys)]


def assert_equal(found, wanted):
    for f, w in zip(leaves(found), leaves(wanted), strict=True):
        np.testing.assert_array_equal(f, w)


def test_what_is_played_has_the_shapes_that_were_promised():
    for streams in (1, B):
        promised = played_like(AGENT, MAZE_SPACES[0], streams=streams, unroll=T)
        one = actor(0, B // streams)
        _, played = one.play(AGENT.init(jax.random.key(0), streams), one.start(0))

        def form(tree):
            return jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), tree)

        assert form(played) == form(promised)


@pytest.mark.parametrize(("actors", "per_update"), [(1, 1), (2, 2), (2, 1), (4, 2)])
def test_a_run_that_goes_on_is_the_run_that_never_stopped(actors, per_update):
    def fresh():
        return make_loop(LocalEngine([actor(k, actors) for k in range(actors)]), actors, per_update)

    loop = fresh()
    assert loop.exact
    assert loop.steps_per_update == B // actors * per_update * T
    state, _ = loop.run(loop.init(jax.random.key(1)), 3)
    saved = jax.tree.map(lambda x: x if hasattr(x, "sharding") else np.array(x), state)
    saved = saved._replace(learner=jax.tree.map(np.array, state.learner))
    wanted, wanted_chunk = loop.run(state, 4)
    other = fresh()
    other.init(jax.random.key(2))
    found, chunk = other.run(other.restore(saved), 4)
    assert_equal(found, wanted)
    np.testing.assert_array_equal(chunk.metrics["loss"], wanted_chunk.metrics["loss"])
    assert chunk.metrics["gaps"].sum() == 0


def test_two_actors_that_share_an_update_learn_like_one_with_all_streams():
    """Up to the noise of their actions, which is none where parameters never move."""
    grads = {}
    for actors in (1, 2):
        engine = LocalEngine([actor(k, actors) for k in range(actors)])
        loop = make_loop(engine, actors, actors, rate=0.0)
        _, chunk = loop.run(loop.init(jax.random.key(0)), 2)
        grads[actors] = chunk
        assert chunk.updates == 2
    assert grads[1].metrics.keys() == grads[2].metrics.keys()


def test_segments_out_of_order_are_put_right():
    waiting = []

    def swap(message, k):
        """Every second message of an actor overtakes the one before it."""
        waiting.append(message)
        if len(waiting) < 4:
            return []
        a, b, c, d = waiting
        waiting.clear()
        return [c, d, a, b]  # of actors 0, 1, 0, 1

    plain = make_loop(Scrambled(2), 2, 2, rate=0.0)
    wanted, wanted_chunk = plain.run(plain.init(jax.random.key(0)), 4)
    scrambled = make_loop(Scrambled(2, swap), 2, 2, rate=0.0)
    found, chunk = scrambled.run(scrambled.init(jax.random.key(0)), 4)
    assert_equal(found.learner, wanted.learner)
    np.testing.assert_array_equal(chunk.metrics["loss"], wanted_chunk.metrics["loss"])
    assert chunk.metrics["gaps"].sum() == 0


def test_a_lost_segment_is_a_gap_of_its_streams():
    def lose(message, k):
        return [] if k == 4 else [message]  # the third one of actor 0

    loop = make_loop(Scrambled(2, lose), 2, 1, window=1)
    _, chunk = loop.run(loop.init(jax.random.key(0)), 10)
    assert chunk.metrics["gaps"].sum() == B // 2


def test_a_replaced_actor_starts_its_streams_anew():
    def replace(message, k):
        number = message.number
        if number < 2 or message.actor == 0:
            return [message]
        segment = message.segment._replace(number=message.segment.number - 2)
        return [message._replace(played=message.played._replace(segment=segment), life=1)]

    loop = make_loop(Scrambled(2, replace), 2, 2)
    state, chunk = loop.run(loop.init(jax.random.key(0)), 5)
    assert chunk.metrics["gaps"].tolist() == [0, 0, B // 2, 0, 0]
    assert state.learner.number.tolist() == [5, 5, 3, 3]


class Slow(LocalEngine):
    """Actors of which one plays the rest of an update only with the parameters of the last."""

    ahead = True

    def __init__(self):
        super().__init__([actor(k, 2) for k in range(2)])
        self.given = 0

    def publish(self, variables, version):
        super().publish(jax.tree.map(np.array, variables), version)  # for others, a copy

    def receive(self, timeout_s):
        if self.given % 2 and self._version < self.given // 2:
            time.sleep(1e-3)
            return None
        self.given += 1
        return super().receive(timeout_s)


def test_parameters_are_given_out_while_the_loop_waits_for_segments():
    engine = Slow()
    loop = make_loop(engine, 2, 2)
    asked = []

    def stop():
        asked.append(True)
        return len(asked) > 10_000

    _, chunk = loop.run(loop.init(jax.random.key(0)), 4, stop)
    assert chunk.updates == 4
    assert engine.given == 8


def test_it_stops_when_asked_to_even_while_it_waits():
    loop = make_loop(Scrambled(1, lambda message, k: [message] if k < 2 else []), 1, 1)
    asked = []

    def stop():
        asked.append(True)
        return len(asked) > 6

    _, chunk = loop.run(loop.init(jax.random.key(0)), 100, stop)
    assert chunk.updates == 2
    _, chunk = loop.run(loop.init(jax.random.key(0)), 100, lambda: True)
    assert chunk.updates == 0


def test_the_age_of_influence_counts_updates_since_resets_and_gaps():
    """Three streams, by hand: (update, streams, where an episode begins at [t, stream], number)."""

    def segment(rows, begins, number):
        first = np.zeros((T + 1, len(rows)), bool)
        for t, stream in begins:
            first[t, stream] = True
        empty = dict.fromkeys(Segment._fields, ())
        numbers = np.full(len(rows), number)
        return Segment(**empty | {"first": first, "stream": np.array(rows), "number": numbers})

    ages = Ages(3)
    ages.note(segment([0, 1, 2], [(0, 0), (0, 1), (0, 2)], 0), 0)
    assert ages.mean(1) == 1
    ages.note(segment([1, 2], [(1, 0)], 1), 5)  # stream 1 begins an episode
    assert ages.mean(6) == (6 + 1 + 6) / 3
    ages.note(segment([0], [(T, 0)], 1), 6)  # the next segment's first step: not yet
    assert ages.mean(7) == (7 + 2 + 7) / 3
    ages.note(segment([2], [], 3), 9)  # stream 2 has lost its segment 2
    assert ages.mean(10) == (10 + 5 + 1) / 3


def test_what_was_counted_goes_on_after_a_resume():
    def twice(message, k):
        return [message, message] if k == 1 else [message]

    first = make_loop(Scrambled(1, twice), 1, 1)
    state, _ = first.run(first.init(jax.random.key(0)), 5)
    assert state.counts.tolist() == [0, 0, 1, 0]
    second = make_loop(Scrambled(1, twice), 1, 1)
    second.init(jax.random.key(1))
    state, _ = second.run(second.restore(state), 5)
    assert state.counts.tolist() == [0, 0, 2, 0]


def test_what_was_learnt_before_actors_failed_for_good_comes_back():
    def fail(message, k):
        if k == 3:
            raise UserError("actor 0 is gone")
        return [message]

    plain = make_loop(Scrambled(1), 1, 1)
    wanted, _ = plain.run(plain.init(jax.random.key(0)), 3)
    engine = Scrambled(1, fail)
    engine.exact = False
    loop = make_loop(engine, 1, 1)
    found, chunk = loop.run(loop.init(jax.random.key(0)), 9)
    assert_equal(found.learner, wanted.learner)
    assert (chunk.updates, str(chunk.failure)) == (3, "actor 0 is gone")
    # where a run must go on exactly, half a batch that has been played is not for keeping
    exact = make_loop(Scrambled(1, fail), 1, 1)
    with pytest.raises(UserError, match="gone"):
        exact.run(exact.init(jax.random.key(0)), 9)
