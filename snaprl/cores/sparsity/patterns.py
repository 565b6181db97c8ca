"""Random patterns: which entries of one kernel exist.

A kernel is flax's `[inputs, units]`: column i holds the weights that enter unit i. A pattern is
called with a kernel's shape and a seed, and gives a boolean array of that shape. The same seed
gives the same array, and the number of weights never depends on the seed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
Shape = tuple[int, ...]
Seed = int | np.random.Generator  # a generator moves on when it is drawn from
Pattern = Callable[[Shape, Seed], NDArray[Any]]


def uniform(density: float, *, diagonal: bool = False) -> Pattern:
    """Keeps `round(density * size)` weights, drawn from the whole kernel.

    The number is exact, so that two seeds can be compared. Units differ in their fan-in.

    Args:
      density: the share of weights that exist, from 0 to 1; 1 is a dense kernel.
      diagonal: always keep the weight from a unit to itself, within the number above.

    Returns:
      A pattern, `(shape, seed) -> bool [inputs, units]`.

    Raises:
      ValueError: the density is not in [0, 1]; when called, the diagonal has no room.

    Example:
      >>> int(uniform(0.1)((20, 30), 0).sum())
      60
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density is {density}; it must lie in [0, 1]")

    def draw(shape: Shape, seed: Seed) -> BoolArray:
        scores = random_scores(shape, seed, diagonal)
        count = round(density * scores.size)
        check_room("uniform", count, len(scores) if diagonal else 0, "weights", shape)
        return smallest(scores.ravel(), count).reshape(shape)

    return draw


def fixed_fan_in(fan_in: int, *, diagonal: bool = False) -> Pattern:
    """Keeps exactly `fan_in` inputs of every unit, drawn for each unit on its own.

    The regular choice for SnAp of order 2 and higher: every unit costs the same.

    Args:
      fan_in: the number of weights that enter a unit.
      diagonal: always keep the weight from a unit to itself, as one of the `fan_in`.

    Returns:
      A pattern, `(shape, seed) -> bool [inputs, units]`.

    Raises:
      ValueError: `fan_in` is no positive integer; when called, there are fewer inputs than that.

    Example:
      >>> set(fixed_fan_in(4)((20, 30), 0).sum(axis=0).tolist())
      {4}
    """
    check_positive("fan_in", fan_in)

    def draw(shape: Shape, seed: Seed) -> BoolArray:
        scores = random_scores(shape, seed, diagonal)
        if fan_in > len(scores):
            raise ValueError(
                f"fan_in is {fan_in}, but a kernel of shape {shape} has {len(scores)} inputs; "
                "use a smaller fan_in"
            )
        return smallest(scores, fan_in)

    return draw


# ---- what patterns are made of ---------------------------------------------------------------


def random_scores(shape: Shape, seed: Seed, diagonal: bool) -> NDArray[np.float64]:
    """Scores in [0, 1) of a kernel's entries; where it is to be kept, the diagonal has -1.

    Args:
      shape: `(inputs, units)`.
      seed: an integer, or a generator that is drawn from.
      diagonal: whether a unit's own weight comes first.

    Raises:
      ValueError: the shape is no kernel's, or has no diagonal though one is asked for.
    """
    check_kernel(shape)
    scores = np.random.default_rng(seed).random(shape)
    if diagonal:
        check_square(shape, "diagonal=True keeps a unit's own weight")
        np.fill_diagonal(scores, -1.0)
    return scores


def smallest(scores: NDArray[np.float64], count: int) -> BoolArray:
    """Marks the `count` smallest entries along the first axis, in every column."""
    rank = np.argsort(np.argsort(scores, axis=0, kind="stable"), axis=0)
    return rank < count


def check_kernel(shape: Shape) -> None:
    """Raises where `shape` is not `(inputs, units)`."""
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape is {shape}; a kernel is (inputs, units), each at least 1")


def check_square(shape: Shape, reason: str) -> None:
    """Raises where a kernel does not lead from units to units."""
    if shape[0] != shape[1]:
        raise ValueError(
            f"{reason}, but shape {shape} is not (units, units); for input kernels use another "
            "pattern"
        )


def check_positive(name: str, value: int) -> None:
    """Raises where `value` is no positive integer."""
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} is {value}; it must be an integer of at least 1")


def check_room(name: str, count: int, needed: int, what: str, shape: Shape) -> None:
    """Raises where the diagonal alone is more than what the density allows."""
    if count < needed:
        raise ValueError(
            f"{name} keeps {count} {what} of a kernel of shape {shape}, fewer than the {needed} on "
            "its diagonal; raise density or leave diagonal=True out"
        )
