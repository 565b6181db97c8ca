"""CartPole without velocities is CartPole, but for what is seen of it."""

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from snaprl import envs

NAME = "snaprl/CartPoleMasked-v0"


def test_gymnasium_finds_nothing_to_say():
    env = gymnasium.make(NAME)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.observation_space.shape == (2,)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 500
    env.close()


def test_one_is_gymnasiums_without_velocities():
    ours, theirs = gymnasium.make(NAME), gymnasium.make("CartPole-v1")
    seen, whole = ours.reset(seed=3)[0], theirs.reset(seed=3)[0]
    np.testing.assert_array_equal(seen, whole[[0, 2]])
    over = False
    for t in range(60):
        if over:
            seen, whole = ours.reset()[0], theirs.reset()[0]
            np.testing.assert_array_equal(seen, whole[[0, 2]])
        action = int(t % 3 == 0)
        (seen, *rest), (whole, *their_rest) = ours.step(action), theirs.step(action)
        np.testing.assert_array_equal(seen, whole[[0, 2]])
        assert rest == their_rest
        over = rest[1] or rest[2]


def test_many_are_gymnasiums_without_velocities():
    ours, theirs = envs.make_vec(NAME, 4), envs.make_vec("CartPole-v1", 4)
    assert ours.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert ours.observation_space.shape == (4, 2)
    actions = np.random.default_rng(0).integers(0, 2, (200, 4))
    seen, whole = ours.reset(seed=3)[0], theirs.reset(seed=3)[0]
    ended = 0
    for action in actions:
        np.testing.assert_array_equal(seen, whole[:, [0, 2]])
        assert ours.observation_space.contains(seen)
        (seen, *rest), (whole, *their_rest) = ours.step(action), theirs.step(action)
        for ours_one, theirs_one in zip(rest[:3], their_rest[:3], strict=True):
            np.testing.assert_array_equal(ours_one, theirs_one)
        ended += rest[1].sum()
    assert ended > 10


def test_it_is_listed_and_runs_on_the_host():
    assert NAME in [entry.env_id for entry in envs.listing()]
    assert envs.make_pure(NAME) is None
