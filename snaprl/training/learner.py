"""The learner: segments in, parameters and metrics out, and a bank of the streams' core states.

It asks a segment for `stream`, `number` and `hidden` only, and knows nothing of rewards or of how
a gradient is made: a loss turns `(variables, CoreState, segment)` into a number. It may go over a
segment several times, and what has to be settled before, `prepare` settles. A segment with a field
`updates` is told how many there were, for what changes with them. Agents and supervised tasks train
on the same learner.
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
Prepare = Callable[[PyTree, CoreState, Any], tuple[PyTree, Any]]
PER_STREAM = (
    "hidden",
    "stream",
    "number",
    "updates",
)  # fields [B, ...]; all others are [T, B, ...]


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
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare | None = None,
    epochs: int = 1,
    minibatches: int = 1,
    in_order: bool = False,
    whole_bank: bool = False,
) -> Learner:
    """Makes a learner.

    Args:
      loss: `(variables, CoreState, segment) -> (loss, (CoreState, metrics))`.
      optimizer: any optax optimiser.
      prepare: `(variables, CoreState, segment) -> (variables, segment)`, what is settled once,
        before the first pass over a segment.
      epochs: passes over a segment. Each starts from the state that was carried to the segment; the
        state after the first one is what is carried on.
      minibatches: parts of a pass with an optimiser's step each. Streams are shuffled into parts of
        the same size, and none is cut in time.
      in_order: promises that every segment holds all streams of the bank in order: then no row is
        gathered or scattered, and on a mesh no state leaves its device.
      whole_bank: promises, besides, that none is ever lost, as loops in one process can: then no
        state is looked at.

    Returns:
      `init(variables, bank) -> LearnerState` and `update(state, segment) -> (state, metrics)`.
      Metrics are those of the loss, `loss` and `grad_norm`, averaged over the optimiser's steps,
      and `gaps`: streams whose segment before was lost, so that their influence restarted from zero
      and their hidden state from what the actor sent.
    """

    def init(variables: PyTree, bank: CoreState) -> LearnerState:
        streams = jax.tree.leaves(bank.hidden)[0].shape[0]
        number = jnp.zeros(streams, jnp.int32)
        updates = jnp.zeros((), jnp.int32)
        return LearnerState(variables, optimizer.init(variables["params"]), bank, number, updates)

    def step(learned: _Learned, carry: CoreState, segment: Any) -> _Stepped:
        """One step of the optimiser."""
        variables = learned.variables

        def of_params(params: PyTree) -> tuple[Array, tuple[CoreState, dict[str, Array]]]:
            return loss({**variables, "params": params}, carry, segment)

        (value, (carry, metrics)), grads = jax.value_and_grad(of_params, has_aux=True)(
            variables["params"]
        )
        steps, state = optimizer.update(grads, learned.optimizer, variables["params"])
        params = optax.apply_updates(variables["params"], steps)
        metrics = metrics | {"loss": value, "grad_norm": optax.tree.norm(grads)}
        return _Stepped(_Learned({**variables, "params": params}, state), carry, metrics)

    def one_pass(learned: _Learned, carry: CoreState, segment: Any, key: Array) -> _Stepped:
        """Goes over all streams once; `key` is consumed."""
        if minibatches == 1:
            return step(learned, carry, segment)
        order = jax.random.permutation(key, segment.stream.shape[0])

        def part(learned: _Learned, rows: Array) -> tuple[_Learned, tuple]:
            of_rows = jax.tree.map(lambda x: x[rows], carry)
            learned, end, metrics = step(learned, of_rows, _rows_of(segment, rows))
            return learned, (end, metrics)

        learned, (ends, metrics) = jax.lax.scan(part, learned, order.reshape(minibatches, -1))
        back = jnp.argsort(order)
        end = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[back], ends)
        return _Stepped(learned, end, jax.tree.map(lambda m: m.mean(0), metrics))

    def update(state: LearnerState, segment: Any) -> tuple[LearnerState, dict[str, Array]]:
        if segment.stream.shape[0] % minibatches:
            raise ValueError(
                f"{segment.stream.shape[0]} streams cannot be shared out evenly among "
                f"{minibatches} minibatches"
            )
        if whole_bank:
            carry, gaps = state.bank, jnp.zeros((), jnp.int32)
        else:
            carry, gaps = withdraw(state, segment, in_order=in_order)
        if "updates" in getattr(segment, "_fields", ()):
            segment = segment._replace(updates=jnp.full_like(segment.number, state.updates))
        learned, ready = _Learned(state.variables, state.optimizer), segment
        if prepare:
            variables, ready = prepare(state.variables, carry, segment)
            learned = learned._replace(variables=variables)
        # the shuffles follow from the count of updates: nothing more has to be saved
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), state.updates), epochs)
        learned, end, metrics = one_pass(learned, carry, ready, keys[0])
        if epochs > 1:

            def again(learned: _Learned, key: Array) -> tuple[_Learned, dict[str, Array]]:
                learned, _, metrics = one_pass(learned, carry, ready, key)
                return learned, metrics

            learned, later = jax.lax.scan(again, learned, keys[1:])
            metrics = jax.tree.map(lambda m, rest: (m + rest.sum(0)) / epochs, metrics, later)
        if whole_bank or in_order:
            bank, number = end, segment.number + 1
        else:
            bank = jax.tree.map(lambda b, c: b.at[segment.stream].set(c), state.bank, end)
            number = state.number.at[segment.stream].set(segment.number + 1)
        return LearnerState(
            learned.variables,
            learned.optimizer,
            bank,
            number,
            state.updates + 1,
        ), metrics | {"gaps": gaps}

    return Learner(init, update)


class _Learned(NamedTuple):
    """What a step of the optimiser changes."""

    variables: PyTree
    optimizer: PyTree


class _Stepped(NamedTuple):
    """What comes of a step of the optimiser, or of a pass."""

    learned: _Learned
    carry: CoreState  # [B, ...]  where the streams stand after the segment
    metrics: dict[str, Array]


def _rows_of(segment: Any, rows: Array) -> Any:
    """Some of the streams of a segment."""

    def taken(name: str, field: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x[rows] if name in PER_STREAM else x[:, rows], field)

    return segment._replace(
        **{name: taken(name, getattr(segment, name)) for name in segment._fields}
    )


def withdraw(
    state: LearnerState, segment: Segment, *, in_order: bool = False
) -> tuple[CoreState, Array]:
    """Takes a segment's streams from the bank; all of them, where they are in order.

    Where a segment is not the one that its stream sends next, the bank's state does not belong to
    it: the hidden state is the actor's, and the influence starts from zero.

    Returns:
      The streams' states and how many had a gap. A stream's first segment is none.
    """
    number, rows = state.number, state.bank
    if not in_order:
        number, rows = jax.tree.map(lambda b: b[segment.stream], (number, rows))
    gap = segment.number != number
    fresh = gap | (segment.number == 0)

    def where_fresh(new: Array, old: Array) -> Array:
        return jnp.where(fresh.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)

    hidden = jax.tree.map(where_fresh, segment.hidden, rows.hidden)
    influence = jax.tree.map(lambda x: where_fresh(jnp.zeros_like(x), x), rows.influence)
    return CoreState(hidden, influence), gap.sum(dtype=jnp.int32)
