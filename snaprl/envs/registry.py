"""Environments by name: ours, and every other that gymnasium knows."""

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode

from snaprl.envs import tmaze_render
from snaprl.envs.gym import PureGymEnv, Renderers
from snaprl.envs.tmaze import TMaze
from snaprl.envs.types import PureEnv
from snaprl.envs.vector import PureVectorEnv


class Task(Protocol):
    """A frozen dataclass of an environment's arguments, all with defaults."""

    def make(self) -> PureEnv:
        """Returns the environment; equal tasks return the same functions."""
        ...


class Entry(NamedTuple):
    """One environment of ours."""

    task: type[Any]  # a Task
    renderers: Callable[[Any], Renderers]
    summary: str
    entry_point: str
    vector_entry_point: str


class Listing(NamedTuple):
    """What a user wants to know of an environment before making it."""

    env_id: str
    summary: str
    arguments: dict[str, Any]  # name -> default


ENVS: dict[str, Entry] = {
    "snaprl/TMaze-v0": Entry(
        task=TMaze,
        renderers=tmaze_render.renderers,
        summary="T-maze: at the end of a corridor, turn to the side that its start showed.",
        entry_point="snaprl.envs.registry:make_tmaze",
        vector_entry_point="snaprl.envs.registry:make_tmaze_vector",
    ),
}


class HostEntry(NamedTuple):
    """An environment that runs on the host alone: another's, with something changed."""

    summary: str
    entry_point: str
    vector_entry_point: str
    max_episode_steps: int


HOST_ENVS: dict[str, HostEntry] = {
    "snaprl/CartPoleMasked-v0": HostEntry(
        summary="CartPole without velocities: gymnasium's own, positions alone are seen.",
        entry_point="snaprl.envs.cartpole:MaskedCartPole",
        vector_entry_point="snaprl.envs.cartpole:MaskedCartPoleVector",
        max_episode_steps=500,
    ),
}


def make_tmaze(*, render_mode: str | None = None, **arguments: Any) -> PureGymEnv:
    """Makes `snaprl/TMaze-v0`, for gymnasium; `arguments` are those of `TMaze`."""
    return _single("snaprl/TMaze-v0", render_mode, arguments)


def make_tmaze_vector(
    *, num_envs: int, render_mode: str | None = None, **arguments: Any
) -> PureVectorEnv:
    """Makes `num_envs` copies of `snaprl/TMaze-v0`, for gymnasium."""
    return _vector("snaprl/TMaze-v0", num_envs, render_mode, arguments)


def register_all() -> None:
    """Registers our environments with gymnasium, once."""
    for env_id, entry in ENVS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id,
                entry_point=entry.entry_point,
                vector_entry_point=entry.vector_entry_point,
            )
    for env_id, entry in HOST_ENVS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id,
                entry_point=entry.entry_point,
                vector_entry_point=entry.vector_entry_point,
                max_episode_steps=entry.max_episode_steps,
            )


def listing() -> tuple[Listing, ...]:
    """Returns our environments, with the defaults of their arguments."""
    pure = [
        Listing(
            env_id,
            entry.summary,
            {field.name: field.default for field in dataclasses.fields(entry.task)},
        )
        for env_id, entry in ENVS.items()
    ]
    return (*pure, *(Listing(env_id, entry.summary, {}) for env_id, entry in HOST_ENVS.items()))


def make_pure(env_id: str, **arguments: Any) -> PureEnv | None:
    """Returns an environment of ours as pure functions, or None where there is no such form.

    Args:
      env_id: as gymnasium has it, "module:" in front allowed.
      **arguments: those of the environment.

    Raises:
      ValueError: an argument is unknown or out of range.
    """
    name = env_id.rpartition(":")[2]
    return _task(name, arguments).make() if name in ENVS else None


def make_vec(
    env_id: str,
    num_envs: int,
    *,
    vectorization_mode: str | None = None,
    **arguments: Any,
) -> gymnasium.vector.VectorEnv:
    """Makes copies of any environment that gymnasium knows, in NEXT_STEP autoreset mode.

    A vector environment of the task's own is preferred, and taken in the mode that it offers:
    `metadata["autoreset_mode"]` says which.

    Args:
      env_id: such as "CartPole-v1"; "module:id" imports the module that registers the id first.
      num_envs: how many copies, 1 or more.
      vectorization_mode: "vector_entry_point", "sync" or "async"; None: the first that there is.
        "async" starts its processes anew and does not fork this one, whose jax has threads: a
        script that asks for it needs the guard `if __name__ == "__main__":`.
      **arguments: those of the environment, and `wrappers` and `vector_kwargs` as gymnasium takes
        them.

    Raises:
      ValueError: the id is unknown, or an argument of an environment of ours is.
      ModuleNotFoundError: the module before the colon is not installed.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}: give 1 or more.")
    spec = _find(env_id)
    if vectorization_mode is None:
        # Wrappers of single environments have no place in a vector environment of the task's own.
        own = spec.vector_entry_point and not arguments.get("wrappers")
        vectorization_mode = "vector_entry_point" if own else "sync"
    if vectorization_mode == "vector_entry_point":
        if _takes_autoreset_mode(spec):
            arguments = {"autoreset_mode": AutoresetMode.NEXT_STEP, **arguments}
    else:
        vector_kwargs: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        if vectorization_mode == "async":
            vector_kwargs["context"] = "spawn"
        arguments["vector_kwargs"] = vector_kwargs | arguments.get("vector_kwargs", {})
    return gymnasium.make_vec(spec.id, num_envs, vectorization_mode, **arguments)


def _find(env_id: str) -> EnvSpec:
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        near = _nearest(name, gymnasium.registry)
        where = f" once {module} is imported" if module else ""
        hint = f"did you mean {near!r}?" if near else "gymnasium.pprint_registry() lists the known."
        if not module:  # it may be registered by what nobody has imported
            hint = f"{hint[:-1]}, or one that a module registers, written 'module:{name}'{hint[-1]}"
        raise ValueError(f"There is no environment {name!r}{where}: {hint}") from error


def _takes_autoreset_mode(spec: EnvSpec) -> bool:
    creator: Any = spec.vector_entry_point
    if isinstance(creator, str):
        creator = load_env_creator(creator)
    return creator is not None and "autoreset_mode" in inspect.signature(creator).parameters


def _nearest(name: str, known: Any) -> str | None:
    by_lower = {key.lower(): key for key in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None


def _task(env_id: str, arguments: dict[str, Any]) -> Task:
    task = ENVS[env_id].task
    known = [field.name for field in dataclasses.fields(task)]
    for name in arguments:
        if name not in known:
            near = _nearest(name, known)
            hint = f"did you mean {near!r}?" if near else f"it takes {', '.join(known)}."
            raise ValueError(f"{env_id} has no argument {name!r}: {hint}")
    return task(**arguments)


def _single(env_id: str, render_mode: str | None, arguments: dict[str, Any]) -> PureGymEnv:
    task = _task(env_id, arguments)
    renderers = ENVS[env_id].renderers(task)
    return PureGymEnv(task.make(), render_mode=render_mode, renderers=renderers)


def _vector(
    env_id: str, num_envs: int, render_mode: str | None, arguments: dict[str, Any]
) -> PureVectorEnv:
    task = _task(env_id, arguments)
    renderers = ENVS[env_id].renderers(task)
    return PureVectorEnv(task.make(), num_envs, render_mode=render_mode, renderers=renderers)
