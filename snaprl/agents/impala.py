"""IMPALA's loss: an actor-critic on V-trace, for segments of a policy that is a little older."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from snaprl.agents.losses import Cost, Outputs, Targets, add_up, log_ratio, mean, squared_error
from snaprl.agents.returns import vtrace
from snaprl.agents.types import Array, Segment


@dataclasses.dataclass(frozen=True)
class ImpalaLoss:
    """The actor-critic loss with V-trace's corrections.

    Attributes:
      discount: how much of a reward is left one step earlier.
      trace_decay: lambda of V-trace's targets: 0 looks one step ahead, 1 to the segment's end.
      entropy_cost: weight of the entropy bonus, or a schedule of it over updates, like optax's.
      value_cost: weight of the value loss.
      rho_clip: largest probability ratio by which an error of the values counts.
      policy_rho_clip: largest probability ratio by which an advantage counts.

    Reference: Espeholt et al., 2018, "IMPALA: Scalable Distributed Deep-RL with Importance Weighted
    Actor-Learner Architectures". It sums over steps; this is a mean, so that costs and the learning
    rate mean the same for any unroll and number of streams.
    """

    discount: float = 0.99
    trace_decay: float = 1.0
    entropy_cost: Cost = 0.01
    value_cost: float = 0.5
    rho_clip: float = 1.0
    policy_rho_clip: float = 1.0
    targets_first: ClassVar[bool] = False

    def targets(self, outputs: Outputs, segment: Segment) -> Targets:
        """V-trace's, by the ratio of the present policy to the one that acted."""
        found = vtrace(
            segment,
            outputs.values,
            log_ratio(outputs, segment),
            discount=self.discount,
            trace_decay=self.trace_decay,
            rho_clip=self.rho_clip,
            policy_rho_clip=self.policy_rho_clip,
        )
        baseline = jax.lax.stop_gradient(outputs.values[:-1])
        return Targets(found.value, found.advantage, baseline)

    def __call__(
        self, outputs: Outputs, segment: Segment, targets: Targets
    ) -> tuple[Array, dict[str, Array]]:
        """The loss and its parts, and `rho`, the mean ratio before it is clipped."""
        loss, terms = add_up(
            segment,
            policy=-outputs.log_prob * targets.advantage / outputs.scale,
            value=squared_error(outputs.values[:-1], targets.value, outputs.scale),
            entropy=outputs.entropy,
            value_cost=self.value_cost,
            entropy_cost=self.entropy_cost,
        )
        return loss, terms | {"rho": mean(jnp.exp(log_ratio(outputs, segment)), segment)}
