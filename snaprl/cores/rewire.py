"""A core whose weights change places while it runs."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from snaprl.cores.masks import Mask
from snaprl.cores.online_rnn import OnlineRNN
from snaprl.cores.types import CoreState, PyTree, Sparsity


def rewire(
    rnn: OnlineRNN,
    variables: Mapping[str, Any],
    mask: Mapping[str, Any],
    input_shape: tuple[int, ...],
    carry: CoreState | None = None,
) -> tuple[dict[str, Any], CoreState | None]:
    """Gives a core another mask, without recompiling what runs it.

    The influence of weights that stay is carried over; that of new ones starts at 0, as does what
    reaches a unit on a way that was not there before.

    Args:
      rnn: the module, made with a mask.
      variables: its own variables, `params` and `sparsity` among them.
      mask: the new mask, with the leaves of the old one.
      input_shape: `(B, M)`, as in `initialize_carry`.
      carry: the streams' state under the old mask; None where there is none to keep.

    Returns:
      `(variables, carry)` under the new mask, in the shapes of the old ones.

    Raises:
      ValueError: the mask has other leaves, or its pattern does not fit the shapes of the first:
        start from a mask that leaves room, or make the core anew.
    """
    old: Any = variables["sparsity"]
    tree = Mask(jax.tree.map(np.asarray, mask)).tree()
    if jax.tree.structure(tree) != jax.tree.structure(jax.tree.map(np.asarray, dict(old["cell"]))):
        raise ValueError("the new mask has other leaves than the one that the core was made with")
    params: Any = variables["params"]["cell"]
    cell: Any = rnn.cell.clone(parent=None, name=None)
    inputs: Any = jax.ShapeDtypeStruct(tuple(input_shape), np.float32)
    room = old.get("pattern", ())
    after = Sparsity(tree, rnn.method.pattern(cell, params, tree, inputs, room))
    # where this method reads nothing off a mask, another one did
    before = Sparsity(old["cell"], room if after.pattern != () else ())
    collection: dict[str, PyTree] = {"cell": after.mask}
    if after.pattern != ():
        collection["pattern"] = after.pattern
    if carry is not None:
        influence = rnn.method.transfer(cell, params, before, after, carry.influence)
        carry = carry._replace(influence=influence)
    return {**variables, "sparsity": collection}, carry
