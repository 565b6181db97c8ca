"""Environment, agent and learner in one jitted program, where environments are pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snaprl.agents import Agent, Segment
from snaprl.cores import compiler_options
from snaprl.envs import AutoResetEnv
from snaprl.training.learner import Learner, LearnerState
from snaprl.training.meters import Chunk
from snaprl.training.updates import Stoppable, make_updates

Array = jax.Array
PyTree = Any


class LoopState(NamedTuple):
    """All that decides what the loop does next."""

    learner: LearnerState
    envs: PyTree  # [B, ...]
    observation: PyTree  # [B, ...]  what the network reads next
    first: Array  # [B] bool  it starts an episode
    key: Array


class DeviceLoop:
    """Trains on B environments that step together with the learner.

    Attributes:
      steps_per_update: environment steps that one update consumes, `T B`.
      exact: a restored run goes on exactly.
    """

    exact = True

    def __init__(
        self,
        agent: Agent,
        learner: Learner,
        env: AutoResetEnv,
        *,
        streams: int,
        unroll: int,
        updates_per_chunk: int,
    ):
        """Compiles nothing yet.

        Args:
          agent: acts, with the parameters that the learner has.
          learner: with `whole_bank=True`.
          env: unbatched.
          streams: environments side by side, B.
          unroll: steps between two updates, T.
          updates_per_chunk: updates that one call of `run` may make at most.
        """
        self._agent, self._learner, self._env = agent, learner, env
        self._streams, self._unroll, self._updates = streams, unroll, updates_per_chunk
        self.steps_per_update = streams * unroll
        self._init = jax.jit(self._init_traced)
        options = compiler_options()
        self._chunk = jax.jit(self._chunk_traced, donate_argnums=0, compiler_options=options)
        self._run = Stoppable(self._chunk)

    def init(self, key: Array) -> LoopState:
        """Starts parameters, streams and environments; `key` is consumed."""
        return self._init(key)

    def run(
        self, state: LoopState, updates: int, stop: Callable[[], bool] = lambda: False
    ) -> tuple[LoopState, Chunk]:
        """Makes `updates` updates, at most `updates_per_chunk`, or fewer where it is asked to stop.

        `state` is consumed.
        """
        return self._run(state, updates, stop)

    def restore(self, state: LoopState) -> LoopState:
        """Goes on from a state that was saved, exactly."""
        return jax.tree.map(jnp.asarray, state)

    @property
    def knows_success(self) -> bool:
        """Whether the task says which episodes succeed."""
        return self._env.knows_success

    def close(self) -> None:
        """Nothing is open."""

    def _init_traced(self, key: Array) -> LoopState:
        key, env_key, agent_key, state_key = jax.random.split(key, 4)
        variables = self._agent.init(agent_key, self._streams)
        bank = self._agent.initial_state(state_key, self._streams)
        envs, observation = jax.vmap(self._env.init)(jax.random.split(env_key, self._streams))
        first = jnp.ones(self._streams, bool)
        nothing = self._agent.no_action(self._streams), jnp.zeros(self._streams)
        observation = self._agent.observe(observation, *nothing, first)
        return LoopState(self._learner.init(variables, bank), envs, observation, first, key)

    def _chunk_traced(
        self, state: LoopState, updates: Array
    ) -> tuple[LoopState, tuple[dict, dict]]:
        return make_updates(self._update, state, updates, self._updates)

    def _update(self, state: LoopState) -> tuple[LoopState, tuple[dict, dict]]:
        """Acts for T steps and learns from them."""
        key, act_key, env_key = jax.random.split(state.key, 3)
        act_keys = jax.random.split(act_key, self._unroll)
        env_keys = jax.random.split(env_key, (self._unroll, self._streams))
        variables, hidden = state.learner.variables, state.learner.bank.hidden
        start = (state.envs, hidden, state.observation, state.first)

        def step(carry: tuple, keys: tuple[Array, Array]) -> tuple[tuple, tuple]:
            envs, hidden, observation, first = carry
            act_key, env_key = keys
            hidden, act = self._agent.act(variables, hidden, observation, first, act_key)
            envs, out = jax.vmap(self._env.step)(envs, self._agent.to_env(act.action), env_key)
            following = self._agent.observe(out.observation, act.action, out.reward, out.first)
            return (envs, hidden, following, out.first), (observation, first, act, out)

        end, (observation, first, act, out) = jax.lax.scan(step, start, (act_keys, env_keys))
        envs, _, last_observation, last_first = end

        def with_last(xs: Array, last: Array) -> Array:
            return jnp.concatenate([xs, last[None]])

        segment = Segment(
            observation=jax.tree.map(with_last, observation, last_observation),
            first=with_last(first, last_first),
            action=act.action,
            reward=self._agent.reward(out.reward),
            discount=1.0 - out.terminated,
            mask=out.mask,
            behaviour_log_prob=act.log_prob,
            hidden=hidden,
            stream=jnp.arange(self._streams, dtype=jnp.int32),
            number=state.learner.number,
        )
        learner, metrics = self._learner.update(state.learner, segment)
        ended = out.ended.astype(jnp.float32)
        episodes = {
            "episodes": ended.sum(),
            "episode_return": (ended * out.episode_return).sum(),
            "episode_length": (ended * out.episode_length).sum(),
            "success": (ended * out.success).sum(),
        }
        return LoopState(learner, envs, last_observation, last_first, key), (metrics, episodes)
