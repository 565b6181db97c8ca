"""MiniGrid as an agent reads it."""

import gymnasium
import numpy as np
import pytest

from snaprl import envs
from snaprl.envs.minigrid import NAMES, OneHotView

minigrid = pytest.importorskip("minigrid")
NAME = "minigrid:MiniGrid-MemoryS7-v0"


def test_the_names_are_minigrids():
    from minigrid.core import constants

    tables = (constants.OBJECT_TO_IDX, constants.COLOR_TO_IDX, constants.STATE_TO_IDX)
    assert tuple(max(table.values()) + 1 for table in tables) == NAMES


def test_the_view_is_told_in_full_and_success_at_the_end():
    env = OneHotView(gymnasium.make(NAME))
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    seen = {True: 0, False: 0}
    for _ in range(3000):
        assert env.observation_space.contains(observation)
        view = observation.reshape(7, 7, sum(NAMES))
        parts = np.split(view, np.cumsum(NAMES)[:-1], axis=-1)
        whole = env.unwrapped.gen_obs()["image"]
        np.testing.assert_array_equal(np.stack([p.argmax(-1) for p in parts], -1), whole)
        observation, reward, terminated, truncated, info = env.step(rng.integers(0, 3))
        assert ("success" in info) == (terminated or truncated)
        if terminated or truncated:
            assert info["success"] == (reward > 0)
            seen[info["success"]] += 1
            observation, _ = env.reset()
    assert min(seen.values()) > 0
    env.close()


def test_copies_of_it_tell_of_success_too():
    vector = envs.make_vec(NAME, 2, wrappers=[OneHotView])
    vector.reset(seed=0)
    rng = np.random.default_rng(0)
    told = [vector.step(rng.integers(0, 3, 2))[4] for _ in range(600)]
    assert any("success" in info for info in told)
    vector.close()


def test_what_is_none_of_minigrids_is_refused():
    with pytest.raises(ValueError, match="has no 'image' in its observations"):
        OneHotView(gymnasium.make("CartPole-v1"))
