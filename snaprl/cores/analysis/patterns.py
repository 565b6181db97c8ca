"""The pattern of an order, written out: which weight may have an influence on which number.

    S_1 = nz(I);   S_{n+1} = S_1 | nz(D) S_n                                    (4)

Rows are the numbers of the state, a flax carry's arrays one after the other; columns are the
parameters in the order of `jax.flatten_util.ravel_pytree`.
"""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from snaprl.cores import general, reach
from snaprl.cores.cells import is_unitwise, unitwise
from snaprl.cores.types import Params


def influence_pattern(
    cell: nn.RNNCellBase, params: Params, mask: Params, inputs: Any, order: int | None
) -> np.ndarray:
    """Writes S_n of (4) out, as `SnAp(order=n)` follows it.

    On unit-wise cells the state variables of a unit are in or out together.

    Args:
      cell: the cell, unbound.
      params: its parameters, or their shapes and types.
      mask: 0/1 arrays shaped like some of `params`; a leaf that is missing is dense.
      inputs: one step's inputs `[B, M]`, or their shape and type.
      order: n, at least 1; None for every entry that is ever reached, as `RTRL()` follows it.

    Returns:
      Bool `[U N, P]`; the columns of weights that are masked away are False.

    Example:
      >>> import jax.numpy as jnp
      >>> cell = nn.SimpleCell(2)
      >>> x = jnp.zeros((1, 1))
      >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
      >>> params = cell.init(jax.random.key(0), carry, x)["params"]
      >>> mask = {"h": {"kernel": np.array([[0, 1], [0, 0]])}}  # unit 1 reads unit 0
      >>> influence_pattern(cell, params, mask, x, 2)[:, -4:].astype(int)  # bias, then inputs
      array([[1, 0, 1, 0],
             [1, 1, 1, 1]])

    Raises:
      ValueError: the order is below 1.
    """
    if order is not None and order < 1:
        raise ValueError(f"order is {order}; the pattern of an order is that of 1, 2, ...")
    kept = existing(params, mask)
    if not is_unitwise(cell):
        entries = general.pattern(cell, params, mask, inputs, order)
        carry = jax.eval_shape(
            lambda: cell.initialize_carry(jax.random.key(0), (1, *inputs.shape[1:]))
        )
        size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(carry))
        dense = np.zeros((size, len(kept)), bool)
        dense[entries.row, entries.column] = True
        return dense
    view = unitwise(cell)
    reads = np.zeros((view.features, view.features), bool)
    for name in view.recurrent:
        reads |= _filled(params[name], mask.get(name, {}))["kernel"]
    reached = reach.reach(reads, order)  # [q, r]
    return np.tile(reached.T[:, entered(params)] & kept, (view.states, 1))


def existing(params: Params, mask: Params) -> np.ndarray:
    """Which parameters are not masked away: bool `[P]`."""
    return _joined(_filled(params, mask))


def entered(params: Params) -> np.ndarray:
    """The unit that each parameter of a unit-wise cell enters, the last index of its array."""

    def units(p: Any) -> np.ndarray:
        return np.broadcast_to(np.arange(p.shape[-1]), p.shape)

    return _joined(jax.tree.map(units, params))


def kept_share(pattern: np.ndarray, kept: np.ndarray) -> float:
    """The share of the exact influence's entries that a pattern holds.

    Args:
      pattern: of `influence_pattern`.
      kept: of `existing`.
    """
    return float(pattern.sum() / (len(pattern) * kept.sum()))


def pattern_gib(params: Params, states: int, orders: int) -> float:
    """What it takes to hold and to draw patterns, about: a byte per entry, and a picture.

    Args:
      params: the cell's parameters, or their shapes.
      states: the numbers in the state of a stream, `U N`.
      orders: how many patterns.
    """
    return (orders + 16) * states * len(existing(params, {})) / 2**30


def is_closed(cell: nn.RNNCellBase, params: Params, mask: Params, inputs: Any, order: int) -> bool:
    """Whether nothing is left out at an order, so that `SnAp(order)` is exact."""
    kept, whole = (influence_pattern(cell, params, mask, inputs, n) for n in (order, None))
    return np.array_equal(kept, whole)


def check_exact(cell: nn.RNNCellBase) -> None:
    """Refuses a cell for which `RTRL()` is not exact.

    Raises:
      ValueError: its derivatives leave something out, by design.
    """
    if is_unitwise(cell) and not unitwise(cell).exact:
        raise ValueError(
            f"the derivatives of {type(cell).__name__} leave its statistics out, so that no "
            "influence of it is exact; compare on a cell whose derivatives are whole"
        )


def _filled(params: Params, mask: Params) -> Any:
    """The mask with its missing leaves, shaped like `params`."""

    def leaf(path: tuple, p: Any) -> np.ndarray:
        found: Any = mask
        for part in path:
            found = found.get(part.key) if found is not None else None
        return np.ones(p.shape, bool) if found is None else np.asarray(found) != 0

    return jax.tree.map_with_path(leaf, params)


def _joined(tree: Any) -> np.ndarray:
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
