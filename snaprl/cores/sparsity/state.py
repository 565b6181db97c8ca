"""Masks and moments inside an optimiser's state."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from snaprl.cores.sparsity.pruning import MaskState, PruningState
from snaprl.cores.sparsity.trees import MaskTree, fitting, flat, flat_mask, nested, replaced
from snaprl.cores.types import Params

State = TypeVar("State")


def mask_of(opt_state: Any) -> Params:
    """Reads the mask out of an optimiser's state.

    Args:
      opt_state: a state with `keep_masked` or `magnitude_pruning` somewhere in it.

    Returns:
      The mask, bool, in a tree like the parameters': that of an `OnlineRNN` is `{"cell": ...}`, as
      the collection `sparsity` has it.

    Raises:
      ValueError: the state holds no mask, or several.
    """
    return _holder(opt_state).mask


def with_mask(opt_state: State, mask: MaskTree) -> State:
    """Puts another mask into an optimiser's state, shaped like the one that it holds.

    Args:
      opt_state: a state with `keep_masked` or `magnitude_pruning` somewhere in it.
      mask: 0/1 leaves.

    Returns:
      The state with that mask.

    Raises:
      ValueError: the state holds no mask or several, or one with other leaves or shapes.
    """
    held, new = flat_mask(_holder(opt_state).mask), flat_mask(mask)
    fitting(nested(held), new)
    fitting(nested(new), held)

    def put(node: Any) -> Any:
        return node._replace(mask=replaced(node.mask, new)) if _holds_mask(node) else node

    return jax.tree.map(put, opt_state, is_leaf=_holds_mask)


def reset_moments(opt_state: State, mask_tm1: MaskTree, mask_t: MaskTree) -> State:
    """Puts 0 into an optimiser's moments where a weight was dropped or has grown.

    A moment is told by its shape: a tree inside the state that holds every leaf of the mask in the
    mask's shape. Adam's, momentum's and RMSProp's are such; factored ones are not, and stay.

    Args:
      opt_state: any optimiser's state.
      mask_tm1: 0/1 leaves, before the weights were rewired.
      mask_t: after; the same leaves in the same shapes.

    Returns:
      The state; masks inside it, and counts of steps, are as they were.

    Raises:
      ValueError: the two masks have other leaves or shapes.
    """
    old, new = flat_mask(mask_tm1), flat_mask(mask_t)
    fitting(nested(old), new)
    fitting(nested(new), old)

    def moments(node: Any) -> bool:
        if not isinstance(node, Mapping):
            return False
        shapes = {path: getattr(leaf, "shape", None) for path, leaf in flat(node).items()}
        return all(shapes.get(path) == leaf.shape for path, leaf in new.items())

    def reset(node: Any) -> Any:
        if not moments(node):
            return node
        leaves = flat(node)
        changed = {p: jnp.where(old[p] == new[p], leaves[p], 0) for p in new}
        return replaced(node, changed)

    return jax.tree.map(reset, opt_state, is_leaf=lambda n: _holds_mask(n) or moments(n))


def _holds_mask(node: Any) -> bool:
    return isinstance(node, MaskState | PruningState)


def _holder(opt_state: Any) -> MaskState | PruningState:
    found = [n for n in jax.tree.leaves(opt_state, is_leaf=_holds_mask) if _holds_mask(n)]
    if len(found) != 1:
        raise ValueError(
            f"opt_state holds {len(found)} masks; chain the optimiser with one of keep_masked and "
            "magnitude_pruning"
        )
    return found[0]
