"""What a trained core reads while its policy acts."""

from typing import Any, NamedTuple, Protocol

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from snaprl.agents import normaliser
from snaprl.agents.encoder import Encoder
from snaprl.agents.policy import policy_for
from snaprl.envs import AutoResetEnv
from snaprl.training.build import Built, make_envs, network
from snaprl.training.host_envs import HostEnvs
from snaprl.training.schema import Config

Array = jax.Array
PyTree = Any


class Step(NamedTuple):
    """What one step of B environments brings."""

    observation: PyTree  # [B, ...]
    reward: Array | np.ndarray  # [B]
    first: Array | np.ndarray  # [B] bool  `observation` starts an episode


class Envs(Protocol):
    """B environments that start their next episode themselves."""

    observation_space: gymnasium.Space
    action_space: gymnasium.Space

    def reset(self) -> PyTree:
        """Starts all episodes; returns the observations."""
        ...

    def step(self, action: Array) -> Step:
        """Steps all."""
        ...

    def close(self) -> None:
        """Gives back what is held open."""
        ...


def seen(
    config: Config, built: Built, variables: PyTree, *, steps: int, streams: int, key: Array
) -> tuple[Array, Array]:
    """Lets a policy act from the start of episodes, actions drawn.

    Args:
      config: the run's.
      built: from it.
      variables: the agent's, trained.
      steps: of each stream, T; a step that only resets is one of them, as it is in training.
      streams: B.
      key: consumed.

    Returns:
      What the core reads, `[T, B, M]` in 32 bits, and where episodes start, bool `[T, B]`.
    """
    env_key, state_key, key = jax.random.split(key, 3)
    envs: Envs
    if built.pure is not None:
        envs = _OnDevice(built.pure, streams, env_key)
    else:
        envs = _OnHost(config, streams, env_key)
    agent, net = built.agent, network(config)
    act, observe = jax.jit(agent.act), jax.jit(agent.observe)
    first = jnp.ones(streams, bool)
    hidden = agent.initial_state(state_key, streams).hidden
    read = observe(envs.reset(), agent.no_action(streams), jnp.zeros(streams), first)
    rows = []
    for act_key in jax.random.split(key, steps):
        rows.append((read, first))
        hidden, chosen = act(variables, hidden, read, first, act_key)
        out = envs.step(agent.to_env(chosen.action))
        first = jnp.asarray(out.first)
        read = observe(out.observation, chosen.action, jnp.asarray(out.reward, jnp.float32), first)
    envs.close()
    reads, firsts = jax.tree.map(lambda *xs: jnp.stack(xs), *rows)
    observed = net.observed(envs.observation_space, policy_for(envs.action_space).observed)
    seen = normaliser.normalise(variables, envs.observation_space, reads["observation"])
    reads = reads | {"observation": seen}
    encoder = Encoder(observed, net.encoder, net.dtype)
    params = variables["params"].get("encoder", {})  # none where nothing in it is trained
    xs: Any = jax.jit(encoder.apply)({"params": params}, reads)
    return xs.astype(jnp.float32), firsts


class _OnDevice:
    def __init__(self, env: AutoResetEnv, streams: int, key: Array):
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._streams, self._key = streams, key
        self._init, self._step = jax.jit(jax.vmap(env.init)), jax.jit(jax.vmap(env.step))

    def reset(self) -> PyTree:
        self._state, observation = self._init(self._keys())
        return observation

    def step(self, action: Array) -> Step:
        self._state, out = self._step(self._state, action, self._keys())
        return Step(out.observation, out.reward, out.first)

    def close(self) -> None:
        pass

    def _keys(self) -> Array:
        self._key, key = jax.random.split(self._key)
        return jax.random.split(key, self._streams)


class _OnHost:
    def __init__(self, config: Config, streams: int, key: Array):
        envs = make_envs(config, streams)
        self.observation_space = envs.single_observation_space
        self.action_space = envs.single_action_space
        self._envs, self._seed = HostEnvs(envs), int(jax.random.bits(key)) >> 1

    def reset(self) -> PyTree:
        return self._envs.reset(self._seed)

    def step(self, action: Array) -> Step:
        out = self._envs.step(np.asarray(action))
        return Step(out.observation, out.reward, out.first)

    def close(self) -> None:
        self._envs.close()
