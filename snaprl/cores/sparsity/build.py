"""A mask tree for a cell, from patterns for its kernels."""

from collections.abc import Iterator

import flax.linen as nn
import numpy as np

from snaprl.cores.cells import is_unitwise, unitwise
from snaprl.cores.sparsity.choice import Tied
from snaprl.cores.sparsity.patterns import BoolArray, Pattern, Seed, Shape, check_positive
from snaprl.cores.unitwise import UnitwiseCell


def mask(
    cell: nn.RNNCellBase,
    input_size: int,
    pattern: Pattern | None,
    *,
    shared: bool = True,
    inputs: Pattern | None = None,
    seed: Seed = 0,
) -> dict[str, dict[str, BoolArray]]:
    """Makes a mask tree for a cell, as `OnlineRNN(cell, mask=...)` takes it.

    The recurrent pattern does not depend on whether the inputs have one, nor on `input_size`.
    Biases are always dense.

    Args:
      cell: flax's SimpleCell, GRUCell, MGUCell, LSTMCell or OptimizedLSTMCell, with N units.
      input_size: M, the number of inputs.
      pattern: of the recurrent kernels `[N, N]`: any `(shape, seed) -> 0/1 array`, such as
        `fixed_fan_in(16)`. None leaves them dense.
      shared: whether the gates share one pattern, or each draws its own. Where gates differ, a
        unit reads the union of what they read: SnAp of order 2 and higher then costs several times
        as much.
      inputs: a pattern of the input kernels `[M, N]`. None leaves them dense.
      seed: an integer, or a generator that is drawn from. A pattern is called with a generator.

    Returns:
      Nested dicts with a bool array `kernel` for each layer that has a pattern; leaves that are
      missing are dense.

    Raises:
      TypeError: `cell` is not one that is known to be unit-wise.
      ValueError: a pattern does not fit its kernel, or gives something else than 0 and 1; or the
        units of the cell read no others, and there is no recurrent kernel.

    Example:
      >>> from snaprl.cores import OnlineRNN, sparsity
      >>> cell = nn.GRUCell(256)
      >>> mask = sparsity.mask(cell, 64, sparsity.fixed_fan_in(16))
      >>> {name: leaf["kernel"].shape for name, leaf in mask.items()}
      {'hr': (256, 256), 'hz': (256, 256), 'hn': (256, 256)}
      >>> rnn = OnlineRNN(cell, mask=mask)
    """
    view = _known(cell)
    check_positive("input_size", input_size)
    if pattern is not None and not view.recurrent:
        raise ValueError(
            f"the units of {type(cell).__name__} read no others: it has no recurrent kernel for a "
            "pattern; give None for it, and inputs= where the input kernels are to have one"
        )
    rng = np.random.default_rng(seed)
    kinds = (
        (pattern, view.recurrent, (view.features, view.features)),
        (inputs, view.inputs, (input_size, view.features)),
    )
    return {
        name: {"kernel": kernel}
        for draw, names, shape in kinds
        if draw is not None
        for name, kernel in zip(names, _kernels(draw, shape, rng, len(names), shared), strict=True)
    }


def gates(cell: nn.RNNCellBase) -> Tied:
    """Names the layers of `cell` that share a mask: all recurrent ones, and all input ones.

    It is what pruning and rewiring take as `tied`, so that a mask shared by the gates stays so.

    Args:
      cell: a cell that `mask` takes.

    Returns:
      Groups of layer names.

    Raises:
      TypeError: `cell` is not one that is known to be unit-wise.

    Example:
      >>> gates(nn.GRUCell(8))
      (('hr', 'hz', 'hn'), ('ir', 'iz', 'in'))
    """
    view = _known(cell)
    return view.recurrent, view.inputs


def _known(cell: nn.RNNCellBase) -> UnitwiseCell:
    if not isinstance(cell, nn.RNNCellBase) or not is_unitwise(cell):
        raise TypeError(
            f"{type(cell).__name__} is no linen cell whose gates are known; make a mask for it "
            'under its own names, such as {"dense_h": {"kernel": fixed_fan_in(16)((64, 192), 0)}}'
        )
    return unitwise(cell)


def _kernels(
    pattern: Pattern, shape: Shape, rng: np.random.Generator, number: int, shared: bool
) -> Iterator[BoolArray]:
    """The masks of `number` gates."""
    first = _drawn(pattern, shape, rng)
    yield first
    for _ in range(number - 1):
        yield first.copy() if shared else _drawn(pattern, shape, rng)


def _drawn(pattern: Pattern, shape: Shape, rng: np.random.Generator) -> BoolArray:
    """What a pattern gives, which may be the user's own."""
    kernel = np.asarray(pattern(shape, rng))
    if kernel.shape != shape:
        raise ValueError(
            f"the pattern gave an array of shape {kernel.shape} for a kernel of shape {shape}; "
            "it must keep the shape"
        )
    if not np.isin(kernel, (0, 1)).all():
        raise ValueError("the pattern gave entries other than 0 and 1; a mask has no others")
    return kernel.astype(bool)
