"""An agent, of spaces, a network and a loss."""

import dataclasses
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from snaprl.agents import normaliser, popart
from snaprl.agents.encoder import Encoder, check_space
from snaprl.agents.losses import Loss, Outputs
from snaprl.agents.network import NetworkConfig, RecurrentActorCritic
from snaprl.agents.policy import policy_for
from snaprl.agents.types import Action, Agent, Array, PyTree, Segment
from snaprl.cores import CoreState


def make_agent(
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    network: NetworkConfig,
    loss: Loss,
    *,
    reward_clip: float = 0.0,
    popart_step: float = 0.0,
    normalise_observations: bool = False,
) -> Agent:
    """Makes an agent for an environment's spaces.

    Args:
      observation_space: of one environment.
      action_space: of one environment.
      network: what the network is made of.
      loss: `ActorCriticLoss`, `ImpalaLoss`, `PPOLoss`, or another that keeps to `Loss`.
      reward_clip: largest size of a reward as it is learned from; 0: any. The network reads, and
        episodes are measured by, rewards as they are.
      popart_step: how far an update moves the statistics by which values are normalised, see
        `snaprl.agents.popart`; 0: values are not normalised.
      normalise_observations: whether the network reads observations in units of their standard
        deviation so far, see `snaprl.agents.normaliser`. It is the learner's `prepare` that does so
        in learning: `make_learner(agent.loss, ..., prepare=agent.prepare)`.

    Raises:
      ValueError: a space is not supported, or has nothing to normalise; the sentence names it.
      TypeError: the network or the loss is none.
    """
    if not isinstance(network, NetworkConfig):
        raise TypeError(f"network is {network!r}: give a snaprl.agents.NetworkConfig")
    if not isinstance(loss, Loss) or isinstance(loss, type):
        raise TypeError(
            f"loss is {loss!r}, not a loss: give ActorCriticLoss(), ImpalaLoss(), PPOLoss() or one "
            "that keeps to snaprl.agents.Loss"
        )
    aims_first = loss.targets_first or popart_step > 0
    check_space(observation_space)
    policy = policy_for(action_space)
    observed = network.observed(observation_space, policy.observed)
    net = RecurrentActorCritic(network, observed, policy.size)
    if normalise_observations:
        normaliser.check_space(observation_space)
    # drawn in 32 bits whatever they become: orthogonal kernels cannot be drawn in fewer
    wide = dataclasses.replace(network, dtype=jnp.promote_types(network.dtype, jnp.float32))
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
        statistics = {"popart": popart.init()} if popart_step else {}
        if normalise_observations:
            statistics[normaliser.COLLECTION] = normaliser.init(observation_space)
        return {**variables, "params": params, **statistics}

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

    def normalised(variables: PyTree, read: PyTree) -> PyTree:
        observation = normaliser.normalise(variables, observation_space, read["observation"])
        return {**read, "observation": observation}

    def act(
        variables: PyTree, hidden: PyTree, observation: PyTree, first: Array, key: Array | None
    ) -> tuple[PyTree, Action]:
        carry, observation = CoreState(hidden, ()), normalised(variables, observation)
        carry, logits, value = apply(variables, carry, observation, first, method="step")
        action = policy.mode(logits) if key is None else policy.sample(logits, key)
        value = popart.to_reward_units(variables, value)
        return carry.hidden, Action(action, policy.log_prob(logits, action), value)

    def unroll(variables: PyTree, state: CoreState, segment: Segment) -> tuple[CoreState, Outputs]:
        state, logits, values = apply(variables, state, segment.observation, segment.first)
        return state, Outputs(
            log_prob=policy.log_prob(logits, segment.action),
            entropy=policy.entropy(logits),
            values=popart.to_reward_units(variables, values),
            scale=popart.scale(variables),
        )

    def segment_loss(
        variables: PyTree, state: CoreState, segment: Segment
    ) -> tuple[Array, tuple[CoreState, dict[str, Array]]]:
        state, outputs = unroll(variables, state, segment)
        targets = segment.targets or loss.targets(outputs, segment)
        total, metrics = loss(outputs, segment, targets)
        if popart_step:
            metrics = metrics | {"value_scale": jnp.asarray(outputs.scale)}
        return total, (state, metrics)

    def prepare(variables: PyTree, state: CoreState, segment: Segment) -> tuple[PyTree, Segment]:
        if normalise_observations:  # by what was acted with; only then do the statistics move
            seen = jax.tree.map(lambda x: x[:-1], segment.observation["observation"])
            segment = segment._replace(observation=normalised(variables, segment.observation))
            variables = normaliser.revise(variables, observation_space, seen)
        if not aims_first:
            return variables, segment
        _, outputs = unroll(variables, state, segment)
        targets = loss.targets(outputs, segment)
        if popart_step:
            variables = popart.revise(variables, targets.value, segment.mask, step=popart_step)
        return variables, segment._replace(targets=targets)

    def no_action(streams: int) -> Array:
        return jnp.broadcast_to(policy.none, (streams, *policy.none.shape))

    def reward(of_env: Any) -> Any:
        return of_env.clip(-reward_clip, reward_clip) if reward_clip else of_env

    return Agent(
        init=init,
        initial_state=initial_state,
        observe=observe,
        act=act,
        loss=segment_loss,
        to_env=policy.to_env,
        no_action=no_action,
        reward=reward,
        prepare=prepare if aims_first or normalise_observations else None,
    )
