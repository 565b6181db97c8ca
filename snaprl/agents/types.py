"""Central types of the agents: what they act with, what they learn from, what they are.

Axes: `T` steps of a segment, `B` streams; time first, then streams.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from snaprl.cores import CoreState

Array = jax.Array
PyTree = Any


class Segment(NamedTuple):
    """T consecutive steps of B streams, time-major.

    The last observation only bootstraps: the state that is kept is the one after step T.
    """

    observation: PyTree  # [T+1, B, ...]  what the network reads
    first: Array  # [T+1, B] bool  starts an episode: reset BEFORE it is read
    action: Array  # [T, B, ...]
    reward: Array  # [T, B]  r_{t+1}
    discount: Array  # [T, B]  0 on termination only; truncation bootstraps
    mask: Array  # [T, B]  0 where the step is no transition (the reset between episodes)
    behaviour_log_prob: Array  # [T, B]
    hidden: (
        PyTree  # [B, ...]  the actor's carry at the start, for a stream that is new or had a gap
    )
    stream: Array  # [B] int32  whose experience it is
    number: Array  # [B] int32  its place in that stream: a gap is seen, counted, and survived
    # [T, B, ...]  what a loss aims at, where that is settled before the first of several passes
    targets: PyTree = ()
    updates: PyTree = ()  # [B] int32  of the learner before it read this; it fills that in itself


class Action(NamedTuple):
    """What an agent does at a step of B streams, and what it thought."""

    action: Array  # [B, ...]
    log_prob: Array  # [B]
    value: Array  # [B]


class Agent(NamedTuple):
    """An agent as pure functions over trees of arrays."""

    # (key, streams) -> variables: `params`, and `sparsity` where the core is sparse
    init: Callable[[Array, int], PyTree]
    # (key, streams) -> CoreState of streams that have seen nothing
    initial_state: Callable[[Array, int], CoreState]
    # (observation, last action, last reward, first) -> what the network reads
    observe: Callable[[PyTree, Array, Array, Array], PyTree]
    # (variables, hidden, what `observe` gave, first, key) -> hidden, Action; no key: the likeliest
    act: Callable[[PyTree, PyTree, PyTree, Array, Array | None], tuple[PyTree, Action]]
    # (variables, CoreState, Segment as `prepare` gave it) -> loss, (CoreState, metrics)
    loss: Callable[[PyTree, CoreState, Any], tuple[Array, tuple[CoreState, dict[str, Array]]]]
    # action -> what the environment is given
    to_env: Callable[[Array], Array]
    # streams -> the actions `[B, ...]` that stand for none before an episode's first step
    no_action: Callable[[int], Array]
    # an environment's rewards, of numpy or jax -> what they count for in learning
    reward: Callable[[Any], Any] = lambda rewards: rewards
    # (variables, CoreState, Segment) -> variables, Segment: what is settled before the first pass
    # over a segment; None where nothing is
    prepare: Callable[[PyTree, CoreState, Any], tuple[PyTree, Any]] | None = None
