"""PopArt: a value head that learns in units of its own, while it says the same in units of reward.

The head puts out normalised values `n`; the value is `mean + scale * n`. When the statistics of
returns move, the head's weights are rescaled so that no value changes:

    w <- w scale / scale',   b <- (scale b + mean - mean') / scale'                             (1)

Statistics are the collection `popart` of an agent's variables, so they travel with the parameters.
Without that collection the unit is 1 and nothing is rescaled.

Reference: van Hasselt et al., 2016, "Learning values across many orders of magnitude".
"""

import jax.numpy as jnp

from snaprl.agents.types import Array, PyTree

LOWEST_SCALE = 1e-3  # returns that hardly vary are not blown up
HEAD = "value_head"


def init() -> dict[str, Array]:
    """The statistics before any return: mean 0, scale 1."""
    return {"mean": jnp.zeros(()), "second_moment": jnp.ones(()), "updates": jnp.zeros((), int)}


def scale(variables: PyTree) -> Array | float:
    """The unit `[]` in which the value head learns."""
    if "popart" not in variables:
        return 1.0
    held = variables["popart"]
    variance = held["second_moment"] - held["mean"] ** 2
    return jnp.sqrt(jnp.maximum(variance, LOWEST_SCALE**2))


def to_reward_units(variables: PyTree, values: Array) -> Array:
    """Values in units of reward, of what the value head put out."""
    if "popart" not in variables:
        return values
    return variables["popart"]["mean"] + scale(variables) * values


def revise(variables: PyTree, returns: Array, mask: Array, *, step: float) -> PyTree:
    """Moves the statistics towards those of some returns, and no value by (1).

    Args:
      variables: with the collection `popart`.
      returns: `[T, B]`, in units of reward.
      mask: `[T, B]`, 0 where there is none.
      step: how far the statistics move. At first they are a plain average, in which the start
        counts for one update, until an update counts for no more than this.

    Returns:
      Variables with other statistics and another value head.
    """
    held, head = variables["popart"], variables["params"][HEAD]
    weight = mask / jnp.maximum(mask.sum(), 1)
    part = jnp.where(mask.any(), jnp.maximum(step, 1 / (held["updates"] + 2)), 0.0)

    def towards(old: Array, new: Array) -> Array:
        return old + (part * (new - old)).astype(old.dtype)

    moved = {
        "mean": towards(held["mean"], jnp.sum(weight * returns)),
        "second_moment": towards(held["second_moment"], jnp.sum(weight * returns**2)),
        "updates": held["updates"] + 1,
    }
    old, new = scale(variables), scale({"popart": moved})
    bias = (old * head["bias"] + held["mean"] - moved["mean"]) / new
    head = {
        "kernel": (head["kernel"] * (old / new)).astype(head["kernel"].dtype),
        "bias": bias.astype(head["bias"].dtype),
    }
    return {**variables, "params": {**variables["params"], HEAD: head}, "popart": moved}
