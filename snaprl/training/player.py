"""A policy that is played: one step after the other, in whatever loop asks for them."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import numpy as np

from snaprl.agents import Agent
from snaprl.training.errors import UserError
from snaprl.training.schema import Config

Array = jax.Array
PyTree = Any


class Memory(NamedTuple):
    """What a policy that plays B streams knows of what went before."""

    hidden: PyTree  # [B, ...]  the network's
    action: Array  # [B, ...]  the last one
    key: Array


def remember_nothing(agent: Agent, key: Array, state_key: Array, streams: int) -> Memory:
    """The memory before the first step; both keys are consumed."""
    hidden = agent.initial_state(state_key, streams).hidden
    return Memory(hidden, agent.no_action(streams), key)


def play_step(
    agent: Agent,
    variables: PyTree,
    memory: Memory,
    observation: PyTree,
    reward: Array,
    first: Array,
    *,
    greedy: bool,
) -> tuple[Memory, Array]:
    """Takes an action in each stream.

    Args:
      agent: the policy.
      variables: what it has learnt.
      memory: of the streams.
      observation: `[B, ...]`, as the environment gives it.
      reward: `[B]`, of the step before.
      first: bool `[B]`, the observation starts an episode.
      greedy: take the likeliest action instead of drawing one.

    Returns:
      The memory, and the actions `[B, ...]` as the environment takes them.
    """
    key, act_key = jax.random.split(memory.key)
    read = agent.observe(observation, memory.action, reward, first)
    hidden, act = agent.act(variables, memory.hidden, read, first, None if greedy else act_key)
    return Memory(hidden, act.action, key), agent.to_env(act.action)


class Player:
    """A policy that does not learn, for a loop of one's own.

    It plays one environment, whose observations have no axis of streams, until `reset` says that
    there are several. Between two calls it remembers the network's state and the last actions, so
    every step of every stream has to pass through `act`, in order.

    Attributes:
      streams: how many environments it plays, B; None for one without an axis of streams.
    """

    def __init__(self, agent: Agent, variables: PyTree, observation_space: gymnasium.Space):
        """Compiles nothing yet.

        Args:
          agent: the policy, of `make_agent`.
          variables: what it has learnt, `LearnerState.variables`.
          observation_space: of one environment.
        """
        self._agent, self._variables = agent, jax.device_put(variables)
        self._wanted = _shapes(observation_space.sample())
        self._step = jax.jit(functools.partial(play_step, agent), static_argnames="greedy")
        self.reset()

    def reset(self, streams: int | None = None, *, seed: int = 0) -> None:
        """Forgets everything.

        Args:
          streams: environments to play side by side, B; None for one without an axis of streams.
          seed: of the actions that are drawn.

        Raises:
          ValueError: there are fewer streams than one.
        """
        if streams is not None and streams < 1:
            raise ValueError(f"streams is {streams}: give 1 or more, or None for one environment")
        key, state_key = jax.random.split(jax.random.key(seed))
        self.streams = streams
        self._memory = remember_nothing(self._agent, key, state_key, streams or 1)

    def act(self, observation: PyTree, reward: Any, first: Any, *, greedy: bool = False) -> Any:
        """Takes a step in each stream.

        Args:
          observation: `[B, ...]`, as the environment gives it.
          reward: `[B]`, that came with the observation; 0 where that starts an episode.
          first: bool `[B]`, the observation starts an episode: what was before is forgotten.
          greedy: take the likeliest action instead of drawing one.

        Returns:
          The actions `[B, ...]` as the environment takes them, of numpy.

        Raises:
          ValueError: something has another shape than the streams need.
        """
        reward, first = np.asarray(reward, np.float32), np.asarray(first, bool)
        self._check("the observation", _shapes(observation), self._wanted)
        self._check("the reward", _shapes(reward), {"": ()})
        self._check("first", _shapes(first), {"": ()})
        if self.streams is None:
            observation, reward, first = jax.tree.map(
                lambda x: np.asarray(x)[None], (observation, reward, first)
            )
        self._memory, action = self._step(
            self._variables, self._memory, observation, reward, first, greedy=greedy
        )
        actions = np.asarray(action)
        return actions[0] if self.streams is None else actions

    def _check(self, name: str, found: dict[str, tuple], of_one: dict[str, tuple]) -> None:
        """Raises ValueError where leaves are not those of one step, with the axis of streams."""
        lead = () if self.streams is None else (self.streams,)
        for path in sorted(found.keys() | of_one.keys()):
            wanted = [*lead, *of_one[path]] if path in of_one else "absent"
            shape = list(found[path]) if path in found else "absent"
            if shape != wanted:
                who = "one environment" if self.streams is None else f"{self.streams} streams"
                raise ValueError(
                    f"{name}{path} is {shape}, but of {who} it is {wanted}: Player.reset(streams) "
                    "says how many there are, reset() that there is one"
                )


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """The shapes of a tree's leaves, by their paths."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}


def load(folder: str | Path, *, best: bool = False) -> Player:
    """Loads the policy of a trained run; the run may be going on.

    It acts as `snaprl evaluate` does. The run's config is in its folder, `config.toml`.

    Args:
      folder: the run's.
      best: take the checkpoint that was best by the evaluations during training, not the last.

    Raises:
      UserError: the folder holds no run, no checkpoint yet or no best one, or a supervised run.
    """
    from snaprl.training.run import read  # needs what trains, which a player alone does not

    saved = read(folder, best=best)
    if not isinstance(saved.config, Config):
        raise UserError(
            f"{folder} holds a supervised run, which has no policy: snaprl.training.run.read gives "
            "the model's parameters"
        )
    learner = saved.state.learner
    return Player(saved.built.agent, learner.variables, saved.built.observation_space)
