"""Actors that do what a test tells them to, without a network."""

import functools
import os
import signal
import time
from typing import Any

import jax
import numpy as np

from snaprl.agents import Segment
from snaprl.training.actors import Played, Supervisor

T, B = 2, 3
VARIABLES = {"params": {"w": np.zeros((2, 3), np.float32)}}


def played(number: int, weight: float, count: int) -> Played:
    """A segment whose rewards are a parameter, and whose only episode tells of this very actor."""
    row = np.zeros(B, np.int32)
    steps = np.zeros((T, B), np.float32)
    segment = Segment(
        observation=np.zeros((T + 1, B, 2), np.float32),
        first=np.zeros((T + 1, B), bool),
        action=np.zeros((T, B), np.int32),
        reward=steps + np.float32(weight),
        discount=steps,
        mask=steps,
        behaviour_log_prob=steps,
        hidden=np.zeros((B, 4), np.float32),
        stream=row,
        number=row + np.int32(number),
    )
    return Played(segment, np.array([1.0, os.getpid(), 0.0, count]), np.zeros((), bool))


LIKE = jax.tree.map(np.asarray, played(0, 0.0, 0))


class Scripted:
    """Plays, and at segment 2 of its life fails as it is told to."""

    def __init__(self, fault: str, alive):
        self._fault, self._alive, self._count = fault, alive, 0

    def stand_in(self, index: int) -> None:
        pass

    def start(self, seed: int) -> int:
        self._seed = seed
        return 0

    def play(self, variables: Any, number: int) -> tuple[int, Played]:
        self._alive()
        made = played(number, float(variables["params"]["w"][0, 0]), self._seed)
        if number == 2:
            if self._fault == "raises":
                raise ValueError("the floor is lava")
            if self._fault == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._fault == "hangs":
                time.sleep(1000)
            if self._fault == "is slow":
                for _ in range(30):
                    time.sleep(0.1)
                    self._alive()
            if self._fault == "other shape":
                segment = made.segment._replace(reward=np.zeros((T, B + 1), np.float32))
                made = made._replace(segment=segment)
        return number + 1, made

    def close(self) -> None:
        pass


def scripted(faults: dict[int, str], index: int, alive=lambda: None) -> Scripted:
    return Scripted(faults.get(index, ""), alive)


def arguments(faults: dict[int, str], actors: int, **changed: Any) -> tuple[tuple, dict[str, Any]]:
    """What an engine is made of."""
    options = {"played": LIKE, "variables": VARIABLES, "ahead": 2, "patience_s": 60.0}
    supervisor = Supervisor(changed.pop("restarts", 100), tell=lambda line: None)
    make = functools.partial(scripted, faults)
    return (make, actors), options | {"supervisor": supervisor} | changed
