"""Laws of the losses: what learns says what acted said, and each reduces to the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from unit.agents.laws import (
    ACTIONS,
    COSTS,
    OBSERVATION,
    B,
    Telling,
    close,
    network,
    played,
    value_and_grad,
)

from snaprl.agents import (
    ActorCriticLoss,
    ImpalaLoss,
    Outputs,
    PPOLoss,
    Segment,
    Targets,
    make_agent,
)


@pytest.mark.parametrize("kind", ACTIONS)
def test_the_learner_sees_the_probabilities_with_which_was_acted(x64, kind):
    agent = make_agent(OBSERVATION, ACTIONS[kind], network(), Telling())
    variables, state, segment, acts = played(agent, ACTIONS[kind], jax.random.key(0))
    _, (_, told) = jax.jit(agent.loss)(variables, state, segment)
    assert told["log_prob"].dtype == jnp.float64
    assert np.ptp(told["log_prob"]) > 0.1
    close(told["log_prob"], segment.behaviour_log_prob)
    close(told["values"][:-1], acts.value)
    impala = make_agent(OBSERVATION, ACTIONS[kind], network(), ImpalaLoss())
    _, (_, metrics) = jax.jit(impala.loss)(variables, state, segment)
    close(metrics["rho"], 1.0)


@pytest.fixture
def case(x64):
    agent = make_agent(OBSERVATION, ACTIONS["discrete"], network(), Telling())
    return played(agent, ACTIONS["discrete"], jax.random.key(1))[:3]


def grads_of(loss, variables, state, segment, **options):
    agent = make_agent(OBSERVATION, ACTIONS["discrete"], network(), loss, **options)
    if agent.prepare:
        variables, segment = jax.jit(agent.prepare)(variables, state, segment)
    (total, (_, metrics)), grads = value_and_grad(agent)(variables, state, segment)
    return total, metrics, grads


LOSSES = {
    "impala": ImpalaLoss(**COSTS),
    "ppo": PPOLoss(**COSTS, normalise_advantage=False),
    "ppo with clipped values": PPOLoss(**COSTS, normalise_advantage=False, value_clip=0.1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_on_the_policys_own_actions_every_loss_has_the_gradient_of_the_plain_one(case, name):
    """V-trace's corrections are none, and no ratio is clipped: what is left is A2C."""
    _, _, wanted = grads_of(ActorCriticLoss(**COSTS), *case)
    _, metrics, found = grads_of(LOSSES[name], *case)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted)) > 1e-3
    close(found, wanted)
    assert metrics.get("clipped", 0.0) == 0


@pytest.mark.parametrize("kind", [ActorCriticLoss, ImpalaLoss, PPOLoss])
def test_a_schedule_of_the_entropy_bonus_is_read_at_the_learners_count(case, kind):
    falls = optax.linear_schedule(0.4, 0.0, 20)
    variables, state, segment = case
    scheduled = kind(**COSTS | {"entropy_cost": falls})
    for count, cost in ((0, 0.4), (5, 0.3), (20, 0.0), (99, 0.0)):
        wanted_total, _, wanted = grads_of(kind(**COSTS | {"entropy_cost": cost}), *case)
        counted = segment._replace(updates=jnp.full(B, count, jnp.int32))
        total, metrics, found = grads_of(scheduled, variables, state, counted)
        close([total, metrics["entropy_cost"]], [wanted_total, cost], 1e-6)
        close(found, wanted, 1e-6)  # the schedule counts in 32 bits
    with pytest.raises(
        ValueError, match="entropy_cost is a schedule, and segment.updates is empty"
    ):
        grads_of(scheduled, *case)


def test_a_normalised_advantage_has_mean_zero_and_variance_one(case):
    """Then a policy's gradient does not change with the unit or the offset of advantages."""
    variables, state, segment = case
    agent = make_agent(OBSERVATION, ACTIONS["discrete"], network(), PPOLoss(value_cost=0.0))
    _, ready = jax.jit(agent.prepare)(variables, state, segment)
    grad = value_and_grad(agent)
    _, wanted = grad(variables, state, ready)
    other = ready.targets._replace(advantage=1000 * ready.targets.advantage - 7)
    _, found = grad(variables, state, ready._replace(targets=other))
    close(found, wanted, 1e-7)  # 1e-8 keeps a variance of 0 from dividing by 0
    steps = segment.mask > 0
    advantage = np.asarray(ready.targets.advantage)[steps]
    plain = PPOLoss(value_cost=0.0, normalise_advantage=False)
    agent = make_agent(OBSERVATION, ACTIONS["discrete"], network(), plain)
    by_hand = (ready.targets.advantage - advantage.mean()) / advantage.std()
    targets = ready.targets._replace(advantage=by_hand)
    _, found = value_and_grad(agent)(variables, state, ready._replace(targets=targets))
    close(found, wanted, 1e-7)


SURROGATE = [  # ratio, advantage, does the policy still learn
    (1.5, 1.0, False),
    (1.5, -1.0, True),
    (0.5, 1.0, True),
    (0.5, -1.0, False),
    (1.1, 1.0, True),
    (0.9, -1.0, True),
]


@pytest.mark.parametrize(("ratio", "advantage", "learns"), SURROGATE)
def test_a_ratio_that_went_far_enough_teaches_no_more(ratio, advantage, learns):
    loss = PPOLoss(entropy_cost=0.0, normalise_advantage=False)
    one = jnp.ones((1, 1))
    segment = Segment(
        (), None, None, one, one, one, jnp.zeros((1, 1)), (), None, jnp.zeros(1, jnp.int32)
    )
    targets = Targets(value=0 * one, advantage=advantage * one, baseline=0 * one)

    def of_log_prob(log_prob):
        outputs = Outputs(log_prob * one, one, jnp.zeros((2, 1)), 1.0)
        return loss(outputs, segment, targets)

    (total, metrics), grad = jax.value_and_grad(of_log_prob, has_aux=True)(np.log(ratio))
    near = np.clip(ratio, 0.8, 1.2)
    np.testing.assert_allclose(total, -min(ratio * advantage, near * advantage), rtol=1e-6)
    np.testing.assert_allclose(grad, -ratio * advantage if learns else 0.0, rtol=1e-6)
    assert metrics["clipped"] == (near != ratio)
    np.testing.assert_allclose(metrics["kl"], ratio - 1 - np.log(ratio), rtol=1e-5)


def test_a_value_that_went_far_enough_towards_its_target_teaches_no_more():
    loss = PPOLoss(entropy_cost=0.0, normalise_advantage=False, value_clip=0.5)
    one = jnp.ones((1, 1))
    segment = Segment((), None, None, one, one, one, 0 * one, (), None, jnp.zeros(1, jnp.int32))

    def slope(value, scale):
        targets = Targets(value=10 * one, advantage=0 * one, baseline=one)

        def of_value(value):
            values = jnp.stack([value, 0.0])[:, None]
            return loss(Outputs(0 * one, one, values, scale), segment, targets)[1]["value_loss"]

        return jax.value_and_grad(of_value)(value)

    np.testing.assert_allclose(slope(1.4, 1.0), (0.5 * 8.6**2, -8.6), rtol=1e-6)
    np.testing.assert_allclose(slope(1.6, 1.0), (0.5 * 8.5**2, 0.0), rtol=1e-6)
    # the clip is in the unit of the values
    np.testing.assert_allclose(slope(1.6, 2.0), (0.5 * 4.2**2, -4.2 / 2), rtol=1e-6)
    # away from the target nothing is clipped
    np.testing.assert_allclose(slope(0.1, 1.0), (0.5 * 9.9**2, -9.9), rtol=1e-6)


def test_a_step_that_is_none_teaches_nothing_whatever_the_loss(case):
    variables, state, segment = case
    nothing = np.asarray(segment.mask) == 0
    other = segment._replace(
        action=jnp.where(nothing, (segment.action + 1) % 3, segment.action),
        reward=jnp.where(nothing, 1e6, segment.reward),
        discount=jnp.where(nothing, 0.0, segment.discount),
        behaviour_log_prob=jnp.where(nothing, -1e6, segment.behaviour_log_prob),
    )
    for loss in (*LOSSES.values(), PPOLoss(**COSTS)):
        for options in ({}, {"popart_step": 0.1}):
            agent = make_agent(OBSERVATION, ACTIONS["discrete"], network(), loss, **options)
            held = variables
            if options:
                held = {**variables, "popart": agent.init(jax.random.key(0), B)["popart"]}
            results = [grads_of(loss, held, state, s, **options) for s in (segment, other)]
            jax.tree.map(np.testing.assert_array_equal, *results)
