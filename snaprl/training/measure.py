"""What has been learnt, measured: while a run trains, and from its checkpoints."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import jax

from snaprl.training.build import Built, make_envs
from snaprl.training.config import AnyConfig
from snaprl.training.evaluate import (
    Evaluate,
    Stop,
    device_evaluator,
    host_evaluator,
    never,
)
from snaprl.training.host_envs import HostEnvs
from snaprl.training.schema import Config
from snaprl.training.supervised.schema import SupervisedConfig

PyTree = Any
Score = tuple[float, float]
NO_SCORE: Score = (-math.inf, -math.inf)
# what tells the better of two evaluations, the first that there is; -1: less is better
TELLING = {"eval_success": 1, "eval_episode_return": 1, "eval_valid_loss": -1, "eval_loss": -1}


class Measure(Protocol):
    """Measures a loop's state, as often as one asks; what it compiles, it keeps."""

    def __call__(self, state: PyTree, key: jax.Array, stop: Stop = never) -> dict[str, float]:
        """Numbers whose names begin with `eval_`, and `episodes` of an agent; `key` is consumed.

        Raises:
          Stopped: it was asked to stop before it was through.
        """
        ...

    def about(self, state: PyTree) -> dict[str, float]:
        """What is worth knowing beside them and need not be measured."""
        ...

    def close(self) -> None:
        """Gives back what is held open."""
        ...


def make_measure(config: AnyConfig, built: Any, episodes: int | None = None) -> Measure:
    """What measures what a config describes.

    Args:
      config: of an agent, or of a supervised model.
      built: what it describes.
      episodes: that an agent plays; by default the config's `evaluation.episodes`.

    Raises:
      UserError: episodes are asked of a task that has none.
    """
    if isinstance(config, SupervisedConfig):
        from snaprl.training.supervised.measure import SupervisedMeasure

        return SupervisedMeasure(config, built, episodes)
    return AgentMeasure(config, built, episodes)


class AgentMeasure:
    """Plays episodes in environments of its own: drawing actions, then taking the likeliest."""

    def __init__(self, config: Config, built: Built, episodes: int | None = None):
        """Opens nothing yet; see `make_measure`."""
        self._config, self._built = config, built
        self._episodes = episodes or config.evaluation.episodes
        self._envs: HostEnvs | None = None
        self._ways: Mapping[str, Evaluate] = {}

    def __call__(self, state: PyTree, key: jax.Array, stop: Stop = never) -> dict[str, float]:
        """`episodes`, `eval_...` (the policy as it is, actions drawn) and `eval_greedy_...`."""
        if not self._ways:
            self._ways = {"eval_": self._way(greedy=False), "eval_greedy_": self._way(greedy=True)}
        result = {}
        for prefix, evaluate in self._ways.items():
            numbers = evaluate(state.learner.variables, key, stop)
            result["episodes"] = numbers.pop("episodes")
            result |= {prefix + name: value for name, value in numbers.items()}
        return result

    def about(self, state: PyTree) -> dict[str, float]:
        """Nothing."""
        del state
        return {}

    def close(self) -> None:
        """Closes the environments."""
        if self._envs is not None:
            self._envs.close()

    def _way(self, *, greedy: bool) -> Evaluate:
        most = self._config.evaluation.max_steps
        options = {"episodes": self._episodes, "greedy": greedy, "max_steps": most}
        if self._built.pure is not None:
            return device_evaluator(self._built.agent, self._built.pure, **options)
        if self._envs is None:
            copies = min(self._config.training.streams, self._episodes)
            self._envs = HostEnvs(make_envs(self._config, copies))
        return host_evaluator(self._built.agent, self._envs, **options)


def score(report: Mapping[str, Any]) -> Score:
    """How good an evaluation is, the more the better; `NO_SCORE` where none was made.

    Where a curriculum makes a task harder, the level comes first: a loss is of its level.
    """
    for name, sign in TELLING.items():
        if isinstance(report.get(name), int | float):
            return float(report.get("level", 0.0)), sign * float(report[name])
    return NO_SCORE
