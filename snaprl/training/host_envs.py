"""Vector environments of gymnasium as one thing, whichever way they reset themselves."""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from snaprl.envs import saving
from snaprl.training.errors import UserError, in_a_line

PyTree = Any


class EnvironmentFailed(UserError):
    """An environment raised; what it raised is the cause, and its line is in the sentence."""


class HostStep(NamedTuple):
    """What one step of B environments brings."""

    observation: PyTree  # [B, ...]
    reward: np.ndarray  # [B]
    discount: np.ndarray  # [B]  0 where the episode terminated, or is cut from what follows
    truncated: np.ndarray  # [B] bool
    first: np.ndarray  # [B] bool  `observation` starts an episode
    mask: np.ndarray  # [B]  0 where the step was a reset
    final_observation: PyTree | None  # [B, ...]  where some ended and were reset in the same step
    ended: np.ndarray  # [B] bool  this step ended an episode
    success: np.ndarray  # [B] bool  and solved the task, as far as the environments say so
    episode_return: np.ndarray  # [B]  of the running episode, this step included
    episode_length: np.ndarray  # [B]


class HostEnvs:
    """B copies of an environment, stepped together.

    The three ways in which gymnasium's vector environments start the next episode are told apart by
    `metadata["autoreset_mode"]`, never assumed. In NEXT_STEP mode the last observation of an
    episode is in the stream. In SAME_STEP mode it is in the infos, and in DISABLED mode we reset
    ourselves, which comes to the same.

    Attributes:
      streams: B.
      mode: how the environments reset.
      can_snapshot: whether their state can be saved and restored.
      knows_success: whether they have told of an episode whether it succeeded.
    """

    def __init__(self, envs: gymnasium.vector.VectorEnv):
        """Wraps `envs`, which this now owns."""
        self._envs = envs
        self.streams = envs.num_envs
        self.mode = AutoresetMode(envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self.knows_success = False
        self.can_snapshot = saving.can_save(envs)
        self._saved: PyTree = None  # the last snapshot of `envs`
        self._ended, self._return, self._length = (
            np.zeros(self.streams, t) for t in (bool, float, float)
        )

    def reset(self, seed: int) -> PyTree:
        """Starts all episodes anew."""
        # new arrays, never written in place: jax may read the old ones without a copy
        self._ended = np.zeros(self.streams, bool)
        self._return = np.zeros(self.streams)
        self._length = np.zeros(self.streams)
        try:
            return self._envs.reset(seed=seed)[0]
        except Exception as error:
            raise self._failed(error) from error

    def step(self, action: np.ndarray) -> HostStep:
        """Steps all; in NEXT_STEP mode, those whose episode ended before are reset instead."""
        try:
            observation, reward, terminated, truncated, infos = self._envs.step(action)
        except Exception as error:
            raise self._failed(error) from error
        reset = self._ended if self.mode == AutoresetMode.NEXT_STEP else np.zeros_like(self._ended)
        # an environment may both end and be cut short in one step: it has ended
        terminated, truncated = terminated & ~reset, truncated & ~terminated & ~reset
        ended = terminated | truncated
        self._return = np.where(reset, 0.0, self._return + reward)
        self._length = np.where(reset, 0.0, self._length + 1)
        success = self._successes(infos, ended)
        episode_return, episode_length = self._return, self._length
        final, first, stops = None, reset, terminated
        if self.mode != AutoresetMode.NEXT_STEP and ended.any():
            final, observation = self._same_step(observation, infos, ended)
            first, stops = ended, ended
            self._return = np.where(ended, 0.0, self._return)
            self._length = np.where(ended, 0.0, self._length)
        self._ended = ended
        return HostStep(
            observation=observation,
            reward=np.where(reset, 0.0, reward),
            discount=1.0 - stops,
            truncated=truncated,
            first=first,
            mask=1.0 - reset,
            final_observation=final,
            ended=ended,
            success=success,
            episode_return=episode_return,
            episode_length=episode_length,
        )

    def render(self) -> np.ndarray:
        """Pictures uint8 `[B, height, width, 3]`, of environments made in the mode `rgb_array`."""
        return np.asarray(self._envs.render(), np.uint8)

    def snapshot(self) -> PyTree:
        """The environments' state as arrays; () where they offer none.

        Raises:
          EnvironmentFailed: what they offer is none, or changes its form.
        """
        if not self.can_snapshot:
            return ()
        try:
            inside = self._saved = saving.get_state(self._envs, self._saved)
        except saving.Unsaved as error:
            raise EnvironmentFailed(str(error)) from error
        except Exception as error:
            raise EnvironmentFailed(f"the environment raised {in_a_line(error)}") from error
        return inside, self._ended.copy(), self._return.copy(), self._length.copy()

    def restore(self, snapshot: PyTree) -> None:
        """Goes back to a snapshot, once there has been a reset."""
        inside, *counters = snapshot
        try:
            saving.set_state(self._envs, inside)
        except Exception as error:
            raise EnvironmentFailed(f"the environment raised {in_a_line(error)}") from error
        self._ended, self._return, self._length = (np.array(c) for c in counters)

    def close(self) -> None:
        """Closes the environments."""
        self._envs.close()

    def _failed(self, error: Exception) -> EnvironmentFailed:
        why = _misshapen(self._envs) or f"the environment raised {in_a_line(error)}"
        return EnvironmentFailed(why)

    def _successes(self, infos: dict[str, Any], ended: np.ndarray) -> np.ndarray:
        """Bool `[B]`: episodes that ended with success."""
        # where the next episode has begun, `infos` is of that one
        for source in (infos.get("final_info", {}), infos):
            for name in ("success", "is_success"):
                if name in source:
                    self.knows_success = True
                    return np.asarray(source[name], bool) & ended
        return np.zeros_like(ended)

    def _same_step(
        self, observation: PyTree, infos: dict[str, Any], ended: np.ndarray
    ) -> tuple[PyTree, PyTree]:
        """The last observations of the episodes that ended, and what the next ones begin with."""
        if self.mode == AutoresetMode.DISABLED:
            fresh, _ = self._envs.reset(options={"reset_mask": ended})
            return observation, fresh
        return _filled(observation, infos["final_obs"], ended), observation


def _filled(like: PyTree, finals: Any, ended: np.ndarray) -> PyTree:
    """`like` with the rows of the episodes that ended taken from `finals`, an array of objects."""
    if isinstance(like, dict):
        return {k: _filled(v, [f and f[k] for f in finals], ended) for k, v in like.items()}
    if isinstance(like, tuple):
        return tuple(_filled(v, [f and f[k] for f in finals], ended) for k, v in enumerate(like))
    filled = np.array(like)
    for i in np.flatnonzero(ended):
        filled[i] = finals[i]
    return filled


def _misshapen(envs: gymnasium.vector.VectorEnv) -> str:
    """What is wrong with an observation that could not be put beside the others; or nothing.

    gymnasium's own vector finds that out when it copies, and names neither stream nor shape.
    """
    inner = envs.unwrapped
    given = getattr(inner, "_env_obs", None)
    if not isinstance(inner, gymnasium.vector.SyncVectorEnv) or given is None:
        return ""
    space = inner.single_observation_space
    for stream, observation in enumerate(given):
        if observation is not None and (why := _misfit(space, observation, "observation")):
            return f"the environment of stream {stream} gave {why}"
    return ""


def _misfit(space: gymnasium.Space, value: PyTree, name: str) -> str:
    """How a value's form differs from its space's; or nothing."""
    if not isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        found, wanted = np.shape(value), space.shape
        if wanted is None or found == wanted:
            return ""
        return f"{name} of shape {found}, where its space says {wanted}"
    held = isinstance(space, gymnasium.spaces.Dict)
    parts = space.spaces.items() if held else enumerate(space.spaces)
    try:
        inner = [(part, value[k], f"{name}/{k}") for k, part in parts]
    except (KeyError, IndexError, TypeError):
        return f"{name} without the parts that its space has"
    return next((why for part in inner if (why := _misfit(*part))), "")
