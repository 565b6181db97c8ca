"""Actors play, the learner learns: the loop over environments that step on the host."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from snaprl.agents import Agent, Segment
from snaprl.cores import compiler_options
from snaprl.training.actors.actor import EPISODES
from snaprl.training.actors.engine import Engine
from snaprl.training.actors.order import Order
from snaprl.training.errors import UserError
from snaprl.training.learner import Learner, LearnerState
from snaprl.training.meters import Chunk

Array = jax.Array
PyTree = Any
Stop = Callable[[], bool]
WAIT_S = 0.5  # how often a wait for segments looks whether to stop
LOOK_S = 0.002  # and whether an update is done whose parameters actors wait for


COUNTED = ("restarts", "missing", "repeated", "stale")  # from the start of a run on


class ActorLoopState(NamedTuple):
    """All that decides what the loop does next, as far as the engine can tell it."""

    learner: LearnerState
    actors: PyTree  # `Engine.snapshot()`
    key: Array
    counts: np.ndarray  # [4] int32  what has happened to actors and segments, see `COUNTED`


class ActorLoop:
    """Trains on what actors play.

    Where actors go on playing while the learner learns, the batch after next is on its way to the
    device during an update, and parameters are given out as soon as they are there.

    Attributes:
      steps_per_update: environment steps that one update consumes.
      exact: whether a restored run goes on exactly; else its episodes start anew.
    """

    def __init__(
        self,
        agent: Agent,
        learner: Learner,
        engine: Engine,
        *,
        streams: int,
        unroll: int,
        actors: int,
        per_update: int,
        window: int,
        put: Callable[[PyTree], PyTree] = jax.device_put,
        keep: Callable[[LearnerState], LearnerState] = jax.device_put,
    ):
        """Compiles nothing yet.

        Args:
          agent: what the actors play with.
          learner: with `whole_bank=True` only where an update takes in all streams and none is
            ever lost.
          engine: runs the actors; this now owns it.
          streams: of all actors together.
          unroll: steps of a segment.
          actors: how many there are.
          per_update: segments, of as many actors, that make an update.
          window: segments of an actor that may wait for one that is late.
          put: takes a segment of numpy arrays to the learner's devices.
          keep: takes the learner's state to them.
        """
        self._agent, self._engine, self._streams = agent, engine, streams
        self._per_update, self._window = per_update, window
        self._put, self._keep = put, keep
        self._steps_per_segment = streams // actors * unroll
        self.steps_per_update = self._steps_per_segment * per_update
        self.exact = engine.exact
        self.knows_success = False
        self._learner = learner
        options = compiler_options()
        self._update = jax.jit(learner.update, donate_argnums=0, compiler_options=options)
        self._norm = jax.jit(_norm)
        self._order = Order([0] * actors, window)
        self._ages = Ages(streams)
        self._segments = np.zeros(actors)  # of each actor, since the last report
        self._version = 0
        self._counts = _none()  # before this process
        self._batch: _Batch | None = None  # on its way

    def init(self, key: Array) -> ActorLoopState:
        """Starts parameters, streams and actors; `key` is consumed."""
        key, agent_key, state_key = jax.random.split(key, 3)
        learner = self._fresh(agent_key, state_key)
        key = self._start(key)
        return ActorLoopState(self._keep(learner), self._engine.snapshot(), key, _none())

    def shapes(self, key: Array) -> ActorLoopState:
        """What its state is made of, to restore one; actors that play on their own stay alone."""
        if not self._engine.ahead:
            return self.init(key)
        learner = jax.eval_shape(self._fresh, key, key)
        return ActorLoopState(learner, self._engine.snapshot(), key, _none())

    def _fresh(self, agent_key: Array, state_key: Array) -> LearnerState:
        variables = self._agent.init(agent_key, self._streams)
        return self._learner.init(variables, self._agent.initial_state(state_key, self._streams))

    def restore(self, state: ActorLoopState) -> ActorLoopState:
        """Puts the actors where `state` left them; where that cannot be, their episodes restart."""
        learner = self._keep(state.learner)
        key = self._start(state.key)
        self._engine.restore(state.actors)
        if self.exact:
            key = state.key  # nothing was drawn
        self._order = Order(self._engine.numbers(), self._window)
        self._version = int(learner.updates)
        self._ages = Ages(self._streams, self._version)
        self._counts = np.asarray(state.counts)
        return ActorLoopState(learner, self._engine.snapshot(), key, state.counts)

    def run(
        self, state: ActorLoopState, updates: int, stop: Stop = lambda: False
    ) -> tuple[ActorLoopState, Chunk]:
        """Makes `updates` updates, or fewer where `stop` says so; `state` is consumed.

        Where actors fail for good, what was learnt before comes back with the failure.

        Raises:
          UserError: they failed, and the run has to go on exactly: no state between two
            updates would do.
        """
        learner, engine, history, failure = state.learner, self._engine, [], None
        totals, watched = np.zeros(len(EPISODES)), []
        begin_s = time.monotonic()
        self._segments[:] = 0
        try:
            self._publish(learner)
            while len(history) < updates:
                batch, self._batch = self._batch or self._collect(stop), None
                if batch is None:
                    break
                if engine.ahead:
                    queue = len(self._order) + engine.waiting()
                    watched.append({"lag": self._version - batch.version, "queue": queue})
                learner, metrics = self._update(learner, batch.segment)
                history.append(metrics)
                totals += batch.episodes
                self._version += 1
                if engine.ahead and len(history) < updates:
                    self._batch = self._collect(stop, learner)  # while the device computes
                else:
                    self._publish(learner)
        except UserError as error:
            if self.exact:
                raise
            failure = error
        metrics = _columns(jax.device_get(history)) | _columns(watched)
        if engine.ahead and history:
            metrics |= self._told(learner, len(history), time.monotonic() - begin_s)
        episodes: dict[str, Any] = dict(zip(EPISODES, totals, strict=True))
        chunk = Chunk(len(history), metrics, episodes, failure)
        return ActorLoopState(learner, engine.snapshot(), state.key, self._counted()), chunk

    def close(self) -> None:
        """Ends the actors."""
        self._engine.close()

    def _start(self, key: Array) -> Array:
        key, seed_key = jax.random.split(key)
        self._engine.start(int(jax.random.bits(seed_key)))
        self._order, self._batch = Order(self._engine.numbers(), self._window), None
        return key

    def _publish(self, learner: LearnerState) -> None:
        self._engine.publish(learner.variables, self._version)

    def _collect(self, stop: Stop, learner: LearnerState | None = None) -> "_Batch | None":
        """Waits for the segments of an update; None where it is time to stop.

        `learner` is what an update under way makes: its parameters are given out as soon as they
        are there.
        """
        messages = self._order.take(self._per_update)
        while messages is None and not stop():
            if learner is not None and _is_ready(learner.updates):
                self._publish(learner)
                learner = None
            message = self._engine.receive(WAIT_S if learner is None else LOOK_S)
            if message is not None:
                self._order.put(message)
                messages = self._order.take(self._per_update)
        if learner is not None:
            self._publish(learner)
        if messages is None:
            return None
        self.knows_success |= any(bool(m.played.knows_success) for m in messages)
        segment = _joined([m.segment for m in messages])
        self._ages.note(segment, self._version)
        batch = _Batch(
            segment=self._put(segment),
            episodes=np.sum([m.played.episodes for m in messages], axis=0),
            version=float(np.mean([m.version for m in messages])),
        )
        for message in messages:
            self._segments[message.actor] += 1
            message.release()
        return batch

    def _told(self, learner: LearnerState, updates: int, elapsed_s: float) -> dict[str, Any]:
        """What is worth watching of actors that play on their own."""
        rates = self._segments * self._steps_per_segment / elapsed_s
        told = self._engine.report() | {
            "slowest_actor_steps_per_s": float(rates.min()),
            "fastest_actor_steps_per_s": float(rates.max()),
            "influence_norm": float(self._norm(learner.bank.influence)),
            "influence_age": self._ages.mean(self._version),
            "updates_per_s": updates / elapsed_s,
        }
        told |= zip(COUNTED, map(float, self._counted()), strict=True)
        return {name: np.array([value]) for name, value in told.items()}

    def _counted(self) -> np.ndarray:
        """What was counted since the start of the run, see `COUNTED`."""
        order, restarts = self._order, self._engine.report().get("restarts", 0)
        here = np.array([restarts, order.missing, order.repeated, order.stale], np.int32)
        return self._counts + here


class Ages:
    """How many updates ago the streams' influence last started from zero.

    Influence carried over many updates is made of Jacobians of as many parameters.
    """

    def __init__(self, streams: int, updates: int = 0):
        """Of streams that start after `updates` updates."""
        self._born = np.full(streams, updates)
        self._number = np.zeros(streams, int)

    def note(self, segment: Segment, updates: int) -> None:
        """Takes in a segment, which `updates` updates went before."""
        rows = segment.stream
        gap = segment.number != self._number[rows]
        restarted = gap | np.asarray(segment.first[:-1]).any(0)
        self._born[rows] = np.where(restarted, updates, self._born[rows])
        self._number[rows] = segment.number + 1

    def mean(self, updates: int) -> float:
        """Updates, averaged over the streams, after `updates` of them."""
        return float(updates - self._born.mean())


class _Batch(NamedTuple):
    segment: Segment
    episodes: np.ndarray
    version: float


def _is_ready(x: Any) -> bool:
    """Whether the device has computed it."""
    return x.is_ready()


def _none() -> np.ndarray:
    return np.zeros(len(COUNTED), np.int32)


def _joined(segments: list[Segment]) -> Segment:
    """Segments side by side, in new memory."""

    def join(axis: int) -> Callable[..., np.ndarray]:
        return lambda *xs: np.concatenate(xs, axis)

    whole = jax.tree.map(join(1), *(s._replace(hidden=(), stream=(), number=()) for s in segments))
    rows = [(s.hidden, s.stream, s.number) for s in segments]
    hidden, stream, number = jax.tree.map(join(0), *rows)
    return whole._replace(hidden=hidden, stream=stream, number=number)


def _columns(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else {})}


def _norm(tree: PyTree) -> Array:
    """The norm of all numbers in a tree."""
    numbers = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return optax.tree.norm(numbers) if numbers else jnp.zeros(())
