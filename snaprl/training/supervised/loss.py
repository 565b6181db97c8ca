"""The loss of a supervised task: cross-entropy of symbols, or squared error of numbers."""

from typing import Any

import jax
import jax.numpy as jnp

from snaprl.cores import CoreState
from snaprl.training.learner import Loss
from snaprl.training.supervised.model import SequenceModel
from snaprl.training.supervised.types import (
    Array,
    Piece,
    PyTree,
    Space,
    SupervisedSegment,
    Symbols,
    Totals,
)


def totals(targets: Space, outputs: Array, piece: Piece | SupervisedSegment) -> Totals:
    """Sums over the steps that have a target.

    Args:
      targets: what the targets are.
      outputs: logits `[T, B, K, C]`, or values `[T, B, K]`.
      piece: with the targets `[T, B, K]`.
    """
    if isinstance(targets, Symbols):
        chosen = piece.targets[..., None]
        log_probs = jax.nn.log_softmax(outputs)
        error = -jnp.take_along_axis(log_probs, chosen, axis=-1)[..., 0]
        right = (outputs.argmax(-1) == piece.targets).astype(error.dtype)
    else:
        error = (outputs - piece.targets) ** 2
        right = jnp.zeros_like(error)
    # `where` and not a product: a masked step may hold anything
    error, correct = (jnp.where(piece.mask, x.mean(-1), 0.0).sum() for x in (error, right))
    count, begun = (x.sum(dtype=jnp.float32) for x in (piece.mask, piece.first))
    return Totals(count, error, correct, begun)


def make_loss(model: SequenceModel) -> Loss:
    """Makes the learner's loss: the mean over those steps of a segment that have a target.

    Its metrics are the `Totals` of the segment, by name.
    """
    apply: Any = model.apply

    def loss(
        variables: PyTree, state: CoreState, segment: SupervisedSegment
    ) -> tuple[Array, tuple[CoreState, dict[str, Array]]]:
        state, outputs = apply(variables, state, segment.inputs, segment.first)
        sums = totals(model.targets, outputs, segment)
        return sums.error / jnp.maximum(sums.targets, 1), (state, sums._asdict())

    return loss
