"""Many copies of a pure environment as one gymnasium vector environment."""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from jax import Array

from snaprl.envs import host
from snaprl.envs.auto_reset import AutoState, AutoStep, auto_reset
from snaprl.envs.gym import RENDER_FPS, Renderers, checked_render_mode
from snaprl.envs.types import PureEnv, PyTree


class VectorSnapshot(NamedTuple):
    """All that a `PureVectorEnv` remembers, as numpy arrays."""

    env: AutoState  # [B, ...]
    key: np.ndarray  # [B, 2] uint32
    observation: PyTree  # [B, ...]  the last one given out


class PureVectorEnv(gymnasium.vector.VectorEnv[Any, Any, np.ndarray]):
    """B copies of a pure environment in one compiled call per step, in NEXT_STEP autoreset mode.

    Seeds, observations and infos are those of a `gymnasium.vector.SyncVectorEnv` over B
    `PureGymEnv`s, at a fraction of the time.  `infos["success"]` (bool [B]) comes with the steps
    that end an episode, where the task knows it; `infos["_success"]` says for which copies.
    """

    def __init__(
        self,
        env: PureEnv,
        num_envs: int,
        *,
        render_mode: str | None = None,
        renderers: Renderers | None = None,
    ) -> None:
        """Makes `num_envs` copies of `env`; `render_mode` and `renderers` as for `PureGymEnv`.

        Raises:
          ValueError: there is no renderer for `render_mode`, or fewer than one copy is wanted.
        """
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}: give 1 or more.")
        self._renderers = dict(renderers or {})
        self.metadata = {
            "autoreset_mode": AutoresetMode.NEXT_STEP,
            "render_modes": list(self._renderers),
            "render_fps": RENDER_FPS,
        }
        self.render_mode = checked_render_mode(render_mode, self._renderers)
        self.num_envs = num_envs
        self.single_observation_space = copy.deepcopy(env.observation_space)
        self.single_action_space = copy.deepcopy(env.action_space)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._knows_success = env.knows_success
        self._start, self._advance = _compiled(env.reset, env.step)
        self._keys: Array | None = None  # [B, 2]
        self._state: AutoState | None = None  # [B, ...]
        self._observation: PyTree = None  # [B, ...]

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode in every copy, or in those of `options["reset_mask"]` (bool [B]).

        Args:
          seed: of copy 0, copy i taking `seed + i`; or one for each copy; None goes on with the
            keys where they are.
          options: only "reset_mask" is read.

        Raises:
          ValueError: seeds or mask are not B in number, or a first reset leaves copies out.
        """
        super().reset(seed=seed if isinstance(seed, int) else None)
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise ValueError(f"reset_mask must be bool [{self.num_envs}], one for each copy.")
        if self._state is None and not mask.all():
            raise ValueError("The first reset has to reset every copy: leave reset_mask out.")
        keys = host.to_device(self._seeded_keys(seed, mask))
        fresh = self._start(keys)
        if not mask.all():
            fresh = _select(mask, fresh, (keys, self._state, self._observation))
        self._keys, self._state, self._observation = fresh
        return host.to_host(self._observation), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps every copy, or resets those whose episode ended with the step before.

        Raises:
          gymnasium.error.ResetNeeded: `reset()` was never called.
          ValueError: the actions are not in the action space.
        """
        if self._state is None:
            raise gymnasium.error.ResetNeeded(
                "No episode is under way: call reset() before step()."
            )
        actions = host.as_action(actions)
        if not self.action_space.contains(actions):
            raise ValueError(f"The actions {actions} are not in {self.action_space}.")
        self._keys, self._state, out = self._advance(self._keys, self._state, actions)
        self._observation = out.observation
        infos: dict[str, Any] = {}
        ended = np.array(out.ended)
        if self._knows_success and ended.any():
            infos = {"success": np.array(out.success), "_success": ended}
        rewards = np.array(out.reward, np.float64)  # the width gymnasium's own vectors have
        terminated, truncated = np.array(out.terminated), np.array(out.truncated)
        return host.to_host(out.observation), rewards, terminated, truncated, infos

    def render(self) -> tuple[Any, ...] | None:
        """Returns a frame of every copy, or None without a render mode.

        Raises:
          gymnasium.error.ResetNeeded: there is no state yet.
        """
        if self.render_mode is None:
            return None
        if self._state is None:
            raise gymnasium.error.ResetNeeded("Nothing to draw yet: call reset() before render().")
        states = host.to_host(self._state.env)
        draw = self._renderers[self.render_mode]
        return tuple(
            draw(jax.tree.map(lambda leaf: leaf[i], states))  # noqa: B023  used at once
            for i in range(self.num_envs)
        )

    def get_state(self) -> VectorSnapshot:
        """Returns what `set_state` needs to go on exactly from here, in this process or another.

        Raises:
          gymnasium.error.ResetNeeded: there is no state yet.
        """
        if self._state is None:
            raise gymnasium.error.ResetNeeded("No state yet: call reset() before get_state().")
        return VectorSnapshot(*host.to_host((self._state, self._keys, self._observation)))

    def set_state(self, snapshot: VectorSnapshot) -> None:
        """Goes back to a state from `get_state()`.

        Raises:
          ValueError: the snapshot does not fit this environment.
        """
        keys, state, observation = jax.eval_shape(
            self._start, jax.ShapeDtypeStruct((self.num_envs, 2), np.uint32)
        )
        host.require_same_form(snapshot, VectorSnapshot(state, keys, observation))
        self._state, self._keys, self._observation = host.to_device(tuple(snapshot))

    def _seeded_keys(self, seed: int | Sequence[int | None] | None, mask: np.ndarray) -> np.ndarray:
        """Returns raw keys [B, 2]: new ones where there is a seed or was no key, in `mask`."""
        if seed is None or isinstance(seed, int):
            seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"There are {len(seeds)} seeds for {self.num_envs} environments.")
        keys = np.zeros((self.num_envs, 2), np.uint32)
        if self._keys is not None:
            keys[:] = self._keys
        for i in np.flatnonzero(mask):
            if seeds[i] is not None or self._keys is None:
                generator, _ = seeding.np_random(seeds[i])
                keys[i] = host.draw_key(generator)
        return keys


@functools.cache
def _compiled(
    reset: Callable[..., Any], step: Callable[..., Any]
) -> tuple[Callable[..., tuple[Any, ...]], Callable[..., tuple[Any, ...]]]:
    """Returns both functions over [B, ...] with their key chains, compiled once for all users."""
    nowhere = gymnasium.Space()  # auto_reset hands spaces on unread
    env = auto_reset(PureEnv(reset, step, nowhere, nowhere, knows_success=False))

    @jax.jit
    @jax.vmap
    def start(raw_key: Array) -> tuple[Array, AutoState, PyTree]:
        raw_key, key = host.split_key(raw_key)
        return raw_key, *env.init(key)

    @jax.jit
    @jax.vmap
    def advance(
        raw_key: Array, state: AutoState, action: PyTree
    ) -> tuple[Array, AutoState, AutoStep]:
        raw_key, key = host.split_key(raw_key)
        return raw_key, *env.step(state, action, key)

    return start, advance


@jax.jit
@jax.vmap
def _select(mask: Array, chosen: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(mask, a, b), chosen, other)
