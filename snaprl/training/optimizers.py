"""From a config to an optimiser: clipping, Adam, schedules, and a rate for each part."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import optax

from snaprl.training.schema import OptimizerConfig, RatesConfig, UpdatesConfig

PyTree = Any


def optimizer(config: OptimizerConfig, updates: int) -> optax.GradientTransformation:
    """Adam after clipping by the global norm, on a schedule, at its own rate for each part.

    Args:
      config: which.
      updates: steps of the whole training, over which the schedule goes.
    """
    schedule = learning_rate(config, updates)
    parts = [optax.clip_by_global_norm(config.max_grad_norm), optax.adam(schedule)]
    if config.rates != RatesConfig():
        parts.append(scale_parts(dataclasses.asdict(config.rates)))
    return optax.chain(*parts)


def learning_rate(config: UpdatesConfig, updates: int) -> optax.Schedule:
    """The config's schedule over `updates` updates."""
    peak = config.learning_rate
    warmup = int(updates * config.warmup_fraction)
    final = config.final_learning_rate_fraction
    schedule = way(config.schedule, peak, updates - warmup, final_fraction=final)
    if warmup:
        rise = optax.linear_schedule(0.0, peak, warmup)
        schedule = optax.join_schedules([rise, schedule], [warmup])
    return schedule


def way(name: str, peak: float, updates: int, *, final_fraction: float) -> optax.Schedule:
    """The way of a number from `peak` to a fraction of it, in so many updates.

    Args:
      name: "constant", which leaves it where it is, "linear" or "cosine".
      peak: where it begins.
      updates: after how many it has arrived.
      final_fraction: of `peak`, at the end.
    """
    updates = max(1, updates)
    if name == "linear":
        return optax.linear_schedule(peak, peak * final_fraction, updates)
    if name == "cosine":
        return optax.cosine_decay_schedule(peak, updates, final_fraction)
    return optax.constant_schedule(peak)


def scale_parts(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the steps of the parts of a network, after the optimiser.

    Adam's steps do not depend on the size of gradients, so that here a factor on the steps is one
    on the learning rate, whatever its schedule.

    Args:
      factors: of the entries of `params`, by name; entries without one are left as they are.
    """

    def update(steps: PyTree, params: PyTree | None = None) -> PyTree:
        del params
        return {
            name: optax.tree.scale(factors.get(name, 1.0), part) for name, part in steps.items()
        }

    return optax.stateless(update)
