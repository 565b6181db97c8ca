"""The T-maze: remember at the end of a corridor what was shown at its start.

Reference: Bakker, 2001, "Reinforcement Learning with Long Short-Term Memory".
"""

import dataclasses
import functools
import numbers
from math import isfinite
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jax import Array

from snaprl.envs.types import PureEnv, Step

LEFT, RIGHT = 0, 1  # the two values of the cue


class TMazeState(NamedTuple):
    """Where the agent is.  With N = length: cells 0..N-1 are corridor, N is the junction."""

    position: Array  # [] int32  0..N; N+1 in the left arm, N+2 in the right arm, after a turn
    cue: Array  # [] int32  the arm that holds the goal: LEFT or RIGHT
    time: Array  # [] int32  steps taken in this episode


class Moves(NamedTuple):
    """Which action does what.  -1: no action does."""

    forward: int
    left: int
    right: int
    back: int


MOVES = {
    3: Moves(forward=0, left=1, right=2, back=-1),
    4: Moves(
        left=0, forward=1, right=2, back=3
    ),  # north, east, south, west: the corridor runs east
}


@dataclasses.dataclass(frozen=True)
class TMaze:
    """The T-maze's arguments; `make()` gives the environment.

    The agent starts in cell 0, where a cue shows on which side of the junction the goal will be.
    The junction is `length` moves forward.  Turning there ends the episode: well on the side of the
    cue, badly on the other.

    Observation: float32 [4], one-hot: cue left, cue right, corridor, junction.  The cue is shown in
    an episode's first observation only; from then on cell 0 looks like any other of the corridor.
    With `cue_stays` it is shown whenever the agent is in cell 0, as in the paper.  The observation
    after the turn is all zeros: none of the four is seen from an arm.

    Actions: with three, 0 forward, 1 left, 2 right; with four, 0 north (left), 1 east (forward),
    2 south (right), 3 west (back), as in the paper.  A move into a wall leaves the agent where it
    is.  With `passive`, every action in the corridor moves forward and any action at the junction
    ends the episode, a wrong one if it is no turn: each lasts exactly `length + 1` steps.

    Success is an episode that ended by turning to the goal.  The defaults are the paper's rewards,
    with three actions.

    Raises:
      ValueError: an argument is out of range.
    """

    length: int = 10  # N: moves from the start to the junction
    actions: int = 3  # 3: forward, left, right; 4: north, east, south, west
    passive: bool = False  # the corridor moves the agent: only the turn is to be learned
    goal_reward: float = 4.0  # the turn to the goal
    wrong_reward: float = -0.1  # the turn away from it
    step_reward: float = 0.0  # a step that moves
    still_reward: float = -0.1  # a step that leaves the agent in its cell
    timeout: int | None = None  # steps after which an episode is truncated; None: never
    cue_stays: bool = False  # cell 0 shows the cue whenever the agent is there

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def protocol_a(cls, length: int) -> "TMaze":
        """The active form with three actions, a cost for every step, and a timeout of 2N."""
        return cls(
            length=length,
            wrong_reward=-0.4,
            step_reward=-0.1,
            still_reward=-0.1,
            timeout=2 * length,
        )

    @classmethod
    def bakker(cls, length: int) -> "TMaze":
        """The task of the paper: four actions, and a start that always shows the cue."""
        return cls(length=length, actions=4, cue_stays=True)

    def make(self) -> PureEnv:
        """Returns the environment as pure functions.

        Equal mazes give the same functions, so that what is compiled for one serves them all.
        """
        return _make(self)


def _check(task: TMaze) -> None:
    for name in ("length", "actions", "timeout"):
        value = getattr(task, name)
        if name == "timeout" and value is None:
            continue
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise ValueError(f"TMaze's {name} is {value!r}: give a whole number.")
    for name in ("passive", "cue_stays"):
        if not isinstance(getattr(task, name), bool):
            raise ValueError(f"TMaze's {name} is {getattr(task, name)!r}: give True or False.")
    for name in ("goal_reward", "wrong_reward", "step_reward", "still_reward"):
        value = getattr(task, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not isfinite(value):
            raise ValueError(f"TMaze's {name} is {value!r}: give a finite number.")
    if task.length < 1:
        raise ValueError(
            f"TMaze's length is {task.length}, which leaves no corridor: give 1 or more moves from "
            "the start to the junction."
        )
    if task.actions not in MOVES:
        raise ValueError(
            f"TMaze's actions is {task.actions}: give 3 (forward, left, right) or 4 (north, east, "
            "south, west)."
        )
    if task.timeout is not None and task.timeout < task.length + 1:
        raise ValueError(
            f"TMaze's timeout of {task.timeout} steps ends every episode before the turn: with "
            f"length={task.length} give {task.length + 1} or more, or None for no timeout."
        )


@functools.cache
def _make(task: TMaze) -> PureEnv:
    moves = MOVES[task.actions]
    junction = task.length

    def observe(state: TMazeState) -> Array:
        sees_cue = (state.position == 0) & (task.cue_stays | (state.time == 0))
        # From the junction on, feature 3, and past it none: an arm's index has no feature.
        place = 2 + jnp.maximum(state.position - (junction - 1), 0)
        feature = jnp.where(sees_cue, state.cue, place)
        return (jnp.arange(4) == feature).astype(jnp.float32)

    def reset(key: Array) -> tuple[TMazeState, Array]:
        cue = jax.random.bits(key, (), jnp.uint32) & 1
        state = TMazeState(jnp.int32(0), cue.astype(jnp.int32), jnp.int32(0))
        return state, observe(state)

    def step(state: TMazeState, action: Array, key: Array) -> tuple[TMazeState, Step]:
        del key  # only the cue is random
        at_junction = state.position == junction
        left, right = action == moves.left, action == moves.right
        turned = at_junction & (left | right)
        if task.passive:
            terminated = at_junction
            move = (~at_junction).astype(jnp.int32)
        else:
            terminated = turned
            forward, back = action == moves.forward, action == moves.back
            move = forward.astype(jnp.int32) - back.astype(jnp.int32)
        walked = jnp.clip(state.position + move, 0, junction)
        position = jnp.where(turned, junction + 1 + right, walked)
        time = state.time + 1

        success = turned & (right == (state.cue == RIGHT))
        on_way = jnp.where(position == state.position, task.still_reward, task.step_reward)
        at_end = jnp.where(success, task.goal_reward, task.wrong_reward)
        late = jnp.bool_(False) if task.timeout is None else time >= task.timeout
        state = TMazeState(position, state.cue, time)
        return state, Step(
            observation=observe(state),
            reward=jnp.where(terminated, at_end, on_way).astype(jnp.float32),
            terminated=terminated,
            truncated=late & ~terminated,
            success=success,
        )

    return PureEnv(
        reset=reset,
        step=step,
        observation_space=spaces.Box(0.0, 1.0, (4,), np.float32),
        action_space=spaces.Discrete(task.actions),
        knows_success=True,
    )
