"""Patterns from random graphs: two units that share an edge have a weight in either direction.

networkx draws the graphs. It is optional, and imported when a pattern is drawn.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from snaprl.cores.sparsity.patterns import (
    BoolArray,
    Pattern,
    Seed,
    Shape,
    check_kernel,
    check_positive,
    check_square,
)


def watts_strogatz(neighbours: int, rewiring: float, *, diagonal: bool = False) -> Pattern:
    """Wires the units as a small world: a ring of near neighbours, some edges moved elsewhere.

    There are `units * neighbours` weights. Without rewiring every unit has `neighbours` inputs;
    with it they differ.

    Reference: Watts and Strogatz, "Collective dynamics of 'small-world' networks", Nature 1998.

    Args:
      neighbours: edges of a unit on the ring, an even number: half of them to either side.
      rewiring: the probability that an edge moves, from 0 to 1.
      diagonal: keep the weight from a unit to itself too, beside the graph's edges.

    Returns:
      A pattern for recurrent kernels, `(shape, seed) -> bool [units, units]`.

    Raises:
      ValueError: a number is out of range; when called, there are too few units, or the kernel is
        not square.
      ImportError: when called, networkx is missing.
    """
    check_positive("neighbours", neighbours)
    if neighbours % 2:
        raise ValueError(f"neighbours is {neighbours}; it must be even, half to either side")
    if not 0 <= rewiring <= 1:
        raise ValueError(f"rewiring is {rewiring}; it is a probability, in [0, 1]")

    def edges(networkx: ModuleType, units: int, seed: int) -> Any:
        if neighbours >= units:
            raise ValueError(
                f"neighbours is {neighbours}, but there are {units} units; use fewer neighbours"
            )
        return networkx.watts_strogatz_graph(units, neighbours, rewiring, seed=seed).edges

    return _graph(edges, diagonal)


def barabasi_albert(attachments: int, *, diagonal: bool = False) -> Pattern:
    """Wires the units by preferential attachment: a few hubs, many units with few inputs.

    Starts from a star of `attachments` edges; every later unit attaches to `attachments` others.
    There are `2 * attachments * (units - attachments)` weights.

    Reference: Barabasi and Albert, "Emergence of Scaling in Random Networks", Science 1999.

    Args:
      attachments: edges that a new unit brings.
      diagonal: keep the weight from a unit to itself too, beside the graph's edges.

    Returns:
      A pattern for recurrent kernels, `(shape, seed) -> bool [units, units]`.

    Raises:
      ValueError: `attachments` is no positive integer; when called, there are too few units, or the
        kernel is not square.
      ImportError: when called, networkx is missing.
    """
    check_positive("attachments", attachments)

    def edges(networkx: ModuleType, units: int, seed: int) -> Any:
        if attachments >= units:
            raise ValueError(
                f"attachments is {attachments}, but there are {units} units; use fewer attachments"
            )
        return networkx.barabasi_albert_graph(units, attachments, seed=seed).edges

    return _graph(edges, diagonal)


def _graph(edges: Callable[[ModuleType, int, int], Any], diagonal: bool) -> Pattern:
    """Turns `(networkx, units, seed) -> edges` into a pattern."""

    def draw(shape: Shape, seed: Seed) -> BoolArray:
        check_kernel(shape)
        check_square(shape, "a graph connects units with units")
        # an integer: what networkx makes of a generator is its own affair
        number = int(np.random.default_rng(seed).integers(2**31))
        pairs = np.array(edges(_networkx(), shape[0], number)).reshape(-1, 2)
        kept = np.eye(shape[0], dtype=bool) if diagonal else np.zeros(shape, bool)
        kept[pairs[:, 0], pairs[:, 1]] = kept[pairs[:, 1], pairs[:, 0]] = True
        return kept

    return draw


def _networkx() -> ModuleType:
    try:
        import networkx
    except ImportError as error:
        raise ImportError(
            "patterns from graphs need networkx; pip install 'snaprl[sparsity]'"
        ) from error
    return networkx
