"""A core whose weights change places while it runs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze

from snaprl.cores import checks
from snaprl.cores.masks import Mask
from snaprl.cores.online_rnn import OnlineRNN
from snaprl.cores.stand_in import stand_in
from snaprl.cores.types import CoreState, PyTree, Sparsity


def rewire(
    rnn: OnlineRNN,
    variables: Mapping[str, Any],
    mask: Mapping[str, Any] | Mask,
    input_shape: tuple[int, ...],
    carry: CoreState | None = None,
) -> tuple[dict[str, Any], CoreState | None]:
    """Gives a core another mask, without recompiling what runs it.

    The influence of weights that stay is carried over; that of new ones starts at 0, as does what
    reaches a unit on a way that was not there before. Only estimates, those of `UORO`, `KFRTRL` and
    `OKRTRL`, stay as they were: of a new weight they tell what they drew for it while it was not
    there.

    Args:
      rnn: the module, made with a mask.
      variables: its own variables, `params` and `sparsity` among them.
      mask: the new mask, with the leaves of the old one.
      input_shape: `(B, M)`, as in `initialize_carry`.
      carry: the streams' state under the old mask; None where there is none to keep.

    Returns:
      `(variables, carry)` under the new mask, in the shapes of the old ones.

    Raises:
      TypeError: the mask is none, or the carry is no `CoreState`.
      ValueError: the core has no mask; the new one has other leaves or shapes, or its pattern does
        not fit the shapes of the first: give that one room, by `Mask(mask, room=...)`, or make the
        core anew.
    """
    held, new = _checked(rnn, variables, mask)
    params, old = held["params"]["cell"], held["sparsity"]
    cell: Any = rnn.cell.clone(parent=None, name=None)
    checks.check_input_shape(input_shape, cell, "it must be (streams, inputs)")
    inputs: Any = jax.ShapeDtypeStruct(tuple(input_shape), np.float32)
    tree, room = new.tree(), old.get("pattern", ())
    after = Sparsity(tree, rnn.method.pattern(cell, params, tree, inputs, room))
    # where this method reads nothing off a mask, another one did
    before = Sparsity(old["cell"], room if after.pattern != () else ())
    collection: dict[str, PyTree] = {"cell": after.mask}
    if after.pattern != ():
        collection["pattern"] = after.pattern
    if carry is not None:
        checks.check_carry(carry)
        streams = len(jax.tree.leaves(carry.hidden)[0])
        expected = jax.eval_shape(
            lambda: rnn.method.init(cell, params, before, streams, jax.random.key(0))
        )
        shape = (streams, *input_shape[1:])
        influence = checks.check_tree(
            "carry.influence", carry.influence, expected, shape, widen=True
        )
        influence = rnn.method.transfer(cell, params, before, after, influence)
        carry = carry._replace(influence=influence)
    # on the device, as those of a core that is made: numpy's would be moved there at every call
    return {**held, "sparsity": jax.tree.map(jnp.asarray, collection)}, carry


def _checked(
    rnn: OnlineRNN, variables: Mapping[str, Any], mask: Mapping[str, Any] | Mask
) -> tuple[dict[str, Any], Mask]:
    """The variables as dicts, and the mask, which fits them."""
    if (other := stand_in(rnn.cell)) is not None:
        raise ValueError(
            f"which weights a {type(rnn.cell).__name__} has follows from its seed, and stays so; "
            f"use {type(other.cell).__name__} with a mask"
        )
    given: Any = variables
    held: Any = unfreeze(given)
    for name in ("params", "sparsity"):
        if "cell" not in held.get(name, {}):
            raise ValueError(
                f"variables hold no {name}/cell; they must be the core's own, and the core must "
                "be made with a mask: OnlineRNN(cell, mask=...)"
            )
    new, old = (m if isinstance(m, Mask) else Mask(m) for m in (mask, held["sparsity"]["cell"]))
    new.check_leaves(old)
    new.check(held["params"]["cell"])
    return held, new
