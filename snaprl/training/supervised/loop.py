"""Task and learner in one jitted program; between reports nothing comes to the host."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from snaprl.cores import compiler_options
from snaprl.training.learner import Learner, LearnerState
from snaprl.training.meters import Chunk
from snaprl.training.supervised.model import SequenceModel
from snaprl.training.supervised.types import (
    Array,
    PyTree,
    SupervisedSegment,
    Symbols,
    Task,
    Totals,
)
from snaprl.training.updates import Stoppable, make_updates


class SupervisedState(NamedTuple):
    """All that decides what the loop does next."""

    learner: LearnerState
    streams: PyTree  # [B, ...]  where each stands in the task
    shared: PyTree  # what they have in common, such as a curriculum's level


class SupervisedLoop:
    """Trains on B streams of a task; it acts nowhere, and the rest is as in `DeviceLoop`.

    Attributes:
      steps_per_update: tokens that one update consumes, `T B`.
      exact: a restored run goes on exactly.
      knows_success: no task of these has episodes.
    """

    exact = True
    knows_success = False

    def __init__(
        self,
        model: SequenceModel,
        learner: Learner,
        task: Task,
        *,
        streams: int,
        unroll: int,
        updates_per_chunk: int,
    ):
        """Compiles nothing yet.

        Args:
          model: what learns.
          learner: with `whole_bank=True`, and a loss that tells the `Totals` of a segment.
          task: what is learnt.
          streams: B.
          unroll: steps between two updates, T.
          updates_per_chunk: updates that one call of `run` may make at most.
        """
        self._model, self._learner, self._task = model, learner, task
        self._streams, self._unroll, self._updates = streams, unroll, updates_per_chunk
        self.steps_per_update = streams * unroll
        self._data = jax.tree.map(jnp.asarray, task.data)
        self._init = jax.jit(self._init_traced)
        options = compiler_options()
        self._chunk = jax.jit(self._chunk_traced, donate_argnums=1, compiler_options=options)
        self._run = Stoppable(lambda state, updates: self._chunk(self._data, state, updates))

    def init(self, key: Array) -> SupervisedState:
        """Starts parameters and streams; `key` is consumed."""
        return self._init(self._data, key)

    def run(
        self, state: SupervisedState, updates: int, stop: Callable[[], bool] = lambda: False
    ) -> tuple[SupervisedState, Chunk]:
        """Makes `updates` updates, at most `updates_per_chunk`, or fewer where it is asked to stop.

        `state` is consumed.
        """
        return self._run(state, updates, stop)

    def restore(self, state: SupervisedState) -> SupervisedState:
        """Goes on from a state that was saved, exactly."""
        return jax.tree.map(jnp.asarray, state)

    def close(self) -> None:
        """Nothing is open."""

    def _init_traced(self, data: PyTree, key: Array) -> SupervisedState:
        params_key, state_key, task_key = jax.random.split(key, 3)
        bank = self._model.initial_state(state_key, self._streams)
        streams = self._task.init(data, task_key, self._streams)
        _, piece = self._task.draw(data, streams, self._task.shared, 1)
        variables = self._model.init(params_key, bank, piece.inputs, piece.first)
        return SupervisedState(
            self._learner.init(variables, bank),
            streams,
            jax.tree.map(jnp.asarray, self._task.shared),
        )

    def _chunk_traced(
        self, data: PyTree, state: SupervisedState, updates: Array
    ) -> tuple[SupervisedState, tuple[dict, dict]]:
        def update(state: SupervisedState) -> tuple[SupervisedState, tuple[dict, dict]]:
            return self._update(data, state)

        return make_updates(update, state, updates, self._updates)

    def _update(
        self, data: PyTree, state: SupervisedState
    ) -> tuple[SupervisedState, tuple[dict, dict]]:
        """Reads T steps and learns from them."""
        streams, piece = self._task.draw(data, state.streams, state.shared, self._unroll)
        segment = SupervisedSegment(
            *piece,
            hidden=state.learner.bank.hidden,
            stream=jnp.arange(self._streams, dtype=jnp.int32),
            number=state.learner.number,
        )
        learner, metrics = self._learner.update(state.learner, segment)
        sums = Totals(*[metrics.pop(name) for name in Totals._fields])
        shared = self._task.advance(state.shared, sums)
        metrics |= self._task.told(shared)
        told = sums._asdict()
        if not isinstance(self._task.targets, Symbols):
            told.pop("correct")  # numbers are never just right
        return SupervisedState(learner, streams, shared), (metrics, told)
