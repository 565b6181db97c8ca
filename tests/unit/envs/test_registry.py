"""Environments by name."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from snaprl import envs
from snaprl.envs.registry import ENVS, HOST_ENVS
from snaprl.envs.tmaze import TMaze


def test_the_pure_form_is_the_tasks_own():
    assert envs.make_pure("snaprl/TMaze-v0", length=6) is TMaze(length=6).make()
    assert envs.make_pure("snaprl.envs:snaprl/TMaze-v0") is TMaze().make()
    assert envs.make_pure("CartPole-v1") is None


def test_any_environment_of_gymnasium_is_made_in_next_step_mode():
    for env_id in ("CartPole-v1", "Acrobot-v1", "snaprl/TMaze-v0"):
        vector = envs.make_vec(env_id, 3)
        assert vector.num_envs == 3
        assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        vector.close()


def test_wrappers_are_put_around_single_environments():
    wrappers = [lambda env: gymnasium.wrappers.TimeLimit(env, 5)]
    vector = envs.make_vec("snaprl/TMaze-v0", 2, wrappers=wrappers)
    assert isinstance(vector, gymnasium.vector.SyncVectorEnv)
    vector.reset(seed=0)
    truncated = [vector.step(np.ones(2, int))[3].all() for _ in range(5)]
    assert truncated == [False] * 4 + [True]


def test_a_vector_that_can_be_asked_for_its_mode_is_asked():
    asked = []

    def vector(num_envs, autoreset_mode="SAME_STEP"):
        asked.append(autoreset_mode)
        made = envs.PureVectorEnv(TMaze().make(), num_envs)
        return made

    gymnasium.register("snaprl-tests/Asked-v0", vector_entry_point=vector)
    try:
        envs.make_vec("snaprl-tests/Asked-v0", 2)
    finally:
        del gymnasium.registry["snaprl-tests/Asked-v0"]
    assert asked == [AutoresetMode.NEXT_STEP]


def test_the_module_before_the_colon_is_imported():
    vector = envs.make_vec("snaprl.envs:snaprl/TMaze-v0", 2, length=4)
    assert vector.spec is not None
    assert vector.spec.kwargs["length"] == 4
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        envs.make_vec("no_such_package:Task-v0", 2)


@pytest.mark.parametrize(
    ("env_id", "near"),
    [
        ("snaprl/TMaz-v0", "did you mean 'snaprl/TMaze-v0'"),
        ("snaprl/tmaze-v0", "did you mean 'snaprl/TMaze-v0'"),
        ("CartPole-v7", "did you mean 'CartPole-v1'"),
        ("CartPole", "did you mean 'CartPole-v"),
        ("CardPole-v1", "did you mean 'CartPole-v1'"),
        ("????", "pprint_registry"),
    ],
)
def test_an_unknown_name_brings_the_nearest(env_id, near):
    with pytest.raises(ValueError, match=f"There is no environment .*{near}"):
        envs.make_vec(env_id, 2)


def test_an_unknown_name_brings_the_way_to_a_module_unless_there_was_one():
    with pytest.raises(ValueError, match=r"or one that .*, written 'module:CartPole-v7'\?$"):
        envs.make_vec("CartPole-v7", 2)
    with pytest.raises(ValueError, match=r"or one that .*, written 'module:\?\?'\.$"):
        envs.make_vec("??", 2)
    with pytest.raises(ValueError, match=r"'snaprl/TMaz' once snaprl.envs is .* 'snaprl/TM\S*'\?$"):
        envs.make_vec("snaprl.envs:snaprl/TMaz", 2)


def test_an_unknown_argument_brings_the_nearest():
    sentence = "snaprl/TMaze-v0 has no argument 'lenght': did you mean 'length'"
    for make in (envs.make_pure, gymnasium.make, lambda *a, **k: envs.make_vec(*a, 2, **k)):
        with pytest.raises(ValueError, match=sentence):
            make("snaprl/TMaze-v0", lenght=3)
    with pytest.raises(ValueError, match="has no argument 'q': it takes length, actions"):
        envs.make_pure("snaprl/TMaze-v0", q=3)
    with pytest.raises(ValueError, match="num_envs is 0"):
        envs.make_vec("CartPole-v1", 0)


def test_the_listing_says_what_can_be_set():
    (maze,) = [row for row in envs.listing() if row.env_id == "snaprl/TMaze-v0"]
    assert maze.arguments["length"] == 10
    assert maze.arguments["timeout"] is None
    assert TMaze(**maze.arguments) == TMaze()
    for row in envs.listing():
        assert len(row.summary) <= 80
        assert row.env_id in gymnasium.registry
    assert len(envs.listing()) == len(ENVS) + len(HOST_ENVS)


def test_registering_twice_is_harmless():
    envs.register_all()


def test_importing_is_light():
    program = (
        "import sys, snaprl.envs\n"
        "heavy = {'matplotlib', 'pandas', 'flax', 'orbax', 'optax', 'ray', 'pygame'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
