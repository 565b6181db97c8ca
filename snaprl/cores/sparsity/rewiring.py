"""Rewiring: weak weights are dropped, others grow in their place, and their number is kept.

    present:  n weights of a group of E; k = round(fraction * n)
    drop:     the k smallest
    grow:     k of the E - n + k that are then absent: at random, or where the gradient is largest

What was just dropped is absent too, in RigL's rule as here, and may be chosen again: then it is as
if it had never gone, and keeps its value. What has grown starts at 0, so the outputs do not jump.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from snaprl.cores.masks import apply_mask
from snaprl.cores.sparsity.choice import Scope, Tied, check_fraction, choose, largest, share
from snaprl.cores.sparsity.trees import MaskTree, flat_mask, nested, plain_mask
from snaprl.cores.types import Array, Params


class Rewired(NamedTuple):
    """Parameters and the mask that they now have."""

    params: dict[str, Any]  # 0 where the mask is 0, and where a weight has grown
    mask: dict[str, Any]  # bool, as many ones in every group as before


def rewire_set(
    params: Params,
    mask: MaskTree,
    key: Array,
    *,
    fraction: ArrayLike = 0.3,
    scope: Scope = Scope.LAYER,
    tied: Tied = (),
) -> Rewired:
    """Sparse evolutionary training (SET): drops small weights, grows as many at random.

    Reference: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science", Nature Communications 2018 (arXiv 1707.04780). There
    the smallest positive and the largest negative weights are dropped in equal shares, and what
    grows starts at random; here the smallest magnitudes are, and it starts at 0.

    Args:
      params: parameters, with the leaves that the mask names among others.
      mask: 0/1 leaves; parameters without one stay as they are.
      key: consumed.
      fraction: `[]`, the share of a group's weights that is dropped; may be traced.
      scope: in which groups the number of weights is kept: `Scope.UNIT` keeps every unit's fan-in.
      tied: layers with one mask for all, as `gates(cell)` names them.

    Returns:
      The parameters and their mask.

    Raises:
      ValueError: the fraction is known and not in [0, 1], or the mask does not fit.
    """
    leaves = flat_mask(mask)
    keys = jax.random.split(key, max(len(leaves), 1))
    chances = nested(
        {
            path: jax.random.uniform(k, leaf.shape)
            for k, (path, leaf) in zip(keys, leaves.items(), strict=False)
        }
    )
    return _rewire(params, mask, chances, fraction, scope, tied)


def rewire_rigl(
    params: Params,
    mask: MaskTree,
    gradient: Params,
    *,
    fraction: ArrayLike,
    scope: Scope = Scope.LAYER,
    tied: Tied = (),
) -> Rewired:
    """RigL: drops small weights, grows as many where the gradient is largest.

    The gradient must be that of the dense core: `OnlineRNN` gives 0 for a weight that is masked.
    `as_dense` says how to come by it.

    Reference: Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020
    (arXiv 1911.11134), algorithm 1.

    Args:
      params: parameters, with the leaves that the mask names among others.
      mask: 0/1 leaves; parameters without one stay as they are.
      gradient: of the loss, dense, with the leaves that the mask names.
      fraction: `[]`, the share of a group's weights that is dropped, such as
        `cosine_schedule(end=75_000)(step)`; may be traced.
      scope: in which groups the number of weights is kept: `Scope.UNIT` keeps every unit's fan-in.
      tied: layers with one mask for all, as `gates(cell)` names them.

    Returns:
      The parameters and their mask.

    Raises:
      ValueError: the fraction is known and not in [0, 1], or the mask does not fit.
    """
    return _rewire(params, mask, gradient, fraction, scope, tied)


def as_dense(params: Params, mask: MaskTree) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same network with every weight present: absent ones are there, and 0.

    Its outputs are those of the masked network, and its gradient reaches the absent weights, for
    which RigL asks. The mask of ones has the shapes of the other: nothing is compiled anew. The
    influence of an absent weight starts at the segment, since none was carried; leave the carry
    that comes out alone, and go on with the masked network's.

    Args:
      params: parameters, with the leaves that the mask names among others.
      mask: 0/1 leaves.

    Returns:
      `(params, mask)`: the parameters with 0 where the mask was 0, and a mask of ones.

    Example:
      >>> from snaprl.cores import sparsity
      >>> params, ones = sparsity.as_dense(
      ...     {"h": {"kernel": jnp.array([[2.0, 3.0]])}}, {"h": {"kernel": jnp.array([[1, 0]])}}
      ... )
      >>> params["h"]["kernel"].tolist(), ones["h"]["kernel"].tolist()
      ([[2.0, 0.0]], [[True, True]])
    """
    keep = plain_mask(mask)
    return apply_mask(params, keep), jax.tree.map(jnp.ones_like, keep)


def _rewire(
    params: Params,
    mask: MaskTree,
    growth: Params,
    fraction: ArrayLike,
    scope: Scope,
    tied: Tied,
) -> Rewired:
    """Drops by magnitude and grows by the magnitude of `growth`."""
    check_fraction("fraction", fraction)

    def select(present: Array, magnitude: Array, growth: Array) -> Array:
        number = present.sum(axis=0, keepdims=True)  # [1, G]
        dropped = share(fraction, number)
        # below every magnitude: what cannot be chosen comes last
        stays = largest(jnp.where(present, magnitude, -1), number - dropped)
        return stays | largest(jnp.where(stays, -1, growth), dropped)

    kept = choose(select, mask, params, growth, scope=scope, tied=tied)
    both = jax.tree.map(jnp.logical_and, plain_mask(mask), kept)
    return Rewired(apply_mask(params, both), kept)
