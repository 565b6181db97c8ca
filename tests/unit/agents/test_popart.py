"""PopArt: statistics of returns move, and no value does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.agents.laws import (
    ACTIONS,
    COSTS,
    OBSERVATION,
    Telling,
    close,
    network,
    played,
    value_and_grad,
)

from snaprl.agents import ActorCriticLoss, ImpalaLoss, Outputs, PPOLoss, make_agent, popart


def variables_of(mean, scale, updates=5):
    statistics = {
        "mean": jnp.float64(mean),
        "second_moment": jnp.float64(scale**2 + mean**2),
        "updates": jnp.int32(updates),
    }
    head = {
        "kernel": jax.random.normal(jax.random.key(0), (4, 1)),
        "bias": jnp.array([0.3]),
    }
    return {"params": {"value_head": head, "core": jnp.ones(2)}, "popart": statistics}


def values_of(variables, features):
    head = variables["params"]["value_head"]
    return popart.to_reward_units(variables, features @ head["kernel"] + head["bias"][None])


@given(
    mean=st.floats(-100, 100),
    scale=st.floats(0.1, 1000),
    unit=st.sampled_from([1e-6, 1.0, 1e4]),
    step=st.floats(1e-4, 1),
)
def test_no_value_moves_when_the_statistics_do(x64, mean, scale, unit, step):
    variables = variables_of(mean, scale)
    features = jax.random.normal(jax.random.key(1), (9, 4))
    returns = unit * jax.random.normal(jax.random.key(2), (5, 3)) + unit
    after = popart.revise(variables, returns, jnp.ones((5, 3)), step=step)
    assert after["popart"]["mean"] != mean
    before, found = values_of(variables, features), values_of(after, features)
    largest = np.abs(before).max() + abs(mean) + scale
    np.testing.assert_allclose(found, before, rtol=0, atol=1e-12 * largest)
    np.testing.assert_array_equal(after["params"]["core"], variables["params"]["core"])


def test_statistics_are_those_of_the_returns(x64):
    """At first a plain average in which the start counts for one, later one that forgets."""
    rng = np.random.default_rng(0)
    variables = variables_of(0.0, 1.0, updates=0)
    batches = rng.normal(50, 7, (40, 6, 3))
    mask = (rng.uniform(size=batches.shape) < 0.8).astype(float)
    means, squares = [0.0], [1.0]
    for k, (returns, m) in enumerate(zip(batches, mask, strict=True)):
        poisoned = jnp.asarray(np.where(m > 0, returns, 1e9))
        variables = popart.revise(variables, poisoned, jnp.asarray(m), step=0.05)
        means.append(returns[m > 0].mean())
        squares.append((returns[m > 0] ** 2).mean())
        if k == 9:
            np.testing.assert_allclose(variables["popart"]["mean"], np.mean(means))
            np.testing.assert_allclose(variables["popart"]["second_moment"], np.mean(squares))
    assert variables["popart"]["updates"] == 40
    np.testing.assert_allclose(variables["popart"]["mean"], 50, atol=4)
    np.testing.assert_allclose(popart.scale(variables), 7, rtol=0.8)
    last = variables["popart"]["mean"]
    later = popart.revise(variables, jnp.full((2, 3), 90.0), jnp.ones((2, 3)), step=0.05)
    np.testing.assert_allclose(later["popart"]["mean"], last + 0.05 * (90 - last))
    nothing = popart.revise(variables, jnp.full((2, 3), 90.0), jnp.zeros((2, 3)), step=0.05)
    np.testing.assert_array_equal(nothing["popart"]["mean"], last)


def test_returns_that_do_not_vary_are_not_blown_up(x64):
    variables = variables_of(3.0, 0.0)
    np.testing.assert_allclose(popart.scale(variables), popart.LOWEST_SCALE)


def test_without_statistics_the_unit_is_one():
    variables = {"params": {}}
    assert popart.scale(variables) == 1.0
    assert popart.to_reward_units(variables, 5.0) == 5.0


LOSSES = {
    "actor_critic": ActorCriticLoss(**COSTS),
    "impala": ImpalaLoss(**COSTS),
    "ppo": PPOLoss(**COSTS, value_clip=0.3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_preparing_moves_no_value_and_no_probability(x64, name):
    agent = make_agent(OBSERVATION, ACTIONS["discrete"], network(), LOSSES[name], popart_step=0.1)
    variables, state, segment, acts = played(agent, ACTIONS["discrete"], jax.random.key(3))
    segment = segment._replace(reward=40 * segment.reward + 9)
    after, ready = jax.jit(agent.prepare)(variables, state, segment)
    assert after["popart"]["second_moment"] > 10
    read = jax.tree.map(lambda x: x[0], segment.observation)
    _, again = jax.jit(agent.act)(
        after, state.hidden, read, segment.first[0], jax.random.fold_in(jax.random.key(0), 0)
    )
    close(again.value, acts.value[0])
    # targets are those that the loss would have found by itself
    spy = make_agent(OBSERVATION, ACTIONS["discrete"], network(), Telling(), popart_step=0.1)
    told = jax.jit(spy.loss)(variables, state, segment)[1][1]
    outputs = Outputs(told["log_prob"], told["entropy"], told["values"], 1.0)
    close(ready.targets, LOSSES[name].targets(outputs, segment))


@pytest.mark.parametrize("name", LOSSES)
def test_the_unit_of_rewards_does_not_matter(x64, name):
    """Rewards and statistics a thousand times as large: the same loss, the same gradient."""
    agent = make_agent(OBSERVATION, ACTIONS["discrete"], network(), LOSSES[name], popart_step=0.1)
    variables, state, segment, _ = played(agent, ACTIONS["discrete"], jax.random.key(4))
    found = []
    for unit in (1.0, 1e3):
        held = {"mean": 0.4 * unit, "second_moment": 1.7 * unit**2}
        held = variables["popart"] | {k: jnp.float64(v) for k, v in held.items()}
        # last_reward is read as it is: only what is learned from has another unit
        scaled = segment._replace(reward=unit * segment.reward)
        ready = jax.jit(agent.prepare)({**variables, "popart": held}, state, scaled)
        (total, _), grads = value_and_grad(agent)(ready[0], state, ready[1])
        found.append((total, grads))
    close(*found, tolerance=1e-10)
