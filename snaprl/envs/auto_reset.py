"""Episode after episode in one stream: gymnasium's NEXT_STEP autoreset as a pure function."""

from collections.abc import Callable
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
from jax import Array

from snaprl.envs.types import PureEnv, PyTree


class AutoState(NamedTuple):
    """The state of an environment that resets itself."""

    env: PyTree  # the state of the environment inside
    ended: Array  # [] bool   the last step ended an episode: the next call resets
    episode_return: Array  # [] float32  rewards of the running episode so far
    episode_length: Array  # [] int32    steps of the running episode so far


class AutoStep(NamedTuple):
    """What one call brings: a transition, or, where `first` is true, the reset between episodes."""

    observation: PyTree  # as the observation space says
    reward: Array  # [] float32  0 on a reset
    terminated: Array  # [] bool   false on a reset
    truncated: Array  # [] bool   false on a reset
    success: Array  # [] bool   false on a reset
    first: Array  # [] bool   `observation` starts an episode
    mask: Array  # [] float32  1, or 0 on a reset: the call was no transition
    ended: Array  # [] bool   this step ended an episode
    episode_return: Array  # [] float32  sum of the episode's rewards, this step's included
    episode_length: Array  # [] int32    number of its steps, this one included; 0 on a reset


class AutoResetEnv(NamedTuple):
    """An environment that never stops; see `auto_reset`."""

    init: Callable[[Array], tuple[AutoState, PyTree]]
    step: Callable[[AutoState, Array, Array], tuple[AutoState, AutoStep]]
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    knows_success: bool


def auto_reset(env: PureEnv) -> AutoResetEnv:
    """Lets an environment reset itself in the step after an episode's last.

    So the last observation of an episode is in the stream, and is followed by the first of the next
    one; the action given to that call is ignored, and `mask` says that it was no transition.

    Args:
      env: unbatched pure functions.

    Returns:
      `init(key) -> (AutoState, observation)` starts the first episode, so that its observation is
      a first one, and `step(state, action, key) -> (AutoState, AutoStep)` goes on.  Both are
      unbatched and consume their key.  What an episode came to is read where `AutoStep.ended` is
      true.

    Example:
      env = auto_reset(TMaze(length=10).make())
      states, observations = jax.vmap(env.init)(jax.random.split(key, 32))
      states, steps = jax.vmap(env.step)(states, actions, jax.random.split(step_key, 32))

      In a scan over T steps it is cheaper to split all keys in one call before the scan,
      `jax.random.split(key, (T, B))`, than to split at every step.
    """

    def init(key: Array) -> tuple[AutoState, PyTree]:
        state, observation = env.reset(key)
        return AutoState(state, jnp.bool_(False), jnp.float32(0), jnp.int32(0)), observation

    def step(state: AutoState, action: Array, key: Array) -> tuple[AutoState, AutoStep]:
        first = state.ended
        # One key serves both: only one of the two results is ever looked at.
        env_state, fresh = env.reset(key)
        stepped_state, out = env.step(state.env, action, key)

        def choose(on_reset: Array, on_step: Array) -> Array:
            return jnp.where(first, on_reset, on_step)

        reward = choose(jnp.float32(0), out.reward)
        terminated = out.terminated & ~first
        truncated = out.truncated & ~first
        ended = terminated | truncated
        # After a reset the sums start anew; on a step they take in what the step brought.
        episode_return = choose(jnp.float32(0), state.episode_return + reward)
        episode_length = choose(jnp.int32(0), state.episode_length + 1)
        env_state = jax.tree.map(choose, env_state, stepped_state)
        return AutoState(env_state, ended, episode_return, episode_length), AutoStep(
            observation=jax.tree.map(choose, fresh, out.observation),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            success=out.success & ~first,
            first=first,
            mask=1.0 - first.astype(jnp.float32),
            ended=ended,
            episode_return=episode_return,
            episode_length=episode_length,
        )

    return AutoResetEnv(init, step, env.observation_space, env.action_space, env.knows_success)
