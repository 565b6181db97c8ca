"""What the gymnasium forms of a pure environment share: keys, devices, arrays in and out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from snaprl.envs.types import PyTree

_KEY_IMPL = "threefry2x32"  # named, so that a seed means the same under any setting of jax


def draw_key(generator: np.random.Generator) -> np.ndarray:
    """Returns the raw key, uint32 [2], with which a gymnasium seed starts an environment."""
    return generator.integers(2**32, size=2, dtype=np.uint32)


def split_key(raw: Array) -> tuple[Array, Array]:
    """Returns the raw key to keep, uint32 [2], and a typed key to use.  `raw` is consumed."""
    kept, used = jax.random.split(jax.random.wrap_key_data(raw, impl=_KEY_IMPL))
    return jax.random.key_data(kept), used


def to_device(tree: PyTree) -> PyTree:
    """Puts arrays where host environments run: on the CPU, even where there is an accelerator.

    What is computed from them follows.  A step is a few dozen numbers, less than a transfer costs.
    """
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # a jax that was told to see no CPU
        device = jax.local_devices()[0]
    return jax.device_put(tree, device)


def to_host(tree: PyTree) -> PyTree:
    """Copies arrays into numpy ones that the caller may write to."""
    return jax.tree.map(np.array, tree)


def as_action(action: Any) -> PyTree:
    """Returns an action as numpy arrays of jax's widths: one compiled step serves int and int64."""

    def convert(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        return array.astype(jnp.int32 if array.dtype.kind in "iub" else jnp.float32)

    # A list is an array written out; tuples and dicts are what those spaces hold.
    return jax.tree.map(convert, action, is_leaf=lambda node: isinstance(node, list))


def require_same_form(given: PyTree, wanted: PyTree) -> None:
    """Raises ValueError unless `given` has the structure, shapes and dtypes of `wanted`."""

    def form(tree: PyTree) -> Any:
        return jax.tree.map(lambda leaf: (np.shape(leaf), np.dtype(leaf.dtype)), tree)

    if form(given) != form(wanted):
        raise ValueError(
            f"This state is of another environment or number of environments: it holds "
            f"{form(given)}, and {form(wanted)} is needed."
        )
