"""Actors in environments of gymnasium, from a config on: their policy is the learner's, and what
happens to them when an environment fails."""

import re

import jax
import numpy as np
import pytest

from snaprl.training.errors import UserError
from snaprl.training.loops import prepare
from snaprl.training.schema import (
    ActorsConfig,
    AgentConfig,
    Config,
    EnvConfig,
    LossConfig,
    OptimizerConfig,
    TrainingConfig,
)

ODD = "unit.training.actors.odd"
ENVIRONMENTS = {
    "discrete": EnvConfig("CartPole-v1"),
    "multi-discrete": EnvConfig("CartPole-v1", wrappers=(f"{ODD}:two_levers",)),
    "box": EnvConfig("Pendulum-v1"),
}


def config(env: EnvConfig, engine: str, **actors) -> Config:
    return Config(
        agent=AgentConfig(features=4, encoder=(5,)),
        env=env,
        loss=LossConfig(name="impala"),
        optimizer=OptimizerConfig(learning_rate=1e-30),  # below what a parameter can tell
        training=TrainingConfig(streams=4, unroll=3, steps=10_000, loop="host"),
        actors=ActorsConfig(engine=engine, count=2, per_update=1, **actors),
    )


@pytest.mark.parametrize("engine", ["local", "processes"])
@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_with_unchanged_parameters_every_rho_is_one(env, engine):
    """The learner goes on from its own bank, the actors from what they remember themselves."""
    _, loop = prepare(config(ENVIRONMENTS[env], engine))
    try:
        state = loop.init(jax.random.key(0))
        keys = iter(jax.random.split(jax.random.key(1), 100))
        # far from the policy that a network begins with, which hardly looks at what it sees
        params = jax.tree.map(
            lambda x: x + 0.5 * jax.random.normal(next(keys), x.shape),
            state.learner.variables["params"],
        )
        variables = {**state.learner.variables, "params": params}
        state = state._replace(learner=state.learner._replace(variables=variables))
        state, chunk = loop.run(state, 12)
    finally:
        loop.close()
    assert chunk.updates == 12
    assert chunk.metrics["gaps"].sum() == 0
    np.testing.assert_allclose(chunk.metrics["rho"], 1.0, atol=3e-6)
    assert max(abs(x).max() for x in jax.tree.leaves(state.learner.bank.influence)) > 1e-3


FAULTS = {
    "gives_nan": r"Poison: the environment gave nan in observation/?\w*, stream \d, step \d of seg",
    "raises": r"KeyError.*the door is gone",
    "gives_another_shape": r"shape",
}
EACH = [
    pytest.param("gives_nan", "processes"),
    pytest.param("raises", "processes", marks=pytest.mark.slow),
    pytest.param("gives_another_shape", "processes", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("fault", "engine"), EACH)
def test_an_actor_whose_environment_fails_is_replaced(fault, engine, capfd):
    env = EnvConfig("CartPole-v1", wrappers=(f"{ODD}:{fault}",))
    _, loop = prepare(config(env, engine))
    try:
        state, chunk = loop.run(loop.init(jax.random.key(0)), 7)  # more than both have of one life
    finally:
        loop.close()
    assert chunk.updates == 7
    assert chunk.metrics["restarts"][-1] >= 2
    assert chunk.metrics["gaps"].sum() >= 2
    said = capfd.readouterr().err.splitlines()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.learner.variables))
    replaced = [line for line in said if "replaced, its streams start anew" in line]
    assert len(replaced) >= 2
    for line in replaced:
        assert re.search(FAULTS[fault], line), line


@pytest.mark.parametrize("fault", FAULTS)
def test_in_this_process_it_ends_the_run(fault):
    env = EnvConfig("CartPole-v1", wrappers=(f"{ODD}:{fault}",))
    _, loop = prepare(config(env, "local"))
    _, chunk = loop.run(loop.init(jax.random.key(0)), 12)
    assert isinstance(chunk.failure, UserError)
    assert re.match(f"actor 0: .*{FAULTS[fault].removeprefix('Poison: ')}", str(chunk.failure))
