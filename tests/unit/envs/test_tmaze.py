"""The T-maze against a slow twin that walks a map, cell by cell."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snaprl.envs.tmaze import LEFT, RIGHT, TMaze

REWARDS = {"goal_reward": 4.0, "wrong_reward": -0.4, "step_reward": -0.05, "still_reward": -0.2}
WALKS = {  # for each action set, where an action leads: east is along the corridor, north is left
    3: [(1, 0), (0, 1), (0, -1)],
    4: [(0, 1), (1, 0), (0, -1), (-1, 0)],
}


class SlowTMaze:
    """The maze as a set of cells (x, y); the agent walks, unless there is no cell to walk to."""

    def __init__(self, task, cue):
        self.task, self.cue = task, cue
        self.end = (task.length, 0)
        self.cells = {(x, 0) for x in range(task.length + 1)}
        self.arms = {LEFT: (task.length, 1), RIGHT: (task.length, -1)}
        self.at, self.time = (0, 0), 0

    def observation(self):
        if self.at == (0, 0) and (self.time == 0 or self.task.cue_stays):
            name = ["cue left", "cue right"][self.cue]
        elif self.at == self.end:
            name = "junction"
        elif self.at in self.cells:
            name = "corridor"
        else:
            name = "arm"
        return [float(name == seen) for seen in ("cue left", "cue right", "corridor", "junction")]

    def step(self, action):
        dx, dy = WALKS[self.task.actions][action]
        was_at_end, before = self.at == self.end, self.at
        if self.task.passive and not was_at_end:
            dx, dy = 1, 0
        goal = (self.at[0] + dx, self.at[1] + dy)
        if goal in self.cells or goal in self.arms.values():
            self.at = goal
        if self.task.passive and was_at_end and self.at not in self.arms.values():
            self.at = self.end  # whatever else was tried at the junction, the agent stays
        self.time += 1
        terminated = self.at in self.arms.values() or (self.task.passive and was_at_end)
        truncated = not terminated and self.task.timeout is not None
        truncated = truncated and self.time >= self.task.timeout
        success = self.at == self.arms[self.cue]
        if terminated:
            reward = self.task.goal_reward if success else self.task.wrong_reward
        else:
            reward = self.task.still_reward if self.at == before else self.task.step_reward
        return self.observation(), reward, terminated, truncated, success


@pytest.mark.parametrize("actions", [3, 4])
@pytest.mark.parametrize("passive", [False, True], ids=["active", "passive"])
@pytest.mark.parametrize("cue_stays", [False, True], ids=["once", "stays"])
@given(
    length=st.sampled_from([1, 2, 5]),
    spare=st.sampled_from([None, 0, 6]),
    seed=st.integers(0, 2**32 - 1),
    # Forward is likely enough for walks to reach the end; in the other set it goes left.
    choices=st.lists(st.sampled_from([0, 0, 0, 1, 1, 1, 2, 3]), min_size=1, max_size=24),
)
@example(length=2, spare=0, seed=0, choices=[1, 0, 0, 1])
@example(length=5, spare=None, seed=1, choices=[0] * 5 + [2])
@example(length=5, spare=None, seed=1, choices=[1] * 5 + [0])
def test_it_does_what_the_slow_twin_does(actions, passive, cue_stays, length, spare, seed, choices):
    task = TMaze(
        length=length,
        actions=actions,
        passive=passive,
        timeout=None if spare is None else length + 1 + spare,
        cue_stays=cue_stays,
        **REWARDS,
    )
    env = task.make()
    step = jax.jit(env.step)
    key = jax.random.key(seed)
    state, observation = env.reset(key)
    twin = SlowTMaze(task, cue=int(state.cue))
    np.testing.assert_array_equal(observation, twin.observation())
    for choice in choices:
        action = choice % actions
        state, out = step(state, jnp.int32(action), key)
        seen, reward, terminated, truncated, success = twin.step(action)
        np.testing.assert_array_equal(out.observation, seen)
        assert out.reward == np.float32(reward)
        assert (bool(out.terminated), bool(out.truncated)) == (terminated, truncated)
        assert bool(out.success) == success
        if terminated or truncated:
            break


def walk(task, choices, seed=0):
    """Returns the steps of an episode, without jit, and the side of the cue."""
    env = task.make()
    key = jax.random.key(seed)
    state, observation = env.reset(key)
    side, steps = int(state.cue), []
    for choice in choices:
        state, out = env.step(state, jnp.int32(choice(side) if callable(choice) else choice), key)
        steps.append(out)
    return observation, steps


@pytest.mark.parametrize("seed", range(4))
def test_the_shortest_way_by_hand(seed):
    # Protocol A, N = 2: forward, forward, turn: -0.1, -0.1, +4, and 2N = 4 steps are allowed.
    observation, steps = walk(TMaze.protocol_a(2), [0, 0, lambda side: 1 + side], seed)
    assert observation[:2].sum() == 1
    assert [float(s.reward) for s in steps] == [np.float32(-0.1), np.float32(-0.1), 4.0]
    assert [bool(s.terminated) for s in steps] == [False, False, True]
    assert [bool(s.success) for s in steps] == [False, False, True]
    np.testing.assert_array_equal([s.observation for s in steps[:2]], [[0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(steps[2].observation, np.zeros(4))


def test_protocol_a_punishes_the_wrong_turn_and_stops_after_2n():
    _, steps = walk(TMaze.protocol_a(2), [0, 0, lambda side: 2 - side])
    assert steps[-1].reward == np.float32(-0.4)
    assert steps[-1].terminated
    assert not steps[-1].success
    _, steps = walk(TMaze.protocol_a(2), [1, 1, 2, 1])
    assert [bool(s.truncated) for s in steps] == [False, False, False, True]
    assert not any(s.terminated for s in steps)
    assert all(s.reward == np.float32(-0.1) for s in steps)


def test_a_turn_in_the_last_step_allowed_is_no_timeout():
    _, steps = walk(TMaze(length=2, timeout=3), [0, 0, 1])
    assert steps[-1].terminated
    assert not steps[-1].truncated


def test_the_defaults_are_the_rewards_of_the_paper():
    task = TMaze.bakker(3)
    assert (task.goal_reward, task.wrong_reward) == (4.0, -0.1)
    assert (task.step_reward, task.still_reward) == (0.0, -0.1)
    assert task.actions == 4
    # Back at the start the cue is there again: west after east.
    observation, steps = walk(task, [1, 3])
    np.testing.assert_array_equal(steps[-1].observation, observation)


def test_the_passive_form_always_takes_one_step_more_than_its_length():
    env = TMaze(length=100, passive=True).make()
    key = jax.random.key(0)
    state, _ = env.reset(key)

    def step(state, action):
        return env.step(state, action, key)

    _, steps = jax.lax.scan(step, state, jax.random.randint(key, (101,), 0, 3))
    np.testing.assert_array_equal(steps.terminated, np.arange(101) == 100)
    assert steps.reward[:100].sum() == 0


def test_the_cue_is_fair_and_follows_the_key():
    keys = jax.random.split(jax.random.key(3), 4096)
    states, observations = jax.vmap(TMaze().make().reset)(keys)
    # 4 standard deviations of a fair coin: 32 each.
    assert abs(int(states.cue.sum()) - 2048) < 4 * 32
    np.testing.assert_array_equal(observations[:, 1], states.cue)
    np.testing.assert_array_equal(observations[:, 0], 1 - states.cue)
    again, _ = jax.vmap(TMaze(length=7).make().reset)(keys)
    np.testing.assert_array_equal(again.cue, states.cue)


def test_equal_mazes_share_their_functions():
    assert TMaze(length=4).make() is TMaze(length=4).make()
    assert TMaze(length=4).make().step is not TMaze(length=5).make().step


def test_types_stay_in_float64(x64):
    env = TMaze(timeout=20).make()
    key = jax.random.key(0)
    state, observation = env.reset(key)
    after, out = env.step(state, jnp.int64(1), key)
    assert observation.dtype == out.observation.dtype == out.reward.dtype == jnp.float32
    assert [x.dtype for x in after] == [x.dtype for x in state] == [jnp.int32] * 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"length": 0}, "TMaze's length is 0, which leaves no corridor: give 1 or more"),
        ({"length": 2.5}, "TMaze's length is 2.5: give a whole number"),
        ({"length": True}, "TMaze's length is True: give a whole number"),
        ({"actions": 5}, "TMaze's actions is 5: give 3 .* or 4"),
        ({"timeout": 10}, "timeout of 10 steps .* with length=10 give 11 or more, or None"),
        ({"goal_reward": math.nan}, "TMaze's goal_reward is nan: give a finite number"),
        ({"step_reward": "-1"}, "TMaze's step_reward is '-1': give a finite number"),
        ({"passive": 1}, "TMaze's passive is 1: give True or False"),
    ],
)
def test_a_bad_argument_is_named_with_a_way_out(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        TMaze(**arguments)
