"""What a stretch of training came to, as numbers for a report."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from snaprl.training.errors import UserError


class Chunk(NamedTuple):
    """What happened in a number of updates."""

    updates: int
    metrics: dict[str, Any]  # [at least `updates`]  the learner's, per update
    # []  sums over the episodes that ended, which `episodes` counts; of a supervised task, sums
    # over the `targets`
    episodes: dict[str, Any]
    failure: UserError | None = None  # why no more are to be had; what was made is good


class Divergence(ArithmeticError):
    """A metric of the learner is not finite; the message says which and when."""


def report(chunk: Chunk, *, knows_success: bool) -> dict[str, float]:
    """Averages a chunk.

    Args:
      chunk: what happened.
      knows_success: whether the task says which episodes succeed.

    Returns:
      The learner's metrics, averaged over updates; `episodes`, and, where some ended, the averages
      `episode_return`, `episode_length` and `success` over them. Of a supervised task, what
      `of_targets` gives, and the curriculum's `level` at the end.
    """
    numbers = {
        name: float(np.mean(values[: chunk.updates], dtype=np.float64))
        for name, values in sorted(chunk.metrics.items())
    }
    gaps = chunk.metrics.get("gaps")
    if gaps is not None:
        numbers["gaps"] = float(np.sum(gaps[: chunk.updates]))
    if "level" in chunk.metrics:
        numbers["level"] = float(chunk.metrics["level"][chunk.updates - 1])
    if "targets" in chunk.episodes:
        del numbers["loss"]  # which counts updates alike, whether they had many targets or none
        return numbers | of_targets(chunk.episodes)
    count = float(chunk.episodes["episodes"])
    numbers["episodes"] = count
    for name in ("episode_return", "episode_length", "success"):
        if count and (name != "success" or knows_success):
            numbers[name] = float(chunk.episodes[name]) / count
    return numbers


def density(variables: Mapping[str, Any]) -> dict[str, float]:
    """`density`, the share of the weights of masked layers that are there; {} without masks."""
    masks = [
        np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(variables.get("sparsity", {}))
        if "pattern" not in jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    ]
    size = sum(mask.size for mask in masks)
    return {"density": sum(int(np.count_nonzero(m)) for m in masks) / size} if size else {}


def of_targets(sums: Mapping[str, Any]) -> dict[str, float]:
    """Averages over targets: `loss`, and for symbols `bits_per_char` and `accuracy`.

    Args:
      sums: `targets`, `error` in nats or squared, and for symbols `correct`.
    """
    targets = float(sums["targets"])
    if not targets:
        return {}
    loss = float(sums["error"]) / targets
    if "correct" not in sums:
        return {"loss": loss}
    accuracy = float(sums["correct"]) / targets
    return {"loss": loss, "bits_per_char": loss / math.log(2), "accuracy": accuracy}


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
