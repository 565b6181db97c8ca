"""The actor-critic loss on lambda-returns, for segments of the present policy."""

import dataclasses
from typing import ClassVar

import jax

from snaprl.agents.losses import Cost, Outputs, Targets, add_up, squared_error
from snaprl.agents.returns import lambda_returns
from snaprl.agents.types import Array, Segment


@dataclasses.dataclass(frozen=True)
class ActorCriticLoss:
    """The actor-critic loss.

    Attributes:
      discount: how much of a reward is left one step earlier.
      trace_decay: lambda of the lambda-returns: 0 looks one step ahead, 1 to the segment's end.
      entropy_cost: weight of the entropy bonus, or a schedule of it over updates, like optax's.
      value_cost: weight of the value loss.
    """

    discount: float = 0.99
    trace_decay: float = 0.9
    entropy_cost: Cost = 0.02
    value_cost: float = 0.5
    targets_first: ClassVar[bool] = False

    def targets(self, outputs: Outputs, segment: Segment) -> Targets:
        """Lambda-returns."""
        returns = lambda_returns(
            segment, outputs.values, discount=self.discount, trace_decay=self.trace_decay
        )
        baseline = jax.lax.stop_gradient(outputs.values[:-1])
        return Targets(returns, returns - baseline, baseline)

    def __call__(
        self, outputs: Outputs, segment: Segment, targets: Targets
    ) -> tuple[Array, dict[str, Array]]:
        """The loss and its parts."""
        return add_up(
            segment,
            policy=-outputs.log_prob * targets.advantage / outputs.scale,
            value=squared_error(outputs.values[:-1], targets.value, outputs.scale),
            entropy=outputs.entropy,
            value_cost=self.value_cost,
            entropy_cost=self.entropy_cost,
        )
