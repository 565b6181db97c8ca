"""PPO's loss: a clipped surrogate, for several passes over one segment."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from snaprl.agents.losses import Cost, Outputs, Targets, add_up, log_ratio, mean, squared_error
from snaprl.agents.returns import lambda_returns
from snaprl.agents.types import Array, Segment


@dataclasses.dataclass(frozen=True)
class PPOLoss:
    """The clipped surrogate.

    Its advantages are GAE(lambda): lambda-returns less the values. They are computed before the
    first pass; each pass then reads the segment from the same carried state.

    Attributes:
      discount: how much of a reward is left one step earlier.
      trace_decay: lambda: 0 looks one step ahead, 1 to the segment's end.
      entropy_cost: weight of the entropy bonus, or a schedule of it over updates, like optax's.
      value_cost: weight of the value loss.
      ratio_clip: how far from 1 a probability ratio may move before it stops to pay.
      value_clip: how far a value may move, in units of its scale, before it stops to pay; 0: any.
      normalise_advantage: bring the advantages of a pass to mean 0 and variance 1.

    Reference: Schulman et al., 2017, "Proximal Policy Optimization Algorithms"; for the advantages
    Schulman et al., 2016, "High-Dimensional Continuous Control Using Generalized Advantage
    Estimation".
    """

    discount: float = 0.99
    trace_decay: float = 0.95
    entropy_cost: Cost = 0.01
    value_cost: float = 0.5
    ratio_clip: float = 0.2
    value_clip: float = 0.0
    normalise_advantage: bool = True
    targets_first: ClassVar[bool] = True

    def targets(self, outputs: Outputs, segment: Segment) -> Targets:
        """Lambda-returns, and GAE."""
        returns = lambda_returns(
            segment, outputs.values, discount=self.discount, trace_decay=self.trace_decay
        )
        baseline = jax.lax.stop_gradient(outputs.values[:-1])
        return Targets(returns, returns - baseline, baseline)

    def __call__(
        self, outputs: Outputs, segment: Segment, targets: Targets
    ) -> tuple[Array, dict[str, Array]]:
        """The loss and its parts; `clipped`, the share of ratios beyond the clip; `kl`.

        `kl` estimates the divergence of the present policy from the one that acted by the mean of
        `r - 1 - log r` over its actions, which is never negative.
        """
        advantage = targets.advantage / outputs.scale
        if self.normalise_advantage:
            centred = advantage - mean(advantage, segment)
            advantage = centred / (jnp.sqrt(mean(centred**2, segment)) + 1e-8)
        log_rho = log_ratio(outputs, segment)
        ratio = jnp.exp(log_rho)
        near = jnp.clip(ratio, 1 - self.ratio_clip, 1 + self.ratio_clip)
        values = outputs.values[:-1]
        value_loss = squared_error(values, targets.value, outputs.scale)
        if self.value_clip:
            most = self.value_clip * outputs.scale
            held = targets.baseline + jnp.clip(values - targets.baseline, -most, most)
            value_loss = jnp.maximum(value_loss, squared_error(held, targets.value, outputs.scale))
        loss, terms = add_up(
            segment,
            policy=-jnp.minimum(ratio * advantage, near * advantage),
            value=value_loss,
            entropy=outputs.entropy,
            value_cost=self.value_cost,
            entropy_cost=self.entropy_cost,
        )
        beyond = (jnp.abs(ratio - 1) > self.ratio_clip).astype(ratio.dtype)
        return loss, terms | {
            "clipped": mean(beyond, segment),
            "kl": mean(ratio - 1 - log_rho, segment),
        }
