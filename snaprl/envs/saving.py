"""Saving a vector environment, so that it goes on exactly from there.

Single environments that gymnasium steps one after the other can be saved where each has
`get_state()` and `set_state(state)`. Beside what it remembers, three things decide how it goes on:
its generator `np_random`, what its wrappers remember, and whether its next step is a reset. All of
it becomes arrays whose shapes stay the same, for that is what a checkpoint holds.
"""

from collections.abc import Iterator
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import wrappers
from gymnasium.vector import SyncVectorEnv, VectorEnv

PyTree = Any


class Unsaved(ValueError):
    """What `get_state` of an environment gave cannot be kept; the sentence says why."""


_KEPT = (
    "get_state() must return numbers and arrays, in dicts, tuples or lists, whose types and shapes "
    "stay the same"
)
WORD = 2**32
RESETS = "_autoreset_envs"  # of a SyncVectorEnv: bool [B]  the next step is a reset
STEPS = "_elapsed_steps"  # of a TimeLimit
FORGETFUL = (  # gymnasium's wrappers that remember nothing, once they have been reset
    wrappers.ClipAction,
    wrappers.ClipReward,
    wrappers.DtypeObservation,
    wrappers.FilterObservation,
    wrappers.FlattenObservation,
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.RescaleAction,
    wrappers.RescaleObservation,
    wrappers.ReshapeObservation,
)


def can_save(envs: VectorEnv) -> bool:
    """Whether all that decides how `envs` go on can be had and put back.

    That is so where they have `get_state` and `set_state` themselves, and of a `SyncVectorEnv`
    whose environments have both, and their wrappers, too, but for those of gymnasium's that are
    known here.
    """
    inner: Any = envs.unwrapped
    if hasattr(inner, "get_state"):
        return True
    if type(inner) is not SyncVectorEnv or not hasattr(inner, RESETS):
        return False
    return all(_is_saved(layer) for env in inner.envs for layer in _layers(env))


def get_state(envs: VectorEnv, like: PyTree = None) -> PyTree:
    """What `set_state` needs to go on exactly from here; leaves are `[B, ...]`.

    Args:
      envs: can be saved.
      like: what this gave before, whose form it must have again; None where there is nothing.

    Raises:
      Unsaved: what an environment or a wrapper gave is no tree of numbers and arrays, or its form
        is not that of another copy, or not the one that it was.
    """
    inner: Any = envs.unwrapped
    if hasattr(inner, "get_state"):
        return inner.get_state()
    states = [tuple(map(_state, _layers(env))) for env in inner.envs]
    forms = [_form(state) for state in states]
    wanted = forms[0] if like is None else _form(jax.tree.map(lambda rows: rows[0], like[0]))
    if any(form != wanted for form in forms):
        raise Unsaved(f"{inner.envs[0]}'s state changes its form: {_KEPT}")
    return jax.tree.map(lambda *rows: np.stack(rows), *states), np.array(getattr(inner, RESETS))


def set_state(envs: VectorEnv, state: PyTree) -> None:
    """Goes back to what `get_state` gave; `envs` must have been reset before."""
    inner: Any = envs.unwrapped
    if hasattr(inner, "set_state"):
        inner.set_state(state)
        return
    rows, resets = state
    for b, env in enumerate(inner.envs):
        for layer, row in zip(_layers(env), rows, strict=True):
            _put_back(layer, jax.tree.map(lambda leaf, b=b: leaf[b], row))
    setattr(inner, RESETS, np.array(resets))


def _layers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    """An environment's wrappers, the outermost first, and itself at the end."""
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env
    yield env


def _is_saved(layer: gymnasium.Env) -> bool:
    if type(layer) is wrappers.TimeLimit:
        return hasattr(layer, STEPS)
    return type(layer) in FORGETFUL or _has_both(layer)


def _has_both(layer: gymnasium.Env) -> bool:
    return hasattr(layer, "get_state") and hasattr(layer, "set_state")


def _state(layer: gymnasium.Env) -> PyTree:
    """What one layer remembers, as arrays; of an environment its generator, too."""
    if type(layer) is wrappers.TimeLimit:
        return np.array(getattr(layer, STEPS), np.int64)
    if type(layer) in FORGETFUL:
        return ()
    held: Any = layer
    state = jax.tree.map(lambda leaf: _as_array(leaf, layer), held.get_state())
    if isinstance(layer, gymnasium.Wrapper):
        return state
    return state, _words(layer)


def _put_back(layer: gymnasium.Env, state: PyTree) -> None:
    if type(layer) is wrappers.TimeLimit:
        setattr(layer, STEPS, int(state))
    elif type(layer) not in FORGETFUL:
        held: Any = layer
        if not isinstance(layer, gymnasium.Wrapper):
            state, words = state
            layer.np_random.bit_generator.state = _generator(words)
        # an int stays an int: what is computed with it must come out the same
        held.set_state(jax.tree.map(_as_kind, held.get_state(), state))


def _as_array(leaf: Any, layer: gymnasium.Env) -> np.ndarray:
    array = np.asarray(leaf)
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise Unsaved(f"{type(layer).__name__} holds {leaf!r} in its state: {_KEPT}")
    return array


def _as_kind(like: Any, value: Any) -> Any:
    """`value`, an array or one of its numbers, as what `like` is."""
    if isinstance(like, jax.Array):
        return jax.numpy.asarray(value)
    if isinstance(like, bool | int | float) and not isinstance(like, np.generic):
        return type(like)(value)
    return value[()] if isinstance(like, np.generic) else np.array(value)


def _form(state: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(state)
    return structure, [(np.shape(leaf), np.asarray(leaf).dtype) for leaf in leaves]


def _words(env: gymnasium.Env) -> np.ndarray:
    """The state of an environment's generator, `[10]` uint32."""
    state = env.np_random.bit_generator.state
    if state["bit_generator"] != "PCG64":
        raise Unsaved(
            f"{type(env).__name__}.np_random is a {state['bit_generator']}: only gymnasium's own "
            "generator is kept, of others get_state() has to tell"
        )
    numbers = state["state"]["state"], state["state"]["inc"]
    words = [number >> 32 * k & WORD - 1 for number in numbers for k in range(4)]
    return np.array([*words, state["has_uint32"], state["uinteger"]], np.uint32)


def _generator(words: np.ndarray) -> dict[str, Any]:
    """What `_words` was made from."""
    *rest, half, held = (int(word) for word in words)
    state, inc = (
        sum(word << 32 * k for k, word in enumerate(part)) for part in (rest[:4], rest[4:])
    )
    numbers = {"state": state, "inc": inc}
    return {"bit_generator": "PCG64", "state": numbers, "has_uint32": half, "uinteger": held}
