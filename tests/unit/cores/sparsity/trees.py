"""Trees that several tests choose weights from."""

from typing import Any

import jax
import numpy as np

from snaprl.cores.sparsity import Scope

# `encoder` has no mask; `memory/hr` and `memory/hz` are two gates; `bias` is masked too, as it may
SHAPES = {
    "encoder": {"kernel": (5, 4), "bias": (4,)},
    "memory": {
        "hr": {"kernel": (7, 6), "bias": (6,)},
        "hz": {"kernel": (7, 6)},
        "ir": {"kernel": (4, 6)},
    },
}
TIED = (("hr", "hz"), ("ir",))


def is_shape(node):
    return isinstance(node, tuple)


def draw_params(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s).astype("f"), SHAPES, is_leaf=is_shape)


def draw_mask(seed, density, shared=False):
    rng = np.random.default_rng(seed)
    mask = jax.tree.map(lambda s: rng.random(s) < density, SHAPES["memory"], is_leaf=is_shape)
    if shared:
        mask["hz"]["kernel"] = mask["hr"]["kernel"]
    return {"memory": mask}


def kernels(tree):
    """The leaves that a mask names, by name."""
    return {
        f"{layer}/{leaf}": np.asarray(value)
        for layer, leaves in tree["memory"].items()
        for leaf, value in leaves.items()
    }


def groups(tree, scope):
    """The groups of a scope, one flat array each: the obvious twin of the library's columns."""
    leaves = kernels(tree)
    if scope is Scope.GLOBAL:
        return {"all": np.concatenate([leaves[key].ravel() for key in sorted(leaves)])}
    if scope is Scope.LAYER:
        return {key: leaf.ravel() for key, leaf in leaves.items()}
    return {
        f"{key} {unit}": leaf[..., unit].ravel()
        for key, leaf in leaves.items()
        for unit in range(leaf.shape[-1])
    }


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def programs(compiled: Any) -> int:
    """How many programs a jitted function has compiled."""
    return compiled._cache_size()
