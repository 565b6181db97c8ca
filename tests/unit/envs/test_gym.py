"""A pure environment under gymnasium's rules."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from snaprl.envs import host
from snaprl.envs.gym import PureGymEnv
from snaprl.envs.probes import PROBES
from snaprl.envs.tmaze import TMaze
from snaprl.envs.types import PureEnv, Step

ACTIONS = [0, 1, 0, 2, 0, 0, 1, 2, 0, 0, 0, 1, 1, 0, 2, 2, 0, 1, 0, 0]


def play(env, actions, seed=None):
    """Returns everything that comes back, resetting where an episode ends."""
    heard = [env.reset(seed=seed)] if seed is not None else []
    for action in actions:
        heard.append(env.step(action))
        if heard[-1][2] or heard[-1][3]:
            heard.append(env.reset())
    return heard


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    "arguments", [{}, {"actions": 4}, {"passive": True, "length": 100}, {"timeout": 25}], ids=str
)
def test_gymnasium_finds_nothing_to_say(arguments):
    env = gymnasium.make("snaprl/TMaze-v0", **arguments)
    check_env(env.unwrapped)
    env.close()


def test_a_random_episode_goes_through_gymnasiums_own_wrappers():
    env = gymnasium.make("snaprl/TMaze-v0", length=3, disable_env_checker=False)
    env = gymnasium.wrappers.RecordEpisodeStatistics(env)
    env.reset(seed=1)
    env.action_space.seed(1)
    ended = False
    while not ended:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        ended = terminated or truncated
    assert info["episode"]["l"] >= 4
    assert isinstance(info["success"], bool)


def test_a_seed_settles_everything_that_follows():
    env, other = (PureGymEnv(TMaze(length=2).make()) for _ in range(2))
    first, second = play(env, ACTIONS, seed=5), play(other, ACTIONS, seed=5)
    assert_same(first, second)
    assert_same(play(env, ACTIONS, seed=5), first)
    starts = {tuple(env.reset(seed=seed)[0]) for seed in range(20)}
    assert len(starts) == 2


def test_the_keys_go_on_between_resets():
    env = PureGymEnv(TMaze().make())
    env.reset(seed=0)
    cues = [env.reset()[0][0] for _ in range(100)]
    # 4 standard deviations of a fair coin: 20.
    assert abs(sum(cues) - 50) < 20


def test_it_is_the_pure_function_step_by_step():
    pure = TMaze.protocol_a(3).make()
    env = PureGymEnv(pure)
    generator, _ = gymnasium.utils.seeding.np_random(11)
    raw, key = host.split_key(host.draw_key(generator))
    state, expected = pure.reset(key)
    observation, info = env.reset(seed=11)
    np.testing.assert_array_equal(observation, expected)
    assert info == {}
    for action in ACTIONS:
        raw, key = host.split_key(raw)
        state, out = pure.step(state, jnp.int32(action), key)
        observation, reward, terminated, truncated, info = env.step(action)
        np.testing.assert_array_equal(observation, out.observation)
        assert (reward, terminated, truncated) == (out.reward, out.terminated, out.truncated)
        if terminated or truncated:
            assert info == {"success": bool(out.success)}
            break
        assert info == {}
    assert terminated or truncated


@pytest.mark.parametrize("name", PROBES)
def test_any_pure_environment_will_do(name):
    env = PureGymEnv(PROBES[name]())
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    *_, truncated, info = env.step(env.action_space.sample())
    assert truncated is False
    assert "success" not in info


def test_environments_of_one_kind_share_what_is_compiled_and_nothing_else():
    traced = []

    def step(state, action, key):
        traced.append(action.dtype)
        del key
        no = jnp.bool_(False)
        return state + action, Step(jnp.float32([0]), jnp.float32(0), no, no, no)

    pure = PureEnv(
        reset=lambda key: (jnp.int32(0), jnp.float32([0])),
        step=step,
        observation_space=spaces.Box(0, 1, (1,), np.float32),
        action_space=spaces.Discrete(2),
        knows_success=False,
    )
    envs = [PureGymEnv(pure) for _ in range(3)]
    for env in envs:
        env.reset()
        for action in (1, np.int64(1), np.int32(0), np.array(1), jnp.int32(1)):
            env.step(action)
    assert traced == [jnp.int32]
    for space in ("action_space", "observation_space"):
        assert len({id(getattr(env, space)) for env in (*envs, pure)}) == 4


def test_what_it_returns_is_the_callers():
    env = PureGymEnv(TMaze().make())
    observation, _ = env.reset(seed=0)
    later, *_ = env.step(0)
    before = later.copy()
    observation[:] = 7
    np.testing.assert_array_equal(later, before)


@pytest.mark.parametrize("cut", [0, 3, 9, 15])
def test_a_saved_state_goes_on_exactly(cut):
    env = PureGymEnv(TMaze(length=2).make())
    heard = play(env, ACTIONS[:cut], seed=2)
    saved = env.get_state()
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(saved))
    rest = play(env, ACTIONS[cut:])
    del heard
    other = PureGymEnv(TMaze(length=2).make())
    other.set_state(saved)
    assert_same(play(other, ACTIONS[cut:]), rest)
    env.set_state(saved)
    assert_same(play(env, ACTIONS[cut:]), rest)


def test_a_saved_state_remembers_that_a_reset_is_due():
    env = PureGymEnv(TMaze(length=1, passive=True).make())
    env.reset(seed=0)
    env.step(0)
    env.step(0)
    saved = env.get_state()
    env.reset()
    env.set_state(saved)
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.step(0)


def test_errors_say_what_to_do():
    env = PureGymEnv(TMaze().make(), render_mode=None)
    with pytest.raises(gymnasium.error.ResetNeeded, match="before step"):
        env.step(0)
    with pytest.raises(gymnasium.error.ResetNeeded, match="before get_state"):
        env.get_state()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"The action 3 is not in Discrete\(3\)"):
        env.step(3)
    probe = PureGymEnv(PROBES["action_reward"]())
    probe.reset()
    with pytest.raises(ValueError, match="state is of another environment"):
        env.set_state(probe.get_state())
    with pytest.raises(ValueError, match="There is no render mode 'human' here; there are: none"):
        PureGymEnv(TMaze().make(), render_mode="human")
