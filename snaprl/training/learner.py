"""The learner: segments in, parameters and metrics out, and a bank of the streams' core states.

It asks a segment for `stream`, `number` and `hidden` only, and knows nothing of rewards or of how
a gradient is made: a loss turns `(variables, CoreState, segment)` into a number. Agents and
supervised tasks train on the same learner.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from snaprl.agents import Segment
from snaprl.cores import CoreState

Array = jax.Array
PyTree = Any
Loss = Callable[[PyTree, CoreState, Any], tuple[Array, tuple[CoreState, dict[str, Array]]]]


class LearnerState(NamedTuple):
    """All that a learner knows; saved whole, it goes on as if nothing had happened."""

    variables: PyTree  # `params`, and other collections that no gradient reaches
    optimizer: PyTree
    bank: CoreState  # [S, ...]  where each stream stands
    number: Array  # [S] int32  the number of the segment that each stream sends next
    updates: Array  # [] int32


class Learner(NamedTuple):
    """A learner as two pure functions."""

    init: Callable[[PyTree, CoreState], LearnerState]
    update: Callable[[LearnerState, Any], tuple[LearnerState, dict[str, Array]]]


def make_learner(
    loss: Loss, optimizer: optax.GradientTransformation, *, whole_bank: bool = False
) -> Learner:
    """Makes a learner.

    Args:
      loss: `(variables, CoreState, segment) -> (loss, (CoreState, metrics))`.
      optimizer: any optax optimiser.
      whole_bank: promises that every segment holds all streams of the bank in order and that none
        is ever lost, as loops in one process can: then no row is gathered or scattered.

    Returns:
      `init(variables, bank) -> LearnerState` and `update(state, segment) -> (state, metrics)`.
      Metrics are those of the loss and `loss`, `grad_norm`, `gaps`: streams whose segment before
      was lost, so that their influence restarted from zero and their hidden state from what the
      actor sent.
    """

    def init(variables: PyTree, bank: CoreState) -> LearnerState:
        streams = jax.tree.leaves(bank.hidden)[0].shape[0]
        number = jnp.zeros(streams, jnp.int32)
        updates = jnp.zeros((), jnp.int32)
        return LearnerState(variables, optimizer.init(variables["params"]), bank, number, updates)

    def update(state: LearnerState, segment: Any) -> tuple[LearnerState, dict[str, Array]]:
        if whole_bank:
            carry, gaps = state.bank, jnp.zeros((), jnp.int32)
        else:
            carry, gaps = withdraw(state, segment)

        def of_params(params: PyTree) -> tuple[Array, tuple[CoreState, dict[str, Array]]]:
            return loss({**state.variables, "params": params}, carry, segment)

        (value, (carry, metrics)), grads = jax.value_and_grad(of_params, has_aux=True)(
            state.variables["params"]
        )
        steps, optimizer_state = optimizer.update(grads, state.optimizer, state.variables["params"])
        params = optax.apply_updates(state.variables["params"], steps)
        if whole_bank:
            bank = carry
        else:
            bank = jax.tree.map(lambda b, c: b.at[segment.stream].set(c), state.bank, carry)
        metrics = metrics | {"loss": value, "grad_norm": optax.tree.norm(grads), "gaps": gaps}
        return LearnerState(
            {**state.variables, "params": params},
            optimizer_state,
            bank,
            state.number.at[segment.stream].set(segment.number + 1),
            state.updates + 1,
        ), metrics

    return Learner(init, update)


def withdraw(state: LearnerState, segment: Segment) -> tuple[CoreState, Array]:
    """Takes a segment's streams from the bank.

    Where a segment is not the one that its stream sends next, the bank's state does not belong to
    it: the hidden state is the actor's, and the influence starts from zero.

    Returns:
      The streams' states and how many had a gap. A stream's first segment is none.
    """
    number = state.number[segment.stream]
    gap = segment.number != number
    fresh = gap | (segment.number == 0)
    rows = jax.tree.map(lambda b: b[segment.stream], state.bank)

    def where_fresh(new: Array, old: Array) -> Array:
        return jnp.where(fresh.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)

    hidden = jax.tree.map(where_fresh, segment.hidden, rows.hidden)
    influence = jax.tree.map(lambda x: where_fresh(jnp.zeros_like(x), x), rows.influence)
    return CoreState(hidden, influence), gap.sum(dtype=jnp.int32)
