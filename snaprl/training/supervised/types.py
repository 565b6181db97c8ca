"""Central types of the supervised tasks: what a task is, and what it gives.

Axes: `T` steps of a segment, `B` streams, `K` symbols or numbers of a step, `C` classes; time
first, then streams.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any


class Symbols(NamedTuple):
    """Whole numbers `[..., parallel]` from 0 to `classes - 1`."""

    classes: int
    parallel: int = 1


class Numbers(NamedTuple):
    """Real numbers `[..., size]`."""

    size: int = 1


Space = Symbols | Numbers


class Piece(NamedTuple):
    """T steps of B streams, as a task gives them."""

    inputs: Array  # [T, B, K] int32 or float32
    targets: Array  # [T, B, K] int32 or float32
    mask: Array  # [T, B] bool  whether the step has a target
    first: Array  # [T, B] bool  starts a sequence: reset BEFORE it is read


class SupervisedSegment(NamedTuple):
    """What the learner is given: a piece, and whose it is."""

    inputs: Array  # [T, B, K]
    targets: Array  # [T, B, K]
    mask: Array  # [T, B]
    first: Array  # [T, B]
    hidden: PyTree  # [B, ...]  where the streams stand
    stream: Array  # [B] int32
    number: Array  # [B] int32


class Totals(NamedTuple):
    """Sums over the targets of a stretch of training or evaluation."""

    targets: Array  # []  steps that have one
    error: Array  # []  nats or squared error, the mean over a step's K
    correct: Array  # []  how often the likeliest symbol was right, the mean over K; 0 for numbers
    sequences: Array  # []  that began


class Exam(NamedTuple):
    """What a trained model is measured on."""

    data: PyTree  # in place of the task's
    streams: int  # B, each of which starts anew
    steps: int | None  # of each stream; None: as many as the config says


class Task(NamedTuple):
    """A task as pure functions over B streams, each of which draws its own randomness."""

    inputs: Space
    targets: Space
    # what it reads, handed to `init` and `draw`: arrays are then no constants of a program
    data: PyTree
    # (data, key, streams) -> where the streams stand, leaves [B, ...]
    init: Callable[[PyTree, Array, int], PyTree]
    # (data, where they stand, shared, T) -> where they stand, Piece
    draw: Callable[[PyTree, PyTree, PyTree, int], tuple[PyTree, Piece]]
    # what an evaluation is called -> what it is; '' where there is one only
    exams: Mapping[str, Exam]
    # name -> score to compare with: the metric is the name's last part, after a dot
    references: Callable[[], dict[str, float]]
    # what all streams share, such as the level of a curriculum, and how it goes on after an update
    shared: PyTree = ()
    advance: Callable[[PyTree, Totals], PyTree] = lambda shared, totals: shared
    # shared -> what a report tells of it
    told: Callable[[PyTree], dict[str, Array]] = lambda shared: {}
    # steps that the data have for one stream; None: there is no end
    length: int | None = None
    # what a checkpoint belongs to besides its config, such as a vocabulary
    facts: Mapping[str, str] = {}
