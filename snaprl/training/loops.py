"""What trains, and how a config becomes one."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from snaprl.training import meters
from snaprl.training.actors import ActorLoop
from snaprl.training.build import Built, build, make_engine
from snaprl.training.config import AnyConfig
from snaprl.training.device_loop import DeviceLoop
from snaprl.training.mesh import spread
from snaprl.training.schema import Config
from snaprl.training.supervised.schema import SupervisedConfig
from snaprl.training.updates import most_at_once

PyTree = Any


class Loop(Protocol):
    """What trains: an environment, an agent and a learner that go on from a state of their own."""

    exact: bool

    @property
    def knows_success(self) -> bool:
        """Whether the task says which episodes succeed."""
        ...

    def init(self, key: jax.Array) -> PyTree:
        """The state before the first update."""
        ...

    def run(
        self, state: PyTree, updates: int, stop: Callable[[], bool] = ...
    ) -> tuple[PyTree, meters.Chunk]:
        """Makes updates, or fewer where it is asked to stop; `state` is consumed."""
        ...

    def restore(self, state: PyTree) -> PyTree:
        """Goes on from a state that was saved."""
        ...

    def close(self) -> None:
        """Gives back what is held open."""
        ...


class Work(Protocol):
    """How much there is to do."""

    @property
    def updates(self) -> int:
        """Of the whole training."""
        ...

    @property
    def updates_per_report(self) -> int:
        """Between two reports."""
        ...

    @property
    def steps_per_update(self) -> int:
        """Over all streams together."""
        ...

    @property
    def facts(self) -> Mapping[str, str]:
        """What a checkpoint belongs to besides its config, such as a vocabulary."""
        ...


def prepare(config: AnyConfig) -> tuple[Work, Loop]:
    """Builds what a config describes, and the loop that trains it."""
    if isinstance(config, SupervisedConfig):
        from snaprl.training.supervised import build as supervised

        built = supervised.build(config)
        return built, supervised.make_loop(config, built)
    built = build(config)
    return built, make_loop(config, built)


def make_loop(config: Config, built: Built) -> Loop:
    """The loop that fits the environment."""
    t = config.training
    if built.pure is not None:
        return DeviceLoop(
            built.agent,
            built.learner,
            built.pure,
            streams=t.streams,
            unroll=t.unroll,
            updates_per_chunk=most_at_once(built.updates_per_report),
        )
    a = config.actors
    learner, places = built.learner, {}
    if t.devices != 1:
        streams = built.steps_per_update // t.unroll
        mesh = spread(t.devices, streams, parameters=t.shard_parameters)
        learner, places = mesh.learner(learner), {"put": mesh.put, "keep": mesh.keep}
    return ActorLoop(
        built.agent,
        learner,
        make_engine(config, built),
        streams=t.streams,
        unroll=t.unroll,
        actors=a.count,
        per_update=a.per_update or a.count,
        window=a.window,
        **places,
    )


def shapes(loop: Loop) -> PyTree:
    """What a loop's state is made of, to restore one; arrays, where only a start tells."""
    key = jax.random.key(0)
    return loop.shapes(key) if isinstance(loop, ActorLoop) else jax.eval_shape(loop.init, key)
