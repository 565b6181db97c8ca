"""Structured patterns: weights that exist in blocks, or N of every M.

Called like the patterns of `patterns`, with a kernel's shape `[inputs, units]` and a seed.
"""

import numpy as np

from snaprl.cores.sparsity.patterns import (
    BoolArray,
    Pattern,
    Seed,
    Shape,
    check_kernel,
    check_positive,
    check_room,
    check_square,
    random_scores,
    smallest,
)


def block(density: float, block_size: int | tuple[int, int], *, diagonal: bool = False) -> Pattern:
    """Keeps whole blocks of weights, `round(density * blocks)` of them.

    Reference: Gray, Radford and Kingma, "GPU Kernels for Block-Sparse Weights", 2017.

    Args:
      density: the share of blocks that exist, from 0 to 1.
      block_size: the sides of a block, (inputs, units); an integer stands for both.
      diagonal: always keep the blocks that hold the weight from a unit to itself.

    Returns:
      A pattern, `(shape, seed) -> bool [inputs, units]`.

    Raises:
      ValueError: a number is out of range; when called, the blocks do not fill the kernel, or the
        diagonal has no room.

    Example:
      >>> block(0.5, 2)((4, 4), 2).astype(int)
      array([[1, 1, 0, 0],
             [1, 1, 0, 0],
             [0, 0, 1, 1],
             [0, 0, 1, 1]])
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density is {density}; it must lie in [0, 1]")
    rows, columns = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    check_positive("block_size", rows)
    check_positive("block_size", columns)

    def draw(shape: Shape, seed: Seed) -> BoolArray:
        check_kernel(shape)
        if shape[0] % rows or shape[1] % columns:
            raise ValueError(
                f"blocks of {rows} x {columns} do not fill a kernel of shape {shape}; "
                "use a block_size that divides it"
            )
        grid = (shape[0] // rows, shape[1] // columns)
        scores = random_scores(grid, seed, diagonal=False)
        own = np.zeros(grid, bool)
        if diagonal:
            check_square(shape, "diagonal=True keeps a unit's own weight")
            own = np.eye(shape[0], dtype=bool)
            own = own.reshape(grid[0], rows, grid[1], columns).any(axis=(1, 3))
            scores[own] = -1.0
        count = round(density * scores.size)
        check_room("block", count, int(own.sum()), "blocks", shape)
        kept = smallest(scores.ravel(), count).reshape(grid)
        return kept.repeat(rows, axis=0).repeat(columns, axis=1)

    return draw


def n_of_m(n: int, m: int, *, diagonal: bool = False) -> Pattern:
    """Keeps `n` of every `m` inputs that follow one another, for every unit.

    Reference: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021 (arXiv 2104.08378),
    where 2 of 4 is what the hardware multiplies fast.

    Args:
      n: how many exist.
      m: of how many.
      diagonal: always keep the weight from a unit to itself, as one of its `n`.

    Returns:
      A pattern, `(shape, seed) -> bool [inputs, units]`.

    Raises:
      ValueError: not 1 <= n <= m; when called, `m` does not divide the inputs.

    Example:
      >>> n_of_m(2, 4)((8, 3), 0).reshape(2, 4, 3).sum(axis=1)
      array([[2, 2, 2],
             [2, 2, 2]])
    """
    check_positive("n", n)
    check_positive("m", m)
    if n > m:
        raise ValueError(f"n is {n} and m is {m}; n of m needs n <= m")

    def draw(shape: Shape, seed: Seed) -> BoolArray:
        scores = random_scores(shape, seed, diagonal)
        if shape[0] % m:
            raise ValueError(
                f"m is {m}, which does not divide the {shape[0]} inputs of a kernel of shape "
                f"{shape}; use an m that does"
            )
        groups = scores.reshape(-1, m, shape[1]).swapaxes(0, 1)  # [m, inputs / m, units]
        return smallest(groups, n).swapaxes(0, 1).reshape(shape)

    return draw
