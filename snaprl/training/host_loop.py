"""Training on gymnasium environments: they step on the host, the same learner learns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snaprl.agents import Agent, Segment
from snaprl.training.host_envs import HostEnvs, HostStep
from snaprl.training.learner import Learner, LearnerState
from snaprl.training.meters import Chunk

Array = jax.Array
PyTree = Any


class HostState(NamedTuple):
    """All that decides what the loop does next, but for environments that cannot be saved."""

    learner: LearnerState
    envs: PyTree  # `HostEnvs.snapshot()`; () where the environments offer none
    observation: PyTree  # [B, ...]  what the network reads next
    first: Array  # [B] bool  it starts an episode
    key: Array


class HostLoop:
    """Trains on a vector environment of B copies.

    Attributes:
      steps_per_update: environment steps that one update consumes, `T B`.
      exact: whether a restored run goes on exactly; else its episodes start anew.
    """

    def __init__(
        self, agent: Agent, learner: Learner, envs: HostEnvs, *, unroll: int, discount: float
    ):
        """Compiles nothing yet.

        Args:
          agent: acts, with the parameters that the learner has.
          learner: with `whole_bank=True`.
          envs: the environments.
          unroll: steps between two updates, T.
          discount: by which a value that ends a truncated episode counts one step earlier, for
            environments that reset in the step that ends an episode.
        """
        self._agent, self._learner, self._envs = agent, learner, envs
        self._unroll, self._discount = unroll, discount
        self.steps_per_update = envs.streams * unroll
        self.exact = envs.can_snapshot
        self._act = jax.jit(agent.act)
        self._observe = jax.jit(agent.observe)
        self._to_env = jax.jit(agent.to_env)
        self._update = jax.jit(self._update_traced, donate_argnums=0)
        self._stack = jax.jit(lambda rows: jax.tree.map(lambda *xs: jnp.stack(xs), *rows))

    def init(self, key: Array) -> HostState:
        """Starts parameters, streams and environments; `key` is consumed."""
        key, agent_key, state_key, env_key = jax.random.split(key, 4)
        streams = self._envs.streams
        variables = self._agent.init(agent_key, streams)
        learner = self._learner.init(variables, self._agent.initial_state(state_key, streams))
        seed = int(jax.random.randint(env_key, (), 0, 2**31 - 1))
        observation, first = self._start(seed)
        return HostState(learner, self._envs.snapshot(), observation, first, key)

    def restore(self, state: HostState) -> HostState:
        """Puts the environments where `state` left them; where that cannot be, episodes restart."""
        if self.exact:
            self._envs.restore(state.envs)
            return jax.tree.map(jnp.asarray, state)
        observation, first = self._start(int(jax.random.bits(state.key)) >> 1)
        return state._replace(observation=observation, first=first)

    def run(self, state: HostState, updates: int) -> tuple[HostState, Chunk]:
        """Makes `updates` updates; `state` is consumed."""
        history, episodes = [], []
        learner, observation, first, key = state.learner, *state[2:]
        for _ in range(updates):
            hidden = learner.bank.hidden
            rows = []
            for _ in range(self._unroll):
                key, act_key = jax.random.split(key)
                hidden, act = self._act(learner.variables, hidden, observation, first, act_key)
                out = self._envs.step(np.asarray(self._to_env(act.action)))
                reward = self._agent.reward(out.reward)
                if out.final_observation is not None:
                    reward = reward + self._beyond(learner, hidden, act.action, out)
                rows.append((observation, first, act, reward, out.discount, out.mask))
                first = jnp.asarray(out.first)
                observation = self._observe(out.observation, act.action, out.reward, first)
                episodes.append(_episodes(out))
            segment = self._segment(rows, observation, first)
            learner, metrics = self._update(learner, segment)
            history.append(metrics)
        history = jax.device_get(history)
        metrics = {name: np.array([m[name] for m in history]) for name in history[0]}
        totals = {name: sum(e[name] for e in episodes) for name in episodes[0]}
        state = HostState(learner, self._envs.snapshot(), observation, first, key)
        return state, Chunk(updates, metrics, totals)

    @property
    def knows_success(self) -> bool:
        """Whether the environments have told of an episode whether it succeeded."""
        return self._envs.knows_success

    def close(self) -> None:
        """Closes the environments."""
        self._envs.close()

    def _update_traced(self, state: LearnerState, segment: Segment) -> tuple[LearnerState, dict]:
        # filled in here: what is given away twice cannot be overwritten in place
        segment = segment._replace(hidden=state.bank.hidden, number=state.number)
        return self._learner.update(state, segment)

    def _start(self, seed: int) -> tuple[PyTree, Array]:
        streams = self._envs.streams
        first = jnp.ones(streams, bool)
        nothing = self._agent.no_action(streams), jnp.zeros(streams)
        return self._observe(self._envs.reset(seed), *nothing, first), first

    def _beyond(
        self, learner: LearnerState, hidden: PyTree, action: Array, out: HostStep
    ) -> np.ndarray:
        """The discounted value of the last observation of episodes that were truncated.

        Where an environment resets in the very step that ends an episode, that observation is not
        in the stream; so what it promises is added to the last reward.
        """
        going_on = jnp.zeros(self._envs.streams, bool)
        last = self._observe(out.final_observation, action, out.reward, going_on)
        value = self._act(learner.variables, hidden, last, going_on, None)[1].value
        return self._discount * np.asarray(value) * out.truncated

    def _segment(self, rows: list[tuple], observation: PyTree, first: Array) -> Segment:
        observations, firsts, acts, rewards, discounts, masks = zip(*rows, strict=True)
        acts = self._stack(acts)
        return Segment(
            observation=self._stack((*observations, observation)),
            first=self._stack((*firsts, first)),
            action=acts.action,
            reward=jnp.asarray(np.stack(rewards), jnp.float32),
            discount=jnp.asarray(np.stack(discounts), jnp.float32),
            mask=jnp.asarray(np.stack(masks), jnp.float32),
            behaviour_log_prob=acts.log_prob,
            hidden=(),
            stream=jnp.arange(self._envs.streams, dtype=jnp.int32),
            number=jnp.zeros(self._envs.streams, jnp.int32),
        )


def _episodes(out: HostStep) -> dict[str, float]:
    """Sums over the episodes that ended in a step."""
    return {
        "episodes": float(out.ended.sum()),
        "episode_return": float(out.episode_return[out.ended].sum()),
        "episode_length": float(out.episode_length[out.ended].sum()),
        "success": float(out.success.sum()),
    }
