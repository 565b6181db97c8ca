"""An actor: a vector environment and the policy that plays it, in segments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from snaprl.agents import Agent, Segment
from snaprl.training.host_envs import EnvironmentFailed, HostEnvs, HostStep

Array = jax.Array
PyTree = Any
EPISODES = ("episodes", "episode_return", "episode_length", "success")


class Played(NamedTuple):
    """A segment, and what was seen on the way."""

    segment: Segment  # of numpy arrays
    episodes: np.ndarray  # [4]  sums over the episodes that ended, in the order of `EPISODES`
    knows_success: np.ndarray  # [] bool  whether the environments say which episodes succeed


class ActorState(NamedTuple):
    """All that decides what an actor does next, but for environments that cannot be saved."""

    envs: PyTree  # `HostEnvs.snapshot()`; () where the environments offer none
    hidden: PyTree  # [B, ...]  the network's
    observation: PyTree  # [B, ...]  as the environments gave it
    action: Array  # [B, ...]  the last one
    reward: np.ndarray  # [B]  the last one
    first: np.ndarray  # [B] bool  `observation` starts an episode
    key: Array
    number: np.ndarray  # [] int32  of the segment that comes next


class Poison(ValueError):
    """An environment gave what no network can read."""


class Actor:
    """Plays B streams, a segment at a time, with whatever parameters it is given.

    It keeps hidden states only: influence belongs to the learner.
    """

    def __init__(
        self,
        agent: Agent,
        envs: HostEnvs,
        *,
        unroll: int,
        discount: float,
        index: int = 0,
        alive: Callable[[], None] = lambda: None,
    ):
        """Compiles nothing yet.

        Args:
          agent: the policy.
          envs: B environments, which this now owns.
          unroll: steps of a segment, T.
          discount: by which a value that ends a truncated episode counts one step earlier, for
            environments that reset in the step that ends an episode.
          index: of this actor: it has the streams from `index * B` on.
          alive: called after every step.
        """
        self._agent, self._envs = agent, envs
        self._unroll, self._discount, self._alive = unroll, discount, alive
        self.stand_in(index)
        self._step = jax.jit(self._step_traced)
        self._observe = jax.jit(agent.observe)
        self._value = jax.jit(self._value_traced)

    def stand_in(self, index: int) -> None:
        """Takes the streams of actor `index`, of actors that have as many streams each."""
        self._streams = index * self._envs.streams + np.arange(self._envs.streams, dtype=np.int32)

    @property
    def exact(self) -> bool:
        """Whether a restored actor goes on exactly; else its episodes start anew."""
        return self._envs.can_snapshot

    def start(self, seed: int) -> ActorState:
        """Starts all episodes."""
        streams = self._envs.streams
        env_seed, key_seed = (int(x) for x in np.random.SeedSequence(seed).generate_state(2))
        key, state_key = jax.random.split(jax.random.key(key_seed))
        observation = self._envs.reset(env_seed >> 1)
        return ActorState(
            envs=self._envs.snapshot(),
            hidden=self._agent.initial_state(state_key, streams).hidden,
            observation=observation,
            action=self._agent.no_action(streams),
            reward=np.zeros(streams, np.float32),
            first=np.ones(streams, bool),
            key=key,
            number=np.zeros((), np.int32),
        )

    def restore(self, state: ActorState) -> ActorState:
        """Puts the environments where `state` left them; where that cannot be, they start anew."""
        if self.exact:
            self._envs.restore(state.envs)
            return state
        fresh = self.start(int(jax.random.bits(state.key)))
        return fresh._replace(number=state.number)

    def play(self, variables: PyTree, state: ActorState) -> tuple[ActorState, Played]:
        """Plays T steps.

        Raises:
          Poison: an observation or reward is not finite.
        """
        hidden, observation, action, reward, first, key = state[1:7]
        start_hidden = jax.tree.map(np.asarray, hidden)
        rows, episodes = [], np.zeros(len(EPISODES))
        for _ in range(self._unroll):
            read, hidden, act, to_env, key = self._step(
                variables, hidden, observation, action, reward, first, key
            )
            try:
                out = self._envs.step(np.asarray(to_env))
            except EnvironmentFailed:  # it may be the action that was drawn for a NaN
                seen = jax.tree.map(lambda x: np.asarray(x)[None], read)
                _check_finite(seen, self._streams, state.number, len(rows))
                raise
            given = np.asarray(self._agent.reward(out.reward), np.float32)
            if out.final_observation is not None:
                given = given + self._beyond(variables, hidden, act.action, out)
            rows.append((read, first, act.action, act.log_prob, given, out.discount, out.mask))
            observation, action, first = out.observation, act.action, out.first
            reward = out.reward.astype(np.float32)
            episodes += _sums(out)
            self._alive()
        read = self._observe(observation, action, reward, first)
        segment = self._segment(rows, read, first, start_hidden, state.number)
        state = ActorState(
            self._envs.snapshot(), hidden, observation, action, reward, first, key, state.number + 1
        )
        return state, Played(segment, episodes, np.asarray(self._envs.knows_success))

    def close(self) -> None:
        """Closes the environments."""
        self._envs.close()

    def _step_traced(self, variables, hidden, observation, action, reward, first, key):
        key, act_key = jax.random.split(key)
        read = self._agent.observe(observation, action, reward, first)
        hidden, act = self._agent.act(variables, hidden, read, first, act_key)
        return read, hidden, act, self._agent.to_env(act.action), key

    def _value_traced(self, variables, hidden, observation, action, reward):
        going_on = jnp.zeros(reward.shape, bool)
        read = self._agent.observe(observation, action, reward, going_on)
        return self._agent.act(variables, hidden, read, going_on, None)[1].value

    def _beyond(
        self, variables: PyTree, hidden: PyTree, action: Array, out: HostStep
    ) -> np.ndarray:
        """The discounted value of the last observation of episodes that were truncated.

        Where an environment resets in the very step that ends an episode, that observation is not
        in the stream; so what it promises is added to the last reward.
        """
        reward = out.reward.astype(np.float32)
        value = self._value(variables, hidden, out.final_observation, action, reward)
        return np.float32(self._discount) * np.asarray(value, np.float32) * out.truncated

    def _segment(
        self, rows: list[tuple], read: PyTree, first: np.ndarray, hidden: PyTree, number: np.ndarray
    ) -> Segment:
        reads, firsts, actions, log_probs, rewards, discounts, masks = zip(*rows, strict=True)
        fields: dict[str, Any] = {  # numpy's arrays, which go where jax's do
            "observation": _stack((*reads, read)),
            "first": np.stack((*firsts, first)),
            "action": _stack(actions),
            "reward": np.stack(rewards).astype(np.float32),
            "discount": np.stack(discounts).astype(np.float32),
            "mask": np.stack(masks).astype(np.float32),
            "behaviour_log_prob": _stack(log_probs),
            "hidden": hidden,
            "stream": self._streams,
            "number": np.full(len(self._streams), number, np.int32),
        }
        segment = Segment(**fields)
        # rewards first: they are read with the observation after them
        _check_finite({"reward": segment.reward}, self._streams, number)
        _check_finite(segment.observation, self._streams, number)
        return segment


def played_like(
    agent: Agent, observation_space: gymnasium.Space, *, streams: int, unroll: int
) -> Played:
    """Shapes and types of what an actor plays.

    Args:
      agent: the policy.
      observation_space: of one environment.
      streams: B.
      unroll: steps of a segment, T.
    """

    def play(key: Array, observation: PyTree, reward: Array, first: Array) -> Segment:
        action = agent.no_action(streams)
        hidden = agent.initial_state(key, streams).hidden
        read = agent.observe(observation, action, reward, first)
        act = agent.act(agent.init(key, streams), hidden, read, first, key)[1]
        step = read, first, act.action, act.log_prob, reward
        reads, firsts, *others = jax.tree.map(lambda x: jnp.stack([x] * unroll), step)
        longer = jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), reads, read)
        actions, log_probs, numbers = others
        stream = jnp.zeros(streams, jnp.int32)
        return Segment(
            observation=longer,
            first=jnp.concatenate([firsts, first[None]]),
            action=actions,
            reward=numbers,
            discount=numbers,
            mask=numbers,
            behaviour_log_prob=log_probs,
            hidden=hidden,
            stream=stream,
            number=stream,
        )

    sample = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (streams, *np.shape(x)), jax.dtypes.canonicalize_dtype(np.asarray(x).dtype)
        ),
        observation_space.sample(),
    )
    reward = jax.ShapeDtypeStruct((streams,), jnp.float32)
    first = jax.ShapeDtypeStruct((streams,), bool)
    segment = jax.eval_shape(play, jax.random.key(0), sample, reward, first)
    return Played(segment, np.zeros(len(EPISODES)), np.zeros((), bool))


def _stack(rows: tuple[PyTree, ...]) -> PyTree:
    return jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *rows)


def _sums(out: HostStep) -> np.ndarray:
    """Sums over the episodes that ended in a step, in the order of `EPISODES`."""
    ended = out.ended
    if not ended.any():
        return np.zeros(len(EPISODES))
    sums = out.episode_return[ended].sum(), out.episode_length[ended].sum(), out.success.sum()
    return np.array([ended.sum(), *sums], float)


def _check_finite(tree: PyTree, streams: np.ndarray, number: Any, begin: int = 0) -> None:
    """Raises Poison where leaves `[T, B, ...]` of a segment's steps from `begin` on are not."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
            at = np.argwhere(~np.isfinite(leaf))[0]
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise Poison(
                f"the environment gave {leaf[tuple(at)]} in {name}, "
                f"stream {streams[at[1]]}, step {begin + at[0]} of segment {number}"
            )
