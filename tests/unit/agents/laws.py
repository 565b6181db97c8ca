"""What the laws of agents are tried on: play in which episodes end, and a loss that tells."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from snaprl.agents import NetworkConfig, Outputs, Segment, Targets
from snaprl.cores import SnAp

T, B = 6, 3
OBSERVATION = spaces.Box(-1, 1, (3,), np.float64)
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "multi discrete": spaces.MultiDiscrete([3, 2], start=[1, 0]),
    "box": spaces.Box(-1, 1, (2, 2), np.float32),
}
COSTS = {"discount": 0.9, "trace_decay": 0.8, "entropy_cost": 0.3, "value_cost": 0.7}


@dataclasses.dataclass(frozen=True)
class Telling:
    """A loss that tells what it was given; it aims at what it is told."""

    discount: float = 0.9
    targets_first: ClassVar[bool] = False

    def targets(self, outputs: Outputs, segment: Segment) -> Targets:
        return Targets(segment.reward, segment.reward, outputs.values[:-1])

    def __call__(self, outputs: Outputs, segment: Segment, targets: Targets):
        told = {"log_prob": outputs.log_prob, "entropy": outputs.entropy, "values": outputs.values}
        return outputs.log_prob.sum(), told | {"advantage": targets.advantage}


def network() -> NetworkConfig:
    return NetworkConfig(features=4, method=SnAp(order=1), dtype=jnp.float64)


def played(agent, action_space, key):
    """What an actor makes of T steps in which episodes end, one by a step that is none."""
    init_key, state_key, play_key = jax.random.split(key, 3)
    variables = jax.jit(agent.init, static_argnums=1)(init_key, B)
    head = variables["params"]["policy_head"]
    head["kernel"] = 0.5 * jax.random.normal(jax.random.key(7), head["kernel"].shape)
    state = agent.initial_state(state_key, B)
    state = jax.tree.map(
        lambda x: 0.3 * jax.random.normal(jax.random.key(2), x.shape, x.dtype), state
    )
    rng = np.random.default_rng(0)
    first = np.zeros((T + 1, B), bool)
    first[0, 0] = first[3, 1] = first[5, 2] = True
    mask, discount = np.ones((T, B)), np.ones((T, B))
    mask[2, 1] = mask[4, 2] = 0
    discount[1, 1] = 0
    act, observe = jax.jit(agent.act), jax.jit(agent.observe)
    hidden, last, reward, rows = state.hidden, agent.no_action(B), jnp.zeros(B), []
    for t in range(T + 1):
        read = observe(rng.normal(size=(B, 3)), last, reward, first[t])
        if t == T:
            break
        hidden, taken = act(variables, hidden, read, first[t], jax.random.fold_in(play_key, t))
        assert action_space.contains(np.asarray(agent.to_env(taken.action), action_space.dtype)[0])
        last, reward = taken.action, jnp.asarray(rng.normal(size=B))
        rows.append((read, taken, reward))
    reads, acts, rewards = zip(*rows, strict=True)
    stack = lambda *xs: jnp.stack(xs)  # noqa: E731
    acts = jax.tree.map(stack, *acts)
    number = jnp.zeros(B, jnp.int32)
    segment = Segment(
        observation=jax.tree.map(stack, *reads, read),
        first=jnp.asarray(first),
        action=acts.action,
        reward=jnp.stack(rewards) * mask,
        discount=jnp.asarray(discount),
        mask=jnp.asarray(mask),
        behaviour_log_prob=acts.log_prob,
        hidden=state.hidden,
        stream=jnp.arange(B),
        number=number,
    )
    return variables, state, segment, acts


def value_and_grad(agent):
    """Of a loss, as the learner takes it: of `params` alone."""

    @jax.jit
    def found(variables, state, segment):
        def of_params(params):
            return agent.loss({**variables, "params": params}, state, segment)

        return jax.value_and_grad(of_params, has_aux=True)(variables["params"])

    return found


def close(ours, theirs, tolerance=1e-12):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, theirs
    )
