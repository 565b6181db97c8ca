"""Observations brought to mean 0 and variance 1, by statistics of all that was observed so far.

A core reads small numbers badly: a pole's angle is a few hundredths of a radian, and what has to be
remembered of it is how it changed. Statistics are the collection `observations` of an agent's
variables, so they travel with the parameters to actors, evaluations and checkpoints. Without that
collection observations are read as they are.

They are those of every entry of a Box by itself; what is encoded otherwise, Discrete, MultiBinary
and boxes of bytes, is left alone. Each update of the learner counts as much as any other, and none
is forgotten. Statistics move once a segment has been normalised: where no actor runs ahead of the
learner, what was acted with is what is learned with.

Reference: for the average of averages, Chan, Golub and LeVeque, 1979, "Updating Formulae and a
Pairwise Algorithm for Computing Sample Variances", equation (1.3).
"""

from collections.abc import Iterator

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from snaprl.agents.types import Array, PyTree

COLLECTION = "observations"
SMALLEST = 1e-8  # variance that is added, as gymnasium does: what never changed is read as 0
LARGEST = 10.0  # standard deviations that are read; what lies further is read as this
FURTHEST = 1e15  # what counts in statistics, whose squares have to be numbers


def check_space(space: gymnasium.Space) -> None:
    """Refuses a space in which nothing is normalised.

    Raises:
      ValueError: it is one.
    """
    if not any(_boxes(space, None)):
        raise ValueError(
            f"observations cannot be normalised: {' '.join(str(space).split())} has no Box of "
            "numbers other than bytes"
        )


def init(space: gymnasium.Space) -> PyTree:
    """The statistics before any observation: mean 0, variance 1."""
    boxes = dict(_boxes(space, None))
    return {
        "mean": {name: jnp.zeros(box.shape) for name, (box, _) in boxes.items()},
        "variance": {name: jnp.ones(box.shape) for name, (box, _) in boxes.items()},
        "updates": jnp.zeros((), int),
    }


def normalise(variables: PyTree, space: gymnasium.Space, observation: PyTree) -> PyTree:
    """Observations as the network reads them: any axes in front, the same tree."""
    if COLLECTION not in variables:
        return observation
    held = variables[COLLECTION]

    def over(space: gymnasium.Space, x: PyTree, name: str) -> PyTree:
        match space:
            case spaces.Dict():
                return {k: over(part, x[k], _name(name, k)) for k, part in space.spaces.items()}
            case spaces.Tuple():
                parts = enumerate(space.spaces)
                return tuple(over(part, x[k], _name(name, k)) for k, part in parts)
        if name not in held["mean"]:
            return x
        deviation = jnp.sqrt(held["variance"][name] + SMALLEST)
        mean, deviation = (jnp.broadcast_to(s, x.shape) for s in (held["mean"][name], deviation))
        return jnp.clip((x - mean) / deviation, -LARGEST, LARGEST)

    return over(space, observation, "x")


def revise(variables: PyTree, space: gymnasium.Space, observation: PyTree) -> PyTree:
    """Variables with statistics that a segment's observations, `[T, B, ...]`, are part of."""
    held = variables[COLLECTION]
    part = 1 / (held["updates"] + 1)
    mean, variance = {}, {}
    for name, (_, x) in _boxes(space, observation):
        x = jnp.clip(jnp.asarray(x, held["mean"][name].dtype), -FURTHEST, FURTHEST)
        old, new = held["mean"][name], x.mean((0, 1))
        mean[name] = old + part * (new - old)
        within = (1 - part) * held["variance"][name] + part * x.var((0, 1))
        variance[name] = within + part * (1 - part) * (new - old) ** 2
    moved = {"mean": mean, "variance": variance, "updates": held["updates"] + 1}
    return {**variables, COLLECTION: jax.tree.map(lambda x, to: to.astype(x.dtype), held, moved)}


def _boxes(
    space: gymnasium.Space, x: PyTree, name: str = "x"
) -> Iterator[tuple[str, tuple[spaces.Box, Array]]]:
    """The boxes that are normalised, by name, and what was observed of each, if anything was."""
    match space:
        case spaces.Dict():
            parts = list(space.spaces.items())
        case spaces.Tuple():
            parts = list(enumerate(space.spaces))
        case spaces.Box() if space.dtype != np.uint8:
            yield name, (space, x)
            return
        case _:
            return
    for key, part in parts:
        yield from _boxes(part, None if x is None else x[key], _name(name, key))


def _name(whole: str, key: str | int) -> str:
    """The name of a part, which no other part has."""
    return f"{whole}[{key!r}]"
