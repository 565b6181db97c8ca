"""The agent: its loss is what it says, and nothing flows where nothing should."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from snaprl.agents import (
    ActorCriticLoss,
    NetworkConfig,
    RecurrentActorCritic,
    Segment,
    make_agent,
)
from snaprl.agents.returns import lambda_returns
from snaprl.cores import BPTT, CoreState, SnAp

T, B = 5, 4
OBSERVATION = spaces.Box(-1, 1, (3,), np.float32)
ACTION = spaces.Discrete(3)
LOSS = ActorCriticLoss(discount=0.9, trace_decay=0.8, entropy_cost=0.3, value_cost=0.7)
NETWORK = NetworkConfig(features=4)
FAST = NetworkConfig(features=4, method=BPTT())


def net_of(network: NetworkConfig) -> RecurrentActorCritic:
    return RecurrentActorCritic(network, network.observed(OBSERVATION, ACTION), 3)


@pytest.fixture(scope="module")
def agent():
    return make_agent(OBSERVATION, ACTION, NETWORK, LOSS)


@pytest.fixture(scope="module")
def variables(agent):
    """With policies that are not close to uniform, as they are after a while."""
    fresh = jax.jit(agent.init, static_argnums=1)(jax.random.key(0), B)
    head = fresh["params"]["policy_head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    return fresh


@pytest.fixture(scope="module")
def state(agent):
    """As in the middle of a training: neither hidden state nor influence is zero."""
    fresh = agent.initial_state(jax.random.key(0), B)
    return jax.tree.map(lambda x: 0.3 * jax.random.normal(jax.random.key(2), x.shape), fresh)


@pytest.fixture(scope="module")
def segment() -> Segment:
    rng = np.random.default_rng(0)
    first = np.zeros((T + 1, B), bool)
    mask = np.ones((T, B), np.float32)
    discount = np.ones((T, B), np.float32)
    first[0, 0] = first[3, 1] = first[5, 2] = True
    mask[2, 1] = mask[4, 2] = 0
    discount[1, 1] = 0  # stream 1 terminated, stream 2 was cut
    read = {
        "observation": rng.normal(size=(T + 1, B, 3)).astype(np.float32),
        "last_action": rng.integers(-1, 3, (T + 1, B)).astype(np.int32),
        "last_reward": rng.normal(size=(T + 1, B)).astype(np.float32),
    }
    reward = rng.normal(size=(T, B)).astype(np.float32) * mask
    action = rng.integers(0, 3, (T, B)).astype(np.int32)
    number = np.zeros(B, np.int32)
    return Segment(read, first, action, reward, discount, mask, None, (), number, number)


@pytest.fixture(scope="module")
def loss_and_grads(agent):
    return jax.jit(jax.value_and_grad(agent.loss, has_aux=True))


def test_the_loss_is_what_it_says(loss_and_grads, variables, state, segment):
    (total, (_, terms)), _ = loss_and_grads(variables, state, segment)
    apply = jax.jit(net_of(NETWORK).apply)
    _, logits, values = apply(variables, state, segment.observation, segment.first)
    returns = lambda_returns(segment, values, discount=0.9, trace_decay=0.8)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    count = segment.mask.sum()
    wanted = dict.fromkeys(("policy_loss", "value_loss", "entropy"), 0.0)
    for t, b in np.argwhere(segment.mask):
        error = float(returns[t, b] - values[t, b])
        wanted["policy_loss"] -= log_p[t, b, segment.action[t, b]] * error / count
        wanted["value_loss"] += 0.5 * error**2 / count
        wanted["entropy"] -= (np.exp(log_p[t, b]) * log_p[t, b]).sum() / count
    assert terms.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-4)
    costs = wanted["policy_loss"] + 0.7 * wanted["value_loss"] - 0.3 * wanted["entropy"]
    np.testing.assert_allclose(total, costs, rtol=1e-4)


def test_a_step_that_is_none_teaches_nothing(loss_and_grads, variables, state, segment):
    nothing = segment.mask == 0
    other = segment._replace(
        action=np.where(nothing, (segment.action + 1) % 3, segment.action),
        reward=np.where(nothing, np.float32(1e6), segment.reward),
        discount=np.where(nothing, np.float32(0), segment.discount),
    )
    results = [loss_and_grads(variables, state, s) for s in (segment, other)]
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_a_segment_without_a_step_teaches_nothing(loss_and_grads, variables, state, segment):
    (loss, _), grads = loss_and_grads(variables, state, segment._replace(mask=0 * segment.mask))
    assert loss == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_the_advantage_moves_the_policy_and_not_the_value(variables, state, segment):
    """The value head learns from the value loss alone."""
    agent = make_agent(OBSERVATION, ACTION, NETWORK, ActorCriticLoss(value_cost=0.0))
    grads = jax.jit(jax.grad(agent.loss, has_aux=True))(variables, state, segment)[0]["params"]
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads["value_head"]))
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(grads["policy_head"]))


def test_the_last_observation_only_bootstraps(agent, variables, state, segment):
    @jax.jit
    def of_observation(x):
        read = segment.observation | {"observation": x}
        return jax.value_and_grad(
            lambda read: agent.loss(variables, state, segment._replace(observation=read)),
            has_aux=True,
            allow_int=True,
        )(read)

    x = segment.observation["observation"]
    (loss, (kept, _)), grads = of_observation(x)
    grad = np.asarray(grads["observation"])
    assert (grad[-1] == 0).all()
    assert (np.abs(grad[:-1]).max(axis=2) > 0).any(axis=1).all()
    other = x.copy()
    other[-1] += 1
    (other_loss, (other_kept, _)), _ = of_observation(other)
    assert loss != other_loss
    jax.tree.map(np.testing.assert_array_equal, kept, other_kept)
    # and what is kept is the state after step T
    core = jax.jit(lambda v, s, o, f: net_of(NETWORK).apply(v, s, o, f)[0])
    one_more = jax.tree.map(lambda leaf: np.concatenate([leaf[:T], leaf[:1]]), segment.observation)
    again = core(variables, state, one_more, segment.first)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), kept, again)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), kept, state)
    assert all(jax.tree.leaves(moved))


def test_the_last_value_teaches_nothing_but_the_value_head(variables, state, segment):
    """Whatever loss it is used in."""
    net = net_of(NETWORK)

    def last_value(variables):
        return net.apply(variables, state, segment.observation, segment.first)[2][-1].sum()

    grads = jax.jit(jax.grad(last_value))(variables)["params"]
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(grads.pop("value_head")))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_acting_step_by_step_is_the_unroll(agent, variables, state, segment):
    """With unchanged parameters the learner sees the probabilities with which was acted."""
    act = jax.jit(agent.act)
    hidden, taken = state.hidden, []
    for t in range(T):
        read = jax.tree.map(lambda x, t=t: x[t], segment.observation)
        hidden, action = act(variables, hidden, read, segment.first[t], jax.random.key(t))
        taken.append(action)
    apply = jax.jit(net_of(NETWORK).apply)
    end, logits, values = apply(variables, state, segment.observation, segment.first)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    for t, action in enumerate(taken):
        chosen = log_p[t, np.arange(B), action.action]
        np.testing.assert_allclose(action.log_prob, chosen, atol=1e-6)
        np.testing.assert_allclose(action.value, values[t], atol=1e-6)
    np.testing.assert_allclose(hidden, end.hidden, atol=1e-6)


def test_acting_by_the_likeliest_or_by_chance(agent, variables, state, segment):
    act = jax.jit(agent.act)
    read = jax.tree.map(lambda x: x[0], segment.observation)
    _, greedy = act(variables, state.hidden, read, segment.first[0], None)
    apply = jax.jit(net_of(NETWORK).apply)
    _, logits, _ = apply(variables, state, segment.observation, segment.first)
    np.testing.assert_array_equal(greedy.action, np.argmax(logits[0], axis=-1))
    draws = [
        np.asarray(
            act(variables, state.hidden, read, segment.first[0], jax.random.key(k))[1].action
        )
        for k in range(200)
    ]
    often = np.stack([np.mean(np.stack(draws) == a, axis=0) for a in range(3)], axis=-1)
    np.testing.assert_allclose(often, jax.nn.softmax(logits[0]), atol=4 * 0.5 / np.sqrt(200))


def test_an_episode_begins_without_last_action_and_reward(agent):
    first = jnp.array([True, False, True])
    x = jnp.ones((3, 3))
    read = agent.observe(x, jnp.array([2, 2, 0]), jnp.array([5.0, 6.0, 7.0]), first)
    assert read.keys() == {"observation", "last_action", "last_reward"}
    np.testing.assert_array_equal(read["last_action"], [-1, 2, -1])
    np.testing.assert_array_equal(read["last_reward"], [0, 6, 0])
    np.testing.assert_array_equal(read["observation"], x)
    np.testing.assert_array_equal(agent.no_action(3), [-1] * 3)


def test_a_network_may_go_without_them():
    network = NetworkConfig(features=4, method=BPTT(), last_action=False, last_reward=False)
    agent = make_agent(OBSERVATION, ACTION, network, LOSS)
    read = agent.observe(jnp.ones((2, 3)), jnp.zeros(2), jnp.zeros(2), jnp.zeros(2, bool))
    assert read.keys() == {"observation"}


def test_without_memory_only_the_present_counts(variables, state, segment):
    """In acting as in learning, whatever was carried and whatever was seen before."""
    network = dataclasses.replace(FAST, memory=False)
    agent = make_agent(OBSERVATION, ACTION, network, LOSS)
    net = net_of(network)
    hidden = CoreState(state.hidden, ())
    apply, act = jax.jit(net.apply), jax.jit(agent.act)
    fresh = jax.jit(make_agent(OBSERVATION, ACTION, FAST, LOSS).act)
    _, logits, values = apply(variables, hidden, segment.observation, segment.first)
    for t in range(T):
        read = jax.tree.map(lambda x, t=t: x[t], segment.observation)
        _, taken = act(variables, hidden.hidden, read, segment.first[t], None)
        np.testing.assert_array_equal(taken.action, np.argmax(logits[t], -1))
        np.testing.assert_allclose(taken.value, values[t], atol=1e-6)
        alone = fresh(variables, hidden.hidden, read, jnp.ones(B, bool), None)[1]
        np.testing.assert_allclose(taken.value, alone.value, atol=1e-6)


KINDS = {
    "multi discrete": (spaces.MultiDiscrete([3, 2], start=[1, 0]), jnp.float32, BPTT()),
    "box with two axes": (spaces.Box(-1, 1, (2, 2), np.float32), jnp.float32, BPTT()),
    "half precision": (spaces.Discrete(3), jnp.bfloat16, SnAp(order=1)),
}


@pytest.mark.parametrize(("actions", "dtype", "method"), KINDS.values(), ids=KINDS)
def test_every_kind_of_action_can_be_learned(actions, dtype, method):
    network = NetworkConfig(features=4, method=method, encoder=(5,), dtype=dtype)
    agent = make_agent(OBSERVATION, actions, network, LOSS)

    @jax.jit
    def one_update(key):
        variables = agent.init(key, B)
        state = agent.initial_state(key, B)
        first = jnp.ones(B, bool)
        x = agent.observe(jnp.ones((B, 3)), agent.no_action(B), jnp.zeros(B), first)
        _, act = agent.act(variables, state.hidden, x, first, key)
        x_next = agent.observe(jnp.ones((B, 3)), act.action, jnp.ones(B), ~first)
        ones = jnp.ones((1, B))
        segment = Segment(
            observation=jax.tree.map(lambda a, b: jnp.stack([a, b]), x, x_next),
            first=jnp.stack([first, ~first]),
            action=act.action[None],
            reward=ones,
            discount=ones,
            mask=ones,
            behaviour_log_prob=act.log_prob[None],
            hidden=state.hidden,
            stream=jnp.arange(B),
            number=jnp.zeros(B, jnp.int32),
        )
        found = jax.value_and_grad(agent.loss, has_aux=True)(variables, state, segment)
        return variables, agent.to_env(act.action), found

    variables, given, ((loss, (state, _)), grads) = one_update(jax.random.key(0))
    assert given.shape == (B, *actions.shape)
    assert loss.dtype == jnp.float32
    assert np.isfinite(loss)
    for leaf, grad in zip(jax.tree.leaves(variables), jax.tree.leaves(grads), strict=True):
        assert leaf.dtype == grad.dtype == dtype
        assert np.isfinite(grad.astype(jnp.float32)).all()
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(grads["params"]["policy_head"]))
    # so that the loop can go on with it
    before = jax.eval_shape(lambda: agent.initial_state(jax.random.key(0), B))
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (before, state)]
    assert kinds[0] == kinds[1]


def test_spaces_that_cannot_be_are_said():
    with pytest.raises(ValueError, match="the observation space Text.* is not supported"):
        make_agent(spaces.Text(3), ACTION, FAST, LOSS)
    with pytest.raises(ValueError, match="the action space MultiBinary.* is not supported"):
        make_agent(OBSERVATION, spaces.MultiBinary(3), FAST, LOSS)
    with pytest.raises(ValueError, match="observation"):
        make_agent(spaces.Dict({"a": spaces.Text(3)}), ACTION, FAST, LOSS)


BOX, TWO = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)
NOT_A_NETWORK = {
    "encoder": (lambda: NetworkConfig(encoder=64), TypeError, "encoder is 64, not a tuple of "),
    "features": (
        lambda: NetworkConfig(features=(32, 32)),
        TypeError,
        r"features is \(32, 32\): give one whole number of units; encoder takes the widths of ",
    ),
    "no features": (lambda: NetworkConfig(features=-3), ValueError, "features is -3: give 1 or "),
    "width": (lambda: NetworkConfig(encoder=(4, 0)), ValueError, "a width in encoder is 0: give "),
    "kind of width": (lambda: NetworkConfig(encoder=(4.0,)), TypeError, "a width in enc.* is 4.0"),
    "cell": (lambda: NetworkConfig(cell="gru"), TypeError, "cell is 'gru', not a cell class"),
    "made cell": (
        lambda: NetworkConfig(cell=nn.GRUCell(3)),
        TypeError,
        r"cell is GRUCell\(.*, not a c",
    ),
    "method": (lambda: NetworkConfig(method="snap1"), TypeError, "method is 'snap1', not a grad"),
    "network": (
        lambda: make_agent(BOX, TWO, 64, ActorCriticLoss()),
        TypeError,
        "network is 64: give a snaprl.agents.NetworkConfig",
    ),
    "loss": (
        lambda: make_agent(BOX, TWO, NetworkConfig(), "ppo"),
        TypeError,
        r"loss is 'ppo', not a loss: give ActorCriticLoss\(\), ImpalaLoss\(\), PPOLoss\(\) or one ",
    ),
    "class of loss": (
        lambda: make_agent(BOX, TWO, NetworkConfig(), ActorCriticLoss),
        TypeError,
        "loss is <class '.*ActorCriticLoss'>, not a loss: ",
    ),
}


@pytest.mark.parametrize(("make", "kind", "sentence"), NOT_A_NETWORK.values(), ids=NOT_A_NETWORK)
def test_what_no_agent_is_made_of_is_said(make, kind, sentence):
    with pytest.raises(kind, match=f"^{sentence}"):
        make()


def test_widths_may_come_as_a_list_or_from_numpy():
    made: Any = NetworkConfig(encoder=[5], features=np.int64(4))
    assert hash(made) == hash(NetworkConfig(encoder=(5,), features=4))
    agent = make_agent(BOX, TWO, made, ActorCriticLoss())
    assert agent.init(jax.random.key(0), 1)["params"]["encoder"]["Dense_0"]["bias"].shape == (5,)
