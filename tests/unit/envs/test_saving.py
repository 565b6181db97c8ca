"""Vector environments that are put back: what follows is what followed."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from snaprl import envs
from snaprl.envs import TMaze, saving

B = 3
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


class Wanderer(gymnasium.Env):
    """Goes where chance and actions take it, and ends by chance; remembers all kinds of things."""

    observation_space = spaces.Dict({"place": spaces.Box(-np.inf, np.inf, (2,), np.float32)})
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.normal(size=2).astype(np.float32)
        self.stride, self.steps, self.lost = 0.1, 0, False
        self.luck, self.heat = np.float64(1.0), jnp.zeros(())
        return self.look(), {}

    def step(self, action):
        # a number of numpy's in the place of the stride would make these float64
        self.place = self.place + self.stride * self.np_random.normal(size=2).astype(np.float32)
        assert self.place.dtype == np.float32
        self.stride += 0.01 * (2 * int(action) - 1)
        self.steps += 1
        # draws of 32 bits leave half a draw behind
        self.luck *= self.np_random.random(dtype=np.float32)
        self.lost = bool(self.np_random.random() < 0.1)
        self.heat = self.heat + self.steps
        return self.look(), float(self.luck + self.heat), self.lost, False, {"success": self.lost}

    def look(self):
        return {"place": self.place}

    def get_state(self):
        numbers = [self.stride, self.steps, self.luck]
        return {"place": self.place, "numbers": numbers, "others": (self.lost, self.heat, None)}

    def set_state(self, state):
        self.place = state["place"]
        self.stride, self.steps, self.luck = state["numbers"]
        self.lost, self.heat, _ = state["others"]


class Drift(gymnasium.ObservationWrapper):
    """A wrapper that remembers something."""

    drift = 0

    def observation(self, observation):
        self.drift += 1
        return {"place": observation["place"] + np.float32(self.drift)}

    def get_state(self):
        return self.drift

    def set_state(self, state):
        self.drift = state


def layered(k: int) -> gymnasium.Env:
    env = gymnasium.wrappers.OrderEnforcing(gymnasium.wrappers.PassiveEnvChecker(Wanderer()))
    env = Drift(gymnasium.wrappers.TimeLimit(env, 6 + k))
    return gymnasium.wrappers.FlattenObservation(env)


def vector(mode: AutoresetMode = AutoresetMode.NEXT_STEP, make=layered) -> SyncVectorEnv:
    return SyncVectorEnv([lambda k=k: make(k) for k in range(B)], autoreset_mode=mode)


def steps(made: SyncVectorEnv, actions: np.ndarray) -> list:
    found = []
    for action in actions:
        observation, reward, terminated, truncated, infos = made.step(action)
        ended = terminated | truncated
        found.append((observation, reward, terminated, truncated, infos.get("final_obs")))
        if made.autoreset_mode is AutoresetMode.DISABLED and ended.any():
            found.append(made.reset(options={"reset_mask": ended})[0])
    return found


def assert_same(found: list, wanted: list) -> None:
    assert len(found) == len(wanted)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        if x.dtype == object:  # last observations, of those that ended
            assert str(x) == str(y)
        else:
            np.testing.assert_array_equal(x, y, strict=True)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_what_follows_is_the_same_in_another_vector(mode):
    made = vector(mode)
    assert saving.can_save(made)
    made.reset(seed=5)
    actions = np.random.default_rng(0).integers(0, 2, (60, B))
    ends = set()
    for before in range(5, 12):  # in the middle of an episode, at its end, at a reset
        made.reset(seed=5)
        steps(made, actions[:before])
        ends.add(bool(made._autoreset_envs.any()))
        saved = saving.get_state(made)
        assert all(np.shape(leaf)[0] == B for leaf in jax.tree.leaves(saved))
        wanted = steps(made, actions[before:])
        assert sum(step[2].sum() for step in wanted if isinstance(step, tuple)) > 3
        assert sum(step[3].sum() for step in wanted if isinstance(step, tuple)) > 3
        other = vector(mode)
        other.reset(seed=77)
        steps(other, actions[20:27])
        saving.set_state(other, saved)
        assert_same(steps(other, actions[before:]), wanted)
    assert ends == ({False, True} if mode is not AutoresetMode.DISABLED else {False})


def test_numbers_stay_what_they_were():
    made = vector(make=lambda k: Wanderer())
    made.reset(seed=1)
    wanted = [[type(x) for x in jax.tree.leaves(env.get_state())] for env in made.envs]
    saving.set_state(made, saving.get_state(made))
    assert [[type(x) for x in jax.tree.leaves(env.get_state())] for env in made.envs] == wanted
    assert {bool, int, float, np.float64} < set(wanted[0])


def test_ours_are_saved_one_by_one_too():
    made = vector(make=lambda k: gymnasium.make("snaprl/TMaze-v0", length=3))
    made.reset(seed=3)
    actions = np.random.default_rng(0).integers(0, 3, (20, B))
    steps(made, actions[:7])
    saved = saving.get_state(made)
    wanted = steps(made, actions[7:])
    saving.set_state(made, saved)
    assert_same(steps(made, actions[7:]), wanted)
    assert saving.can_save(envs.PureVectorEnv(TMaze().make(), B))


NOT_SAVED = {
    "no state": lambda k: gymnasium.make("CartPole-v1"),
    "half of it": lambda k: Half(),
    "a wrapper that remembers": lambda k: gymnasium.wrappers.NormalizeReward(Wanderer()),
    "a wrapper of a kind that may": lambda k: Limit(Wanderer(), 3),
}


class Half(Wanderer):
    set_state = property()  # pyright: ignore[reportAssignmentType]


class Limit(gymnasium.wrappers.TimeLimit):
    pass


@pytest.mark.parametrize("make", NOT_SAVED.values(), ids=NOT_SAVED)
def test_what_cannot_be_saved_exactly_is_not(make):
    assert not saving.can_save(vector(make=make))


def test_other_vectors_are_not_looked_into():
    class Other(SyncVectorEnv):
        pass

    assert not saving.can_save(Other([Wanderer]))


@pytest.mark.parametrize("state", ["text", [object()], {"a": np.array(["x"])}, 2**70])
def test_a_state_that_no_checkpoint_holds_is_refused(state):
    made = vector(make=lambda k: Wanderer())
    made.reset(seed=0)
    made.envs[0].get_state = lambda: state
    with pytest.raises(saving.Unsaved, match="^Wanderer holds .*: get_state.* must return numbers"):
        saving.get_state(made)


@pytest.mark.parametrize("change", [1, 0.5, [True], np.zeros(2, bool), None])
def test_a_state_of_another_form_is_refused(change):
    made = vector(make=lambda k: Wanderer())
    made.reset(seed=0)
    for env in made.envs:
        env.get_state = lambda: True
    before = saving.get_state(made)
    saving.get_state(made, before)
    made.envs[1].get_state = lambda: change
    with pytest.raises(saving.Unsaved, match="changes its form: get_state"):
        saving.get_state(made)
    for env in made.envs:
        env.get_state = lambda: change
    with pytest.raises(saving.Unsaved, match="changes its form: get_state"):
        saving.get_state(made, before)


def test_another_generator_is_refused():
    made = vector(make=lambda k: Wanderer())
    made.reset(seed=0)
    made.envs[0].unwrapped.np_random = np.random.Generator(np.random.MT19937(0))
    with pytest.raises(saving.Unsaved, match="Wanderer.np_random is a MT19937: only"):
        saving.get_state(made)
