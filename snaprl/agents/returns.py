"""Returns inside a segment that may hold several episodes, and steps that are no transitions.

A step that is no transition stands between two episodes. What is summed up backwards stops there:
the return of the step before it ends with the value of the episode's last observation, since lambda
is 0. That value counts after a truncation, and is discounted to nothing after a termination.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from snaprl.agents.types import Array, Segment


class VTrace(NamedTuple):
    """What V-trace makes of a segment; no gradient flows through it."""

    value: Array  # [T, B]  what the values should have been
    advantage: Array  # [T, B]  weight of the log-probabilities, the clipped ratio included


def lambda_returns(
    segment: Segment, values: Array, *, discount: float, trace_decay: float
) -> Array:
    """Lambda-returns.

    Args:
      segment: of T steps.
      values: `[T+1, B]`.
      discount: of a transition that does not terminate.
      trace_decay: lambda.

    Returns:
      `[T, B]`, with no gradient.

    Reference: Sutton and Barto, "Reinforcement Learning", 2018, section 12.1.
    """
    import rlax  # here, since it takes seconds to load, which no actor needs

    returns: Any = jax.vmap(rlax.lambda_returns, in_axes=1, out_axes=1)
    decays = trace_decay * _goes_on(segment, values)
    return jax.lax.stop_gradient(
        returns(segment.reward, discount * segment.discount, values[1:], decays)
    )


def vtrace(
    segment: Segment,
    values: Array,
    log_rho: Array,
    *,
    discount: float,
    trace_decay: float,
    rho_clip: float,
    policy_rho_clip: float,
) -> VTrace:
    """Corrects lambda-returns for actions that another policy took.

    With every ratio 1 the values are lambda-returns. The traces' ratios are clipped at 1.

    Args:
      segment: of T steps.
      values: `[T+1, B]`.
      log_rho: `[T, B]`, log of the ratio of the learner's to the actor's probability.
      discount: of a transition that does not terminate.
      trace_decay: lambda.
      rho_clip: largest ratio by which an error of the values counts.
      policy_rho_clip: largest ratio by which an advantage counts.

    Reference: Espeholt et al., 2018, "IMPALA: Scalable Distributed Deep-RL with Importance Weighted
    Actor-Learner Architectures", section 4.1.
    """

    import rlax

    def of_stream(*columns: Array) -> Any:
        return rlax.vtrace_td_error_and_advantage(
            *columns, clip_rho_threshold=rho_clip, clip_pg_rho_threshold=policy_rho_clip
        )

    found = jax.vmap(of_stream, in_axes=1, out_axes=1)(
        values[:-1],
        values[1:],
        segment.reward,
        discount * segment.discount,
        jnp.exp(log_rho),
        trace_decay * _goes_on(segment, values),
    )
    value, advantage = values[:-1] + found.errors, found.pg_advantage
    return jax.lax.stop_gradient(VTrace(value, advantage))


def _goes_on(segment: Segment, values: Array) -> Array:
    """`[T, B]`: 1 where what follows a step may count beyond the next value, 0 elsewhere."""
    chex.assert_equal_shape([segment.reward, segment.discount, segment.mask, values[1:]])
    return jnp.concatenate([segment.mask[1:], jnp.ones_like(segment.mask[:1])])
