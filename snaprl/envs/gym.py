"""Any pure environment as a gymnasium environment."""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import jax
import numpy as np
from jax import Array

from snaprl.envs import host
from snaprl.envs.types import PureEnv, PyTree, Step

RENDER_FPS = 8

Renderers = Mapping[str, Callable[[PyTree], Any]]  # render mode -> frame of a state in numpy arrays


class EnvSnapshot(NamedTuple):
    """All that a `PureGymEnv` remembers, as numpy arrays."""

    env: PyTree  # the pure environment's state
    key: np.ndarray  # [2] uint32
    ended: np.ndarray  # [] bool  a reset is due


class PureGymEnv(gymnasium.Env[Any, Any]):
    """A pure environment under gymnasium's API.

    `reset(seed=...)` starts a chain of keys that goes on over steps and resets, so that a seed and
    the actions settle everything that follows.  Environments with the same pure functions share
    what jax compiles.  `info["success"]` (bool) comes with an episode's last step, where the task
    knows it.
    """

    def __init__(
        self,
        env: PureEnv,
        *,
        render_mode: str | None = None,
        renderers: Renderers | None = None,
    ) -> None:
        """Wraps `env`.

        Args:
          env: pure functions; a step is one call of the host into compiled code.
          render_mode: a key of `renderers`, or None.
          renderers: for each render mode, what draws a state.

        Raises:
          ValueError: there is no renderer for `render_mode`.
        """
        self._renderers = dict(renderers or {})
        self.metadata = {"render_modes": list(self._renderers), "render_fps": RENDER_FPS}
        self.render_mode = checked_render_mode(render_mode, self._renderers)
        # Spaces carry the random generator of `sample()`: every environment needs its own.
        self.observation_space = copy.deepcopy(env.observation_space)
        self.action_space = copy.deepcopy(env.action_space)
        self._knows_success = env.knows_success
        self._start, self._advance = _compiled(env.reset, env.step)
        self._key: Array | None = None
        self._state: PyTree = None
        self._ended = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode: from `seed`, or without one from where the keys have got to."""
        super().reset(seed=seed)
        del options
        if seed is not None or self._key is None:
            self._key = host.to_device(host.draw_key(self.np_random))
        self._key, self._state, observation = self._start(self._key)
        self._ended = False
        return host.to_host(observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Takes `action`.

        Raises:
          gymnasium.error.ResetNeeded: no episode is under way.
          ValueError: the action is not in the action space.
        """
        if self._ended:
            raise gymnasium.error.ResetNeeded(
                "No episode is under way: call reset() before step()."
            )
        action = host.as_action(action)
        if not self.action_space.contains(action):
            raise ValueError(f"The action {action} is not in {self.action_space}.")
        self._key, self._state, out = self._advance(self._key, self._state, action)
        terminated, truncated = bool(out.terminated), bool(out.truncated)
        self._ended = terminated or truncated
        info = {"success": bool(out.success)} if self._ended and self._knows_success else {}
        return host.to_host(out.observation), float(out.reward), terminated, truncated, info

    def render(self) -> Any:
        """Returns a frame of the present state, or None without a render mode.

        Raises:
          gymnasium.error.ResetNeeded: there is no state yet.
        """
        if self.render_mode is None:
            return None
        if self._state is None:
            raise gymnasium.error.ResetNeeded("Nothing to draw yet: call reset() before render().")
        return self._renderers[self.render_mode](host.to_host(self._state))

    def get_state(self) -> EnvSnapshot:
        """Returns what `set_state` needs to go on exactly from here, in this process or another.

        The generator of `action_space.sample()` is not part of it.

        Raises:
          gymnasium.error.ResetNeeded: there is no state yet.
        """
        if self._state is None:
            raise gymnasium.error.ResetNeeded("No state yet: call reset() before get_state().")
        state, key = host.to_host((self._state, self._key))
        return EnvSnapshot(state, key, np.array(self._ended))

    def set_state(self, snapshot: EnvSnapshot) -> None:
        """Goes back to a state from `get_state()`.

        `gymnasium.make` puts wrappers around an environment that want one `reset()` first.

        Raises:
          ValueError: the snapshot does not fit this environment.
        """
        key, state, _ = jax.eval_shape(self._start, jax.ShapeDtypeStruct((2,), np.uint32))
        wanted = EnvSnapshot(state, key, np.array(False))
        host.require_same_form(snapshot, wanted)
        self._state, self._key = host.to_device((snapshot.env, snapshot.key))
        self._ended = bool(snapshot.ended)


def checked_render_mode(render_mode: str | None, renderers: Renderers) -> str | None:
    """Returns `render_mode`, or raises ValueError where nothing draws it."""
    if render_mode is not None and render_mode not in renderers:
        known = ", ".join(repr(mode) for mode in renderers) or "none"
        raise ValueError(f"There is no render mode {render_mode!r} here; there are: {known}.")
    return render_mode


@functools.cache
def _compiled(
    reset: Callable[[Array], tuple[PyTree, PyTree]],
    step: Callable[[PyTree, Array, Array], tuple[PyTree, Step]],
) -> tuple[Callable[..., tuple[Any, ...]], Callable[..., tuple[Any, ...]]]:
    """Returns both functions with their key chain, compiled once for all who share them."""

    @jax.jit
    def start(raw_key: Array) -> tuple[Array, PyTree, PyTree]:
        raw_key, key = host.split_key(raw_key)
        return raw_key, *reset(key)

    @jax.jit
    def advance(raw_key: Array, state: PyTree, action: PyTree) -> tuple[Array, PyTree, Step]:
        raw_key, key = host.split_key(raw_key)
        return raw_key, *step(state, action, key)

    return start, advance
