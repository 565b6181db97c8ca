"""From numbers that the network puts out to actions of a space."""

from collections.abc import Callable
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from snaprl.agents.types import Array


class Policy(NamedTuple):
    """A family of distributions over one action space; `logits` are `[..., size]`."""

    size: int  # numbers that the network puts out per step
    sample: Callable[[Array, Array], Array]  # (logits, key) -> action; `key` is consumed
    mode: Callable[[Array], Array]  # logits -> the likeliest action
    log_prob: Callable[[Array, Array], Array]  # (logits, action) -> [...]
    entropy: Callable[[Array], Array]  # logits -> [...]
    to_env: Callable[[Array], Array]  # action -> what the environment is given
    none: Array  # the action that stands for none, before an episode's first step
    observed: gymnasium.Space  # the space in which an encoder reads past actions


def policy_for(space: gymnasium.Space) -> Policy:
    """Returns the policy family for an action space: Discrete, MultiDiscrete or Box.

    A Box gets a diagonal Gaussian in which -1 and 1 stand for the bounds; what falls outside is
    clipped on its way to the environment, not in the gradient.

    Raises:
      ValueError: the space is none of them.
    """
    match space:
        case spaces.Discrete():
            return _discrete(int(space.n), int(space.start))
        case spaces.MultiDiscrete() if space.nvec.ndim == 1:
            return _multi_discrete(space)
        case spaces.Box() if np.issubdtype(space.dtype, np.floating):
            return _gaussian(space)
    shown = " ".join(str(space).split())  # arrays take several lines
    raise ValueError(
        f"the action space {shown} is not supported; Discrete, MultiDiscrete (one axis) and Box of "
        "floats are"
    )


def _sample(logits: Array, key: Array) -> Array:
    return jax.random.categorical(key, jax.nn.log_softmax(logits)).astype(jnp.int32)


def _log_prob(logits: Array, action: Array) -> Array:
    outside = (action < 0) | (action >= logits.shape[-1])  # there is no such action
    taken = jax.nn.one_hot(action, logits.shape[-1], dtype=logits.dtype)
    return jnp.where(outside, -jnp.inf, (jax.nn.log_softmax(logits) * taken).sum(-1))


def _entropy(logits: Array) -> Array:
    # twice: the figures in docs/ were had with this rounding, and a run is as it rounds
    log_p = jax.nn.log_softmax(jax.nn.log_softmax(logits))
    p = jnp.exp(log_p)
    return -(jnp.where(p == 0, 0.0, log_p) * p).sum(-1)


def _likeliest(logits: Array) -> Array:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _discrete(count: int, start: int) -> Policy:
    return Policy(
        size=count,
        sample=_sample,
        mode=_likeliest,
        log_prob=_log_prob,
        entropy=_entropy,
        to_env=lambda action: action + start if start else action,
        none=jnp.int32(-1),
        observed=spaces.Discrete(count),
    )


def _multi_discrete(space: spaces.MultiDiscrete) -> Policy:
    sizes, start = [int(n) for n in space.nvec], np.asarray(space.start)
    edges = np.cumsum(sizes)[:-1].tolist()

    def parts(logits: Array) -> list[Array]:
        return jnp.split(logits, edges, axis=-1)

    def sample(logits: Array, key: Array) -> Array:
        # Gumbel noise over all entries at once: one draw per entry, one key
        return mode(logits + jax.random.gumbel(key, logits.shape, logits.dtype))

    def mode(logits: Array) -> Array:
        return jnp.stack([_likeliest(part) for part in parts(logits)], axis=-1)

    def log_prob(logits: Array, action: Array) -> Array:
        terms = [_log_prob(part, action[..., k]) for k, part in enumerate(parts(logits))]
        return jnp.stack(terms).sum(0)

    return Policy(
        size=sum(sizes),
        sample=sample,
        mode=mode,
        log_prob=log_prob,
        entropy=lambda logits: jnp.stack([_entropy(part) for part in parts(logits)]).sum(0),
        to_env=lambda action: action + jnp.broadcast_to(start, action.shape),
        none=jnp.full(len(sizes), -1, jnp.int32),
        observed=spaces.MultiDiscrete(sizes),
    )


def _gaussian(space: spaces.Box) -> Policy:
    shape, size = space.shape, int(np.prod(space.shape))
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = (np.where(bounded, x, y) for x, y in ((space.low, -1.0), (space.high, 1.0)))
    centre, half = ((high + low) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)

    def mean_and_log_scale(logits: Array) -> tuple[Array, Array]:
        mean, log_scale = jnp.split(logits, 2, axis=-1)
        return mean, jnp.clip(log_scale, -5.0, 2.0)

    def flat(action: Array) -> Array:
        return action.reshape(*action.shape[: action.ndim - len(shape)], size)

    def shaped(flat_action: Array) -> Array:
        return flat_action.reshape(*flat_action.shape[:-1], *shape)

    def sample(logits: Array, key: Array) -> Array:
        mean, log_scale = mean_and_log_scale(logits)
        return shaped(mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape, mean.dtype))

    def log_prob(logits: Array, action: Array) -> Array:
        mean, log_scale = mean_and_log_scale(logits)
        return jax.scipy.stats.norm.logpdf(flat(action), mean, jnp.exp(log_scale)).sum(-1)

    def entropy(logits: Array) -> Array:
        return (mean_and_log_scale(logits)[1] + 0.5 * np.log(2 * np.pi * np.e)).sum(-1)

    def to_env(action: Array) -> Array:
        def of_all(x: np.ndarray) -> Array:
            return jnp.broadcast_to(x, action.shape)

        return (of_all(centre) + of_all(half) * action).clip(of_all(space.low), of_all(space.high))

    return Policy(
        size=2 * size,
        sample=sample,
        mode=lambda logits: shaped(mean_and_log_scale(logits)[0]),
        log_prob=log_prob,
        entropy=entropy,
        to_env=to_env,
        none=jnp.zeros(shape, jnp.float32),
        observed=spaces.Box(-np.inf, np.inf, shape, np.float32),
    )
