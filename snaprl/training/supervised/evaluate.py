"""Evaluation of a trained model: whole splits, or fresh streams, with a state that is carried."""

from typing import Any

import jax
import jax.numpy as jnp

from snaprl.cores import BPTT
from snaprl.training import meters
from snaprl.training.supervised.loss import totals
from snaprl.training.supervised.model import SequenceModel
from snaprl.training.supervised.types import Array, Exam, PyTree, Symbols, Task, Totals

CHUNK = 8192  # tokens that run in one program


def evaluate(
    model: SequenceModel,
    task: Task,
    variables: PyTree,
    shared: PyTree,
    *,
    steps: int,
    seed: int = 0,
) -> dict[str, float]:
    """Measures a model on each of a task's exams, without learning.

    A stream's state is carried from its first step to its last: nothing but the task resets it.

    Args:
      model: what is measured.
      task: what it is measured on.
      variables: the model's.
      shared: where the task's curriculum stands, if it has one.
      steps: tokens to read where an exam has no end.
      seed: of tasks that draw.

    Returns:
      `eval_loss` and, for symbols, `eval_bits_per_char` and `eval_accuracy`; where an exam has a
      name, as `eval_NAME_loss`.
    """
    # every method has the same forward pass, and this one remembers nothing beside it
    plain = model.clone(method=BPTT())
    result = {}
    for name, exam in task.exams.items():
        wanted = -(-steps // exam.streams) if exam.steps is None else exam.steps
        sums = _take(plain, task, exam, variables, shared, wanted, jax.random.key(seed))
        prefix = f"eval_{name}_" if name else "eval_"
        result |= {prefix + key: value for key, value in meters.of_targets(sums).items()}
    return result


def _take(
    model: SequenceModel,
    task: Task,
    exam: Exam,
    variables: PyTree,
    shared: PyTree,
    steps: int,
    key: Array,
) -> dict[str, float]:
    """Sums over an exam, `Totals` by name."""
    data = jax.tree.map(jnp.asarray, exam.data)
    state_key, task_key = jax.random.split(key)
    state = model.initial_state(state_key, exam.streams)
    streams = task.init(data, task_key, exam.streams)
    apply: Any = model.apply

    def read(steps: int) -> Any:
        def run(
            variables: PyTree, data: PyTree, streams: PyTree, state: PyTree
        ) -> tuple[PyTree, PyTree, Totals]:
            streams, piece = task.draw(data, streams, shared, steps)
            state, outputs = apply(variables, state, piece.inputs, piece.first)
            return streams, state, totals(model.targets, outputs, piece)

        return jax.jit(run)

    chunk = max(1, CHUNK // exam.streams)
    whole, rest = divmod(steps, chunk)
    sums = dict.fromkeys(Totals._fields, 0.0)  # in 64 bits, for splits may be long
    for length, times in ((chunk, whole), (rest, 1 if rest else 0)):
        run = read(length)
        for _ in range(times):
            streams, state, news = run(variables, data, streams, state)
            for name, value in news._asdict().items():
                sums[name] += float(value)
    if not isinstance(task.targets, Symbols):
        del sums["correct"]
    return sums
