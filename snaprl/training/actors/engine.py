"""What runs actors: one small interface, and its simplest form."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from snaprl.agents import Segment
from snaprl.training.actors.actor import Actor, ActorState, Played, Poison
from snaprl.training.errors import UserError
from snaprl.training.host_envs import EnvironmentFailed

PyTree = Any
MakeActor = Callable[..., Actor]  # (index, *, alive) -> Actor; picklable, for other processes


class Message(NamedTuple):
    """A segment on its way from an actor to the learner."""

    played: Played  # may lie in memory that `release` gives back
    actor: int
    life: int  # how often the actor was replaced before
    version: int  # of the parameters that it was played with
    release: Callable[[], None] = lambda: None

    @property
    def segment(self) -> Segment:
        """What was played."""
        return self.played.segment

    @property
    def number(self) -> int:
        """The segment's place in its streams."""
        return int(self.segment.number[0])


class Engine(Protocol):
    """Runs actors that play with the newest parameters that they can get.

    Attributes:
      exact: whether `restore` goes on exactly where `snapshot` was taken.
      ahead: whether actors go on playing while the learner learns.
    """

    exact: bool
    ahead: bool

    def start(self, seed: int) -> None:
        """Starts all actors, from nothing."""
        ...

    def publish(self, variables: PyTree, version: int) -> None:
        """Gives the actors new parameters."""
        ...

    def receive(self, timeout_s: float) -> Message | None:
        """The next segment of any actor; None where none came in time."""
        ...

    def waiting(self) -> int:
        """How many segments have come that `receive` has not given yet."""
        ...

    def numbers(self) -> list[int]:
        """The number of the segment that each actor sends next."""
        ...

    def snapshot(self) -> PyTree:
        """The actors' states; () where they are not kept."""
        ...

    def restore(self, snapshot: PyTree) -> None:
        """Goes on from a snapshot."""
        ...

    def report(self) -> dict[str, float]:
        """What is worth watching: `actors`, `restarts`."""
        ...

    def close(self) -> None:
        """Ends all actors and gives back what they held."""
        ...


class LocalEngine:
    """Actors in this process, one after the other: deterministic, and as fresh as parameters get.

    An actor that fails ends the run, for here is where one looks at what is wrong with it: the
    sentence names the line, and the exception has the whole as its cause.
    """

    ahead = False

    def __init__(self, actors: Sequence[Actor]):
        """Runs `actors`, which this now owns."""
        self._actors = list(actors)
        self._states: list[ActorState] = []
        self._variables, self._version, self._next = None, 0, 0
        self.exact = all(actor.exact for actor in self._actors)

    def start(self, seed: int) -> None:
        """Starts all actors, from nothing."""
        seeds = np.random.SeedSequence(seed).generate_state(len(self._actors))
        self._states = [actor.start(int(s)) for actor, s in zip(self._actors, seeds, strict=True)]
        self._next = 0

    def publish(self, variables: PyTree, version: int) -> None:
        """Gives the actors new parameters; they are copied from another device only."""
        if jax.default_backend() != "cpu":  # a step of a policy is too little for more
            variables = jax.device_put(variables, jax.local_devices(backend="cpu")[0])
        self._variables, self._version = variables, version

    def receive(self, timeout_s: float) -> Message:
        """Lets the next actor in turn play a segment."""
        del timeout_s
        index = self._next
        try:
            state, played = self._actors[index].play(self._variables, self._states[index])
        except (Poison, EnvironmentFailed) as error:
            raise UserError(f"actor {index}: {error}") from error
        self._states[index] = state
        self._next = (index + 1) % len(self._actors)
        return Message(played, index, 0, self._version)

    def waiting(self) -> int:
        """None: actors play when they are asked to."""
        return 0

    def numbers(self) -> list[int]:
        """The number of the segment that each actor sends next."""
        return [int(state.number) for state in self._states]

    def snapshot(self) -> PyTree:
        """The actors' states."""
        return tuple(self._states), np.int32(self._next)

    def restore(self, snapshot: PyTree) -> None:
        """Goes on from a snapshot; actors that cannot be saved start anew."""
        states, following = snapshot
        self._states = [
            actor.restore(state) for actor, state in zip(self._actors, states, strict=True)
        ]
        self._next = int(following)

    def report(self) -> dict[str, float]:
        """Nothing can happen here that is worth watching."""
        return {}

    def close(self) -> None:
        """Closes all environments."""
        for actor in self._actors:
            actor.close()
