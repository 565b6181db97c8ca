"""Actor-critic on lambda-returns, with a recurrent core that learns online."""

import dataclasses
from typing import Any

import chex
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import rlax

from snaprl.agents.encoder import Encoder, check_space
from snaprl.agents.network import NetworkConfig, RecurrentActorCritic
from snaprl.agents.policy import policy_for
from snaprl.agents.types import Action, Agent, Array, PyTree, Segment
from snaprl.cores import CoreState


@dataclasses.dataclass(frozen=True)
class ActorCriticLoss:
    """The actor-critic loss.

    Attributes:
      discount: how much of a reward is left one step earlier.
      trace_decay: lambda of the lambda-returns: 0 looks one step ahead, 1 to the segment's end.
      entropy_cost: weight of the entropy bonus.
      value_cost: weight of the value loss.
    """

    discount: float = 0.99
    trace_decay: float = 0.9
    entropy_cost: float = 0.02
    value_cost: float = 0.5


def lambda_returns(
    segment: Segment, values: Array, *, discount: float, trace_decay: float
) -> Array:
    """Lambda-returns inside a segment that may hold several episodes.

    A step that is no transition stands between two episodes: the return of the step before it
    stops at the value of the episode's last observation, since lambda is 0 there. That value counts
    after a truncation, and is discounted to nothing after a termination.

    Args:
      segment: of T steps.
      values: `[T+1, B]`.
      discount: of a transition that does not terminate.
      trace_decay: lambda.

    Returns:
      `[T, B]`, with no gradient.

    Reference: Sutton and Barto, "Reinforcement Learning", 2018, section 12.1.
    """
    chex.assert_equal_shape([segment.reward, segment.discount, segment.mask, values[1:]])
    follows = jnp.concatenate([segment.mask[1:], jnp.ones_like(segment.mask[:1])])
    returns: Any = jax.vmap(rlax.lambda_returns, in_axes=1, out_axes=1)
    return jax.lax.stop_gradient(
        returns(segment.reward, discount * segment.discount, values[1:], trace_decay * follows)
    )


def actor_critic(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: NetworkConfig,
    loss: ActorCriticLoss,
) -> Agent:
    """Makes an actor-critic agent for an environment's spaces.

    Raises:
      ValueError: a space is not supported; the sentence names it.
    """
    check_space(observation_space)
    policy = policy_for(action_space)
    observed = network.observed(observation_space, policy.observed)
    net = RecurrentActorCritic(network, observed, policy.size)
    # drawn in 32 bits whatever they become: orthogonal kernels cannot be drawn in fewer
    wide = dataclasses.replace(network, dtype=jnp.float32)
    wide_net = RecurrentActorCritic(wide, observed, policy.size)
    apply: Any = net.apply  # its type allows for collections that nothing here makes mutable
    encoder = Encoder(observed, network.encoder, network.dtype)

    def narrow(x: np.ndarray) -> np.dtype:
        """The type that jax gives a host array: 32 bits unless told otherwise."""
        return jax.dtypes.canonicalize_dtype(np.asarray(x).dtype)

    def example(streams: int) -> PyTree:
        """One step of what the network reads."""
        return jax.tree.map(lambda x: jnp.zeros((streams, *x.shape), narrow(x)), observed.sample())

    encoded = jax.eval_shape(encoder.init_with_output, jax.random.key(0), example(1))[0]
    core_inputs = encoded.shape[-1]

    def initial_state(key: Array, streams: int) -> CoreState:
        return net.initial_state(key, streams, core_inputs)

    def init(key: Array, streams: int) -> PyTree:
        state_key, key = jax.random.split(key)
        state = wide_net.initial_state(state_key, streams, core_inputs)
        observation = jax.tree.map(lambda x: jnp.stack([x, x]), example(streams))
        variables = wide_net.init(key, state, observation, jnp.zeros((2, streams), bool))
        params = jax.tree.map(lambda x: x.astype(network.dtype), variables["params"])
        return {**variables, "params": params}

    def observe(
        observation: PyTree, last_action: Array, last_reward: Array, first: Array
    ) -> PyTree:
        read = {"observation": observation}
        if network.last_action:
            expand = (...,) + (None,) * policy.none.ndim
            read["last_action"] = jnp.where(first[expand], policy.none[None], last_action)
        if network.last_reward:
            read["last_reward"] = jnp.where(first, 0.0, last_reward)
        return read

    def act(
        variables: PyTree, hidden: PyTree, observation: PyTree, first: Array, key: Array | None
    ) -> tuple[PyTree, Action]:
        carry = CoreState(hidden, ())
        carry, logits, value = apply(variables, carry, observation, first, method="step")
        action = policy.mode(logits) if key is None else policy.sample(logits, key)
        return carry.hidden, Action(action, policy.log_prob(logits, action), value)

    def segment_loss(
        variables: PyTree, state: CoreState, segment: Segment
    ) -> tuple[Array, tuple[CoreState, dict[str, Array]]]:
        state, logits, values = apply(variables, state, segment.observation, segment.first)
        returns = lambda_returns(
            segment, values, discount=loss.discount, trace_decay=loss.trace_decay
        )
        weight = segment.mask / jnp.maximum(segment.mask.sum(), 1)
        error = returns - values[:-1]
        log_prob = policy.log_prob(logits, segment.action)
        terms = {
            "policy_loss": -jnp.sum(weight * log_prob * jax.lax.stop_gradient(error)),
            "value_loss": 0.5 * jnp.sum(weight * error**2),
            "entropy": jnp.sum(weight * policy.entropy(logits)),
        }
        total = (
            terms["policy_loss"]
            + loss.value_cost * terms["value_loss"]
            - loss.entropy_cost * terms["entropy"]
        )
        return total, (state, terms)

    def no_action(streams: int) -> Array:
        return jnp.broadcast_to(policy.none, (streams, *policy.none.shape))

    return Agent(init, initial_state, observe, act, segment_loss, policy.to_env, no_action)
