"""A curriculum: tasks become harder when they have been learnt.

Reference: Graves, Wayne et al., "Hybrid computing using a neural network with dynamic external
memory", Nature 2016, for the idea; Menick et al., ICLR 2021, section 5.2, for its use here.
"""

from typing import NamedTuple

import jax.numpy as jnp

from snaprl.training.supervised.types import Array, Totals

LN2 = 0.6931471805599453


class Level(NamedTuple):
    """Where a curriculum stands."""

    level: Array  # [] int32
    error: Array  # []  nats, summed over the targets of the window that is under way
    targets: Array  # []  in that window
    sequences: Array  # []  that began in that window


def start(level: int) -> Level:
    """A curriculum at its first level."""
    zero = jnp.zeros((), jnp.float32)
    return Level(jnp.int32(level), zero, zero, zero)


def advance(state: Level, totals: Totals, *, threshold_bits: float, window: int) -> Level:
    """Adds what an update saw; where that fills the window, judges it and begins the next one.

    The level rises by one if the mean loss over the window's targets lies under the threshold.

    Args:
      state: where the curriculum stands.
      totals: of the update.
      threshold_bits: mean loss per target, in bits.
      window: how many sequences are judged together.
    """
    error, targets = state.error + totals.error, state.targets + totals.targets
    sequences = state.sequences + totals.sequences
    full = (sequences >= window) & (targets > 0)
    learnt = error < threshold_bits * LN2 * targets
    kept = jnp.where(full, 0.0, 1.0)
    level = state.level + (full & learnt).astype(jnp.int32)
    return Level(level, kept * error, kept * targets, kept * sequences)


def told(state: Level) -> dict[str, Array]:
    """What a report says."""
    return {"level": state.level}
