"""The compiled vector environment is a SyncVectorEnv, only faster."""

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from snaprl.envs.gym import PureGymEnv
from snaprl.envs.probes import PROBES
from snaprl.envs.registry import make_vec
from snaprl.envs.tmaze import TMaze
from snaprl.envs.vector import PureVectorEnv

B, T = 4, 40
ENV = "snaprl/TMaze-v0"
ACTIONS = np.random.default_rng(0).integers(0, 3, (T, B))


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    "arguments",
    [{"length": 2}, {"length": 3, "passive": True}, {"length": 2, "actions": 4, "timeout": 6}],
    ids=str,
)
def test_native_and_sync_agree_to_the_bit(arguments):
    native = gymnasium.make_vec(ENV, num_envs=B, **arguments)
    sync = gymnasium.make_vec(ENV, num_envs=B, vectorization_mode="sync", **arguments)
    assert isinstance(native.unwrapped, PureVectorEnv)
    assert native.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert native.observation_space == sync.observation_space
    assert native.action_space == sync.action_space
    ended = 0
    for seed in (3, [9, 8, 7, 6], None):
        assert_same(native.reset(seed=seed), sync.reset(seed=seed))
        for actions in ACTIONS:
            ours, theirs = native.step(actions), sync.step(actions)
            assert_same(ours, theirs)
            assert [x.dtype for x in ours[:4]] == [x.dtype for x in theirs[:4]]
            ended += int((ours[2] | ours[3]).sum())
    assert ended > B


def test_each_copy_is_the_single_environment_with_its_seed():
    envs = PureVectorEnv(TMaze(length=2).make(), B)
    observations, _ = envs.reset(seed=20)
    for i in range(B):
        single = PureGymEnv(TMaze(length=2).make())
        np.testing.assert_array_equal(observations[i], single.reset(seed=20 + i)[0])


def test_an_episodes_last_observation_is_in_the_stream():
    envs = PureVectorEnv(TMaze(length=1, passive=True).make(), 1)
    first, _ = envs.reset(seed=0)
    assert first[0, :2].sum() == 1
    np.testing.assert_array_equal(envs.step([0])[0], [[0, 0, 0, 1]])
    last, _, terminated, _, infos = envs.step([1])
    np.testing.assert_array_equal(last, np.zeros((1, 4)))
    assert terminated == [True]
    assert infos["success"] == (first[0, 0] == 1)
    assert infos["_success"] == [True]
    start, rewards, terminated, _, infos = envs.step([1])
    assert start[0, :2].sum() == 1
    assert (rewards, terminated, infos) == ([0.0], [False], {})


def test_async_goes_the_same_way():
    # By make_vec of ours: gymnasium's would fork, and jax's threads do not survive that.
    envs = make_vec(ENV, 2, vectorization_mode="async", length=2)
    native = make_vec(ENV, 2, length=2)
    try:
        assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        assert_same(envs.reset(seed=1), native.reset(seed=1))
        for actions in ACTIONS[:12, :2]:
            assert_same(envs.step(actions), native.step(actions))
    finally:
        envs.close()


@pytest.mark.parametrize("cut", [0, 7, 20])
def test_a_saved_state_goes_on_exactly(cut):
    envs = PureVectorEnv(TMaze.protocol_a(2).make(), B)
    envs.reset(seed=1)
    for actions in ACTIONS[:cut]:
        envs.step(actions)
    saved = envs.get_state()
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(saved))
    rest = [envs.step(actions) for actions in ACTIONS[cut:]]
    other = PureVectorEnv(TMaze.protocol_a(2).make(), B)
    other.set_state(saved)
    assert_same([other.step(actions) for actions in ACTIONS[cut:]], rest)


def test_a_reset_of_some_copies_leaves_the_others():
    envs = PureVectorEnv(TMaze(length=5).make(), B)
    sync = gymnasium.make_vec(ENV, num_envs=B, vectorization_mode="sync", length=5)
    mask = np.array([True, False, False, True])
    for env in (envs, sync):
        env.reset(seed=0)
        env.step(np.zeros(B, int))
    options = [{"reset_mask": mask} for _ in range(2)]  # gymnasium takes the mask out of its own
    ours, theirs = (e.reset(seed=4, options=o) for e, o in zip((envs, sync), options, strict=True))
    assert_same(ours, theirs)
    for actions in ACTIONS[:20]:
        assert_same(envs.step(actions), sync.step(actions))


def test_a_second_vector_of_the_same_kind_compiles_nothing():
    pure = PROBES["delayed_reward"]()
    for _ in range(2):
        envs = PureVectorEnv(pure, 3)
        envs.reset(seed=0)
        for _ in range(3):
            envs.step(np.ones(3, int))
    assert envs._advance._cache_size() == 1


def test_errors_say_what_to_do():
    envs = PureVectorEnv(TMaze().make(), B)
    with pytest.raises(gymnasium.error.ResetNeeded, match="before step"):
        envs.step(np.zeros(B, int))
    with pytest.raises(ValueError, match="The first reset has to reset every copy"):
        envs.reset(options={"reset_mask": np.arange(B) == 0})
    with pytest.raises(ValueError, match="There are 2 seeds for 4 environments"):
        envs.reset(seed=[1, 2])
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="reset_mask must be bool"):
        envs.reset(options={"reset_mask": np.zeros(B)})
    for actions in (np.full(B, 3), np.zeros(B - 1, int)):
        with pytest.raises(ValueError, match="are not in MultiDiscrete"):
            envs.step(actions)
    larger = PureVectorEnv(TMaze().make(), B + 1)
    larger.reset(seed=0)
    with pytest.raises(ValueError, match="another environment or number of environments"):
        envs.set_state(larger.get_state())
    with pytest.raises(ValueError, match="num_envs is 0"):
        PureVectorEnv(TMaze().make(), 0)
