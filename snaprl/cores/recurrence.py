"""Linear recurrences that run backward through a segment, each unit on its own.

    x_t = x_{t+1} d_{t+1} + c_t                                                              (A)

with blocks d of U x U. Two steps in a row are one step of the same kind, so an accelerator may
halve a segment again and again (an associative scan), where a CPU does better to go through it
once.
"""

import jax
import jax.numpy as jnp

from snaprl.cores.loops import scan
from snaprl.cores.resets import where_reset
from snaprl.cores.types import Array
from snaprl.cores.unitwise import Block, Entries, Vector, block_block, total, written_out

Rows = tuple[Entries, ...]  # R rows of U entries: as many recurrences with one d


def backward(
    steps: int, d: Block, c: Rows, end: tuple[Vector, ...], resets: Array | None
) -> tuple[tuple[Vector, ...], tuple[Vector, ...]]:
    """Runs (A) from a segment's end to its start, in the way that suits the device.

    Args:
      steps: T.
      d: U x U entries `[T, B, N]`.
      c: R rows of U entries `[T, B, N]`.
      end: what arrives at the last step from behind the segment, R rows of U arrays `[B, N]`.
      resets: bool `[T, B]`: nothing passes from step t to the one before; None for nowhere.

    Returns:
      `(x_1 d_1, x)`: R rows of U arrays, `[B, N]` and `[T, B, N]`.
    """
    run = by_steps if jax.default_backend() == "cpu" else by_halves
    return run(steps, d, c, end, resets)


def by_steps(
    steps: int, d: Block, c: Rows, end: tuple[Vector, ...], resets: Array | None
) -> tuple[tuple[Vector, ...], tuple[Vector, ...]]:
    """One step after the other; see `backward`."""
    like = end[0][0]

    def step(after: tuple[Vector, ...], inputs: tuple) -> tuple[tuple, tuple]:
        d_t, c_t, reset_t, _ = inputs
        x_t = _plus(after, c_t)
        before = tuple(written_out(row, like) for row in block_block(x_t, d_t))
        return where_reset(reset_t, 0.0, before), x_t

    # all of d and c may be zero by structure: the numbers say how many steps there are
    return scan(step, end, (d, c, resets, jnp.arange(steps)), reverse=True)


def by_halves(
    steps: int, d: Block, c: Rows, end: tuple[Vector, ...], resets: Array | None
) -> tuple[tuple[Vector, ...], tuple[Vector, ...]]:
    """Many steps at once, as an associative scan; see `backward`."""
    like = jnp.broadcast_to(end[0][0], (steps, *end[0][0].shape))
    written = tuple(written_out(row, like) for row in d)
    passed = tuple(written_out(row, like) for row in block_block(c, written))
    each = where_reset(resets, 0.0, (written, passed))

    def joined(later: tuple, earlier: tuple) -> tuple:
        # after -> after D + b; what comes before a reset is not multiplied by 0, which keeps a NaN
        (D_1, b_1, reset_1), (D_2, b_2, reset_2) = later, earlier
        D, b = block_block(D_1, D_2), block_block(b_1, D_2)
        D, b = where_reset(reset_2, 0.0, (D, b))
        reset = None if reset_1 is None else reset_1 | reset_2
        return D, _plus(b, b_2), reset

    D, b, reset = jax.lax.associative_scan(joined, (*each, resets), reverse=True)
    whole = tuple(tuple(jnp.broadcast_to(x, like.shape) for x in row) for row in end)
    arriving = tuple(written_out(row, like) for row in block_block(whole, D))
    before = _plus(where_reset(reset, 0.0, arriving), b)  # x_t d_t
    after = jax.tree.map(lambda x, e: jnp.concatenate([x[1:], e[None]]), before, end)
    return jax.tree.map(lambda x: x[0], before), _plus(after, c)


def _plus(left: tuple[Vector, ...], right: Rows) -> tuple[Vector, ...]:
    """Row by row."""
    return tuple(
        tuple(total((x, y)) for x, y in zip(*rows, strict=True))
        for rows in zip(left, right, strict=True)
    )
