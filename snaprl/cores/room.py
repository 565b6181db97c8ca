"""Room for the masks to come: a pattern in larger arrays than its own mask needs.

A mask that changes keeps the shapes of the first pattern, and nothing is compiled anew. Which units
a weight reaches then has to fit into as many pairs, and into lists as long, as those that the core
was made with. Where the fan-in is kept, the units that read a unit still come and go: without room
hardly any new mask fits.
"""

import math
from typing import Any

import flax.linen as nn
import numpy as np

from snaprl.cores.general import Entries
from snaprl.cores.masks import Mask
from snaprl.cores.reach import PARTS, FanIn, Pattern, Room, Tier, room_of
from snaprl.cores.types import GradientMethod, Params, PyTree

LISTS = ("own lists", "far lists", "own lists told", "far lists told")  # short ones stay short


def first_pattern(
    method: GradientMethod, cell: nn.RNNCellBase, params: Params, mask: Mask | None, inputs: Any
) -> PyTree:
    """The pattern of a core that is made, with the room that its mask asks for.

    Args:
      method: whose it is.
      cell: of that, unbound.
      params: the cell's, or their shapes.
      mask: None for a dense core.
      inputs: one step's inputs `[B, M]`, or their shape and type.
    """
    tree = {} if mask is None else mask.tree()
    pattern = method.pattern(cell, params, tree, inputs)
    if mask is None or mask.room == 1:
        return pattern
    return method.pattern(cell, params, tree, inputs, _roomier(pattern, mask.room))


def _roomier(pattern: PyTree, room: float) -> PyTree:
    """Arrays, of which only the shapes matter, with `room` times the places of a pattern."""
    if isinstance(pattern, Entries):
        return Entries(*(_shape(math.ceil(room * len(x))) for x in pattern))
    return _of_pairs(pattern, room) if isinstance(pattern, Pattern) else pattern


def _of_pairs(pattern: Pattern, room: float) -> Pattern:
    units, needs = pattern.columns.shape[1], room_of(pattern)

    def roomier(size: int, most: int) -> int:
        return max(size, min(math.ceil(room * size), most))

    pairs = sum(needs[part] for part in PARTS)
    # all new places are where lists are longest: there any pair may stand
    more = roomier(pairs, units * (units - 1)) - pairs
    new = {"far pairs": needs["far pairs"] + more, "reach": roomier(needs["reach"], units)}
    for name in LISTS:  # short ones vary by more than a share; they are no part of the influence
        new[name] = max(needs[name], min(math.ceil(room * needs[name]) + 2, units - 1))
    fan_in = {}
    for name, lists in pattern.fan_in.items():
        (most, _), inputs = lists.inputs.shape, len(lists.slot)
        same = bool((np.asarray(lists.inputs) < inputs).all())  # for all units: so it may stay
        fan_in[name] = FanIn(
            _shape(most if same else roomier(most, inputs), units), _shape(*lists.slot.shape)
        )
    return _shapes({**needs, **new}, units, fan_in)


def _shapes(sizes: Room, units: int, fan_in: dict[str, FanIn]) -> Pattern:
    """A pattern of which `room_of` gives `sizes`."""

    def tiers(lists: tuple[str, ...], pairs: tuple[int, ...]) -> tuple[Tier, ...]:
        shapes = [(sizes[name], size) for name, size in zip(lists, pairs, strict=True)]
        return tuple(Tier(_shape(*shape), _shape(*shape)) for shape in shapes)

    near, told, far, hear = (sizes[part] for part in PARTS)
    every = _shape(units + near + told + far + hear)
    return Pattern(
        row=every,
        unit=every,
        position=every,
        columns=_shape(sizes["reach"], units),
        heard=tiers(("own lists", "near lists", "far lists"), (units, near + told, far + hear)),
        told=tiers(
            ("own lists told", "near lists told", "far lists told", "near lists told"),
            (units, near, told + far, hear),
        ),
        fan_in=fan_in,
    )


def _shape(*shape: int) -> np.ndarray:
    """An array of one number."""
    return np.broadcast_to(np.int32(0), shape)
