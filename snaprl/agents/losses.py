"""What the losses of actor-critics share: what they read, what they aim at, how they add up."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from snaprl.agents.types import Array, Segment

# a weight, or one that follows from the learner's count of updates, as optax's schedules do
Cost = float | Callable[[Any], Any]


class Outputs(NamedTuple):
    """What the network says of a segment; values are in units of reward."""

    log_prob: Array  # [T, B]  of the actions that were taken
    entropy: Array  # [T, B]
    values: Array  # [T+1, B]  the last only bootstraps
    scale: Array | float  # []  the unit in which errors of values are measured; 1 without PopArt


class Targets(NamedTuple):
    """What a loss aims at in a segment; no gradient flows through it."""

    value: Array  # [T, B]  what the value should have been
    advantage: Array  # [T, B]  how much better the action was than the policy
    baseline: Array  # [T, B]  the value that the network gave when this was computed


@runtime_checkable
class Loss(Protocol):
    """A loss: a frozen dataclass of its costs, called with what was said and what is aimed at.

    Attributes:
      discount: how much of a reward is left one step earlier.
      targets_first: targets are computed once, before the first of several passes over a segment,
        and not in each of them.
    """

    targets_first: ClassVar[bool]

    @property
    def discount(self) -> float:
        """See above."""
        ...

    def targets(self, outputs: Outputs, segment: Segment) -> Targets:
        """What to aim at, in units of reward."""
        ...

    def __call__(
        self, outputs: Outputs, segment: Segment, targets: Targets
    ) -> tuple[Array, dict[str, Array]]:
        """The loss, a mean over transitions, and metrics."""
        ...


def mean(x: Array, segment: Segment) -> Array:
    """The mean of `x [T, B]` over the segment's transitions; 0 where it has none."""
    return jnp.sum(weight(segment) * x)


def weight(segment: Segment) -> Array:
    """`[T, B]`: what a step counts for in a mean over transitions."""
    return segment.mask / jnp.maximum(segment.mask.sum(), 1)


def log_ratio(outputs: Outputs, segment: Segment) -> Array:
    """How much likelier the present policy makes an action than the one that took it: a log.

    `[T, B]`; 0 at a step that is no transition, where nothing was decided.
    """
    ratio = outputs.log_prob - segment.behaviour_log_prob
    return jnp.where(segment.mask > 0, ratio, 0.0)


def squared_error(values: Array, target: Array, scale: Array | float) -> Array:
    """Half the squared error of values, in units of `scale`."""
    return 0.5 * ((target - values) / scale) ** 2


def add_up(
    segment: Segment,
    policy: Array,
    value: Array,
    entropy: Array,
    *,
    value_cost: float,
    entropy_cost: Cost,
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum of a loss's parts, each given per step, `[T, B]`.

    Returns:
      The loss, and its parts as `policy_loss`, `value_loss` and `entropy`, without their costs; and
      `entropy_cost` where that is a schedule.

    Raises:
      ValueError: `entropy_cost` is a schedule and nobody filled in `segment.updates`.
    """
    terms = {
        "policy_loss": mean(policy, segment),
        "value_loss": mean(value, segment),
        "entropy": mean(entropy, segment),
    }
    cost = entropy_cost
    if callable(cost):
        if isinstance(segment.updates, tuple):
            raise ValueError(
                "entropy_cost is a schedule, and segment.updates is empty: the learner fills it in "
                "(make_learner); give the count of updates, [B] int32, where you call the loss"
            )
        cost = jnp.asarray(cost(jnp.max(jnp.asarray(segment.updates))))  # of all streams the same
        terms["entropy_cost"] = cost
    total = terms["policy_loss"] + value_cost * terms["value_loss"]
    return total - cost * terms["entropy"], terms
