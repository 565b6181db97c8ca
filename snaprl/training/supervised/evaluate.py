"""Evaluation of a trained model: whole splits, or fresh streams, with a state that is carried."""

from typing import Any

import jax
import jax.numpy as jnp

from snaprl.cores import BPTT
from snaprl.training import meters
from snaprl.training.errors import Stopped
from snaprl.training.evaluate import Stop, never
from snaprl.training.supervised.loss import totals
from snaprl.training.supervised.model import SequenceModel
from snaprl.training.supervised.types import Array, Exam, PyTree, Symbols, Task, Totals

CHUNK = 8192  # tokens that run in one program


class Evaluator:
    """Measures a model on each of a task's exams, without learning.

    A stream's state is carried from its first step to its last: nothing but the task resets it.
    What it compiles, it keeps for the next call.
    """

    def __init__(self, model: SequenceModel, task: Task, *, steps: int):
        """Compiles nothing yet.

        Args:
          model: what is measured.
          task: what it is measured on.
          steps: tokens to read where an exam has no end; more, where none has a target by then.
        """
        # every method has the same forward pass, and this one remembers nothing beside it
        self._model, self._task, self._steps = model.clone(method=BPTT()), task, steps
        self._read = jax.jit(self._read_traced, static_argnames="steps")

    def __call__(
        self,
        variables: PyTree,
        shared: PyTree,
        key: Array,
        stop: Stop = never,
    ) -> dict[str, float]:
        """Measures.

        Args:
          variables: the model's.
          shared: where the task's curriculum stands, if it has one.
          key: for tasks that draw; consumed.
          stop: asked every few thousand tokens.

        Returns:
          `eval_loss` and, for symbols, `eval_bits_per_char` and `eval_accuracy`; where an exam has
          a name, as `eval_NAME_loss`.

        Raises:
          Stopped: it was asked to stop before it was through.
        """
        result = {}
        for name, exam in self._task.exams.items():
            sums = self._take(exam, variables, shared, key, stop)
            result |= {_called(name, key): value for key, value in meters.of_targets(sums).items()}
        return result

    def _take(
        self, exam: Exam, variables: PyTree, shared: PyTree, key: Array, stop: Stop
    ) -> dict[str, float]:
        """Sums over an exam, `Totals` by name."""
        data = jax.tree.map(jnp.asarray, exam.data)
        state_key, task_key = jax.random.split(key)
        state = self._model.initial_state(state_key, exam.streams)
        streams = self._task.init(data, task_key, exam.streams)
        wanted = -(-self._steps // exam.streams) if exam.steps is None else exam.steps
        chunk = max(1, CHUNK // exam.streams)
        sums, read = dict.fromkeys(Totals._fields, 0.0), 0  # in 64 bits, for splits may be long
        # what is asked for may end within the first sequence, before its target
        while read < wanted or (exam.steps is None and not sums["targets"]):
            if stop():
                raise Stopped
            length = min(chunk, wanted - read) if read < wanted else chunk
            read += length
            streams, state, news = self._read(variables, shared, data, streams, state, steps=length)
            for name, value in news._asdict().items():
                sums[name] += float(value)
        if not isinstance(self._task.targets, Symbols):
            del sums["correct"]
        return sums

    def _read_traced(
        self,
        variables: PyTree,
        shared: PyTree,
        data: PyTree,
        streams: PyTree,
        state: PyTree,
        *,
        steps: int,
    ) -> tuple[PyTree, PyTree, Totals]:
        apply: Any = self._model.apply
        streams, piece = self._task.draw(data, streams, shared, steps)
        state, outputs = apply(variables, state, piece.inputs, piece.first)
        return streams, state, totals(self._model.targets, outputs, piece)


def numbers(task: Task) -> set[str]:
    """What an `Evaluator` of a task says, by name."""
    of_symbols = {"bits_per_char", "accuracy"} if isinstance(task.targets, Symbols) else set()
    return {_called(name, key) for name in task.exams for key in {"loss"} | of_symbols}


def _called(exam: str, number: str) -> str:
    return f"eval_{exam}_{number}" if exam else f"eval_{number}"
