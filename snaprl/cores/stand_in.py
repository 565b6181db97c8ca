"""Cells that are run as another cell: with a mask, and with parameters made from their own.

What the other cell's parameters are made by is differentiable, so jax's chain rule brings the
gradients back, and no method has to know.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn

from snaprl.cores.masks import Mask
from snaprl.cores.types import Params

Cell = TypeVar("Cell", bound=nn.RNNCellBase)


class StandIn(NamedTuple):
    """What is run in a cell's place; the carry and the outputs are those of the cell."""

    cell: nn.RNNCellBase
    mask: Mask  # of its parameters
    params: Callable[[Params], dict[str, Any]]  # from the cell's own


def stand_in(cell: nn.RNNCellBase) -> StandIn | None:
    """Returns what is run in the place of `cell`; None where it is run itself."""
    make = _MAKERS.get(type(cell))
    return make(cell.clone(parent=None, name=None)) if make else None


def register(kind: type[Cell], make: Callable[[Cell], StandIn]) -> None:
    """Makes `make(cell)` stand for cells of `kind`, and for none of its subclasses."""
    _MAKERS[kind] = functools.lru_cache(maxsize=32)(make)


_MAKERS: dict[type[nn.RNNCellBase], Callable[[Any], StandIn]] = {}
