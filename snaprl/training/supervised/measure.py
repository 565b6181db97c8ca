"""What a supervised model has learnt, measured on its task."""

from typing import Any

import jax

from snaprl.training.errors import UserError
from snaprl.training.evaluate import Stop, never
from snaprl.training.supervised.build import SupervisedBuilt
from snaprl.training.supervised.evaluate import Evaluator
from snaprl.training.supervised.model import parameter_count
from snaprl.training.supervised.schema import SupervisedConfig

PyTree = Any


class SupervisedMeasure:
    """Measures on the task's splits, or on fresh streams."""

    def __init__(
        self, config: SupervisedConfig, built: SupervisedBuilt, episodes: int | None = None
    ):
        """Compiles nothing yet.

        Raises:
          UserError: episodes are asked for, and tasks have none.
        """
        if episodes is not None:
            raise UserError("--episodes is for agents: a task is measured over evaluation.steps")
        self._task = built.task
        self._evaluate = Evaluator(built.model, built.task, steps=config.evaluation.steps)

    def __call__(self, state: PyTree, key: jax.Array, stop: Stop = never) -> dict[str, float]:
        """See `Evaluator`."""
        return self._evaluate(state.learner.variables, state.shared, key, stop)

    def about(self, state: PyTree) -> dict[str, float]:
        """How many parameters there are, how far the task has got, and scores to compare with."""
        told = {name: float(value) for name, value in self._task.told(state.shared).items()}
        references = {f"reference_{k}": v for k, v in self._task.references().items()}
        return {"parameters": parameter_count(state.learner.variables)} | told | references

    def close(self) -> None:
        """Nothing is open."""
