"""What the tests of the tasks share: a long piece of a task, drawn at once or bit by bit."""

import jax
import numpy as np

from snaprl.training.supervised.registry import make_task
from snaprl.training.supervised.types import Piece, Task


def drawn(
    task: Task, *, steps: int, streams: int = 4, seed: int = 0, cuts=(), shared=None
) -> Piece:
    """`steps` steps of a task, as numpy arrays, drawn in pieces that end at `cuts`."""
    data = jax.tree.map(np.asarray, task.data)
    place = task.init(data, jax.random.key(seed), streams)
    shared = task.shared if shared is None else shared
    draw = jax.jit(task.draw, static_argnums=3)
    pieces = []
    for start, end in zip((0, *cuts), (*cuts, steps), strict=True):
        place, piece = draw(data, place, shared, end - start)
        pieces.append(jax.tree.map(np.asarray, piece))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *pieces)


def made(name: str, **kwargs) -> Task:
    """A task by name."""
    return make_task(name, kwargs)


def sequences(piece: Piece, stream: int) -> list[Piece]:
    """The whole sequences of one stream, the last one left out: leaves `[t, ...]`."""
    starts = np.flatnonzero(piece.first[:, stream])
    return [
        jax.tree.map(lambda x, a=a, b=b: x[a:b, stream], piece)
        for a, b in zip(starts, starts[1:], strict=False)
    ]
