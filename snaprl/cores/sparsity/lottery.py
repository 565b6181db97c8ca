"""Lottery tickets: prune what has been trained, and start again from where training was young."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike

from snaprl.cores.masks import apply_mask
from snaprl.cores.sparsity.choice import Scope, Tied, check_fraction, choose, largest, share
from snaprl.cores.sparsity.trees import MaskTree, flat
from snaprl.cores.types import Array, Params


class Ticket(NamedTuple):
    """A sparse network that is worth training."""

    params: dict[str, Any]  # 0 where the mask is 0
    mask: dict[str, Any]  # bool


def lottery_round(
    params: Params,
    mask: MaskTree,
    early: Params,
    *,
    fraction: ArrayLike = 0.2,
    scope: Scope = Scope.LAYER,
    tied: Tied = (),
) -> Ticket:
    """One round of iterative pruning: drops the smallest trained weights, rewinds the others.

    Of n weights that a group has left, `round(fraction * n)` go; so k rounds leave about
    `(1 - fraction)^k` of them. The optimiser starts anew with the ticket.

    References: Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019 (arXiv 1803.03635),
    which rewinds to the initial parameters; Frankle et al., "Linear Mode Connectivity and the
    Lottery Ticket Hypothesis", ICML 2020 (arXiv 1912.05671), which rewinds to those of an early
    step: larger networks need it.

    Args:
      params: parameters at the end of training.
      mask: 0/1 leaves that they were trained with; parameters without one are rewound, not pruned.
      early: parameters as they were at first, or after some steps.
      fraction: `[]`, the share of a group's weights that is dropped; may be traced.
      scope: among which weights the smallest are looked for.
      tied: layers with one mask for all, as `gates(cell)` names them.

    Returns:
      The parameters to train next and their mask.

    Raises:
      ValueError: the fraction is known and not in [0, 1], or the mask or `early` does not fit.
    """
    check_fraction("fraction", fraction)
    _check_one_network(params, early)

    def select(present: Array, magnitude: Array) -> Array:
        number = present.sum(axis=0, keepdims=True)  # [1, G]
        # below every magnitude: what is masked comes last
        return largest(jnp.where(present, magnitude, -1), number - share(fraction, number))

    kept = choose(select, mask, params, scope=scope, tied=tied)
    return Ticket(apply_mask(early, kept), kept)


def _check_one_network(params: Params, early: Params) -> None:
    """Raises where `early` lacks a leaf of `params`, has another, or has it in another shape."""
    then, now = ({path: jnp.shape(x) for path, x in flat(t).items()} for t in (early, params))
    for path in now | then:
        if then.get(path) != now.get(path):
            raise ValueError(
                f"{'/'.join(map(str, path))} has shape {then.get(path)} in early and "
                f"{now.get(path)} in params; rewind to parameters of the same network"
            )
