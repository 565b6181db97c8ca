"""What a stretch of training came to, as numbers for a report."""

from typing import Any, NamedTuple

import numpy as np


class Chunk(NamedTuple):
    """What happened in a number of updates."""

    updates: int
    metrics: dict[str, Any]  # [at least `updates`]  the learner's, per update
    episodes: dict[str, Any]  # []  sums over the episodes that ended; `episodes` counts them


class Divergence(ArithmeticError):
    """A metric of the learner is not finite; the message says which and when."""


def report(chunk: Chunk, *, knows_success: bool) -> dict[str, float]:
    """Averages a chunk.

    Args:
      chunk: what happened.
      knows_success: whether the task says which episodes succeed.

    Returns:
      The learner's metrics, averaged over updates; `episodes`, and, where some ended, the averages
      `episode_return`, `episode_length` and `success` over them.
    """
    numbers = {
        name: float(np.mean(values[: chunk.updates], dtype=np.float64))
        for name, values in sorted(chunk.metrics.items())
    }
    gaps = chunk.metrics.get("gaps")
    if gaps is not None:
        numbers["gaps"] = float(np.sum(gaps[: chunk.updates]))
    count = float(chunk.episodes["episodes"])
    numbers["episodes"] = count
    for name in ("episode_return", "episode_length", "success"):
        if count and (name != "success" or knows_success):
            numbers[name] = float(chunk.episodes[name]) / count
    return numbers


def check_finite(chunk: Chunk, *, first_update: int, steps_per_update: int) -> None:
    """Looks for the first update at which a metric was not finite.

    Raises:
      Divergence: there is one; the message names the metrics, the update and the step.
    """
    bad = {
        name: int(np.argmax(~np.isfinite(values[: chunk.updates])))
        for name, values in chunk.metrics.items()
        if not np.isfinite(values[: chunk.updates]).all()
    }
    if bad:
        at = min(bad.values())
        names = ", ".join(sorted(name for name, k in bad.items() if k == at))
        step = (first_update + at + 1) * steps_per_update
        raise Divergence(
            f"{names} became NaN or infinite at update {first_update + at} (step {step})"
        )
