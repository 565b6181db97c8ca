"""Any cell of nnx as one of linen, which the general path of `snaprl.cores.general` follows.

All that is not static in it, parameters and constants alike, becomes the linen cell's parameters:
under `nnx.jit` both are traced. nnx asks for the gradients of its own parameters only.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from snaprl.cores import checks
from snaprl.cores.types import Array, PyTree

Path = tuple[Any, ...]  # names, and places in lists


class AnyCell(nn.RNNCellBase):
    """Computes what an nnx cell does, with parameters under that cell's own names.

    Attributes:
      graph: the cell without its numbers.
      leaves: where each array of them lies in it, and its shape and type.
      feature_axes: of one step's inputs.
    """

    graph: Any
    leaves: tuple[tuple[Path, jax.ShapeDtypeStruct], ...]
    feature_axes: int

    @nn.compact
    def __call__(self, carry: PyTree, inputs: Array) -> tuple[PyTree, Array]:
        """One step of the nnx cell."""
        shapes = named(self.leaves)
        params = {
            name: self.param(name, lambda _, tree=tree: _filled(tree, 0))
            for name, tree in shapes.items()
        }
        cell = self._with(params)
        leaves = nnx.to_flat_state(nnx.state(cell))
        before = [_value(leaf) for _, leaf in leaves]
        after = cell(carry, inputs)
        for (path, leaf), value in zip(leaves, before, strict=True):
            if _value(leaf) is not value:
                raise TypeError(
                    f"a step of {type(self).__name__} changes its {'.'.join(map(str, path))}, and "
                    "what a step that is followed online changes is the carry; keep it there"
                )
        return after

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> PyTree:
        """What the nnx cell starts from; `initial_carry` saw to it that no parameter is read."""
        cell = self._with(_filled(named(self.leaves), 0))
        return cell.initialize_carry(tuple(input_shape), nnx.Rngs(rng))

    @nn.nowrap
    def _with(self, params: Mapping[str, Any]) -> Any:
        flat = {}
        for path, _ in self.leaves:
            found: Any = params
            for name in path:
                found = found[str(name)]
            flat[path] = found
        return nnx.merge(self.graph, nnx.from_flat_state(flat))

    @property
    def num_feature_axes(self) -> int:
        """As the nnx cell says."""
        return self.feature_axes


def linen_cell(cell: nnx.RNNCellBase) -> AnyCell:
    """The cell as one of linen, under its own name.

    Raises:
      TypeError: it holds other arrays than floating ones.
    """
    graph, state = nnx.split(cell)
    leaves = tuple((path, _shape(_value(leaf))) for path, leaf in nnx.to_flat_state(state))
    for path, shape in leaves:
        if not jnp.issubdtype(shape.dtype, jnp.inexact):
            raise TypeError(
                f"{'.'.join(map(str, path))} of {type(cell).__name__} is an array of "
                f"{shape.dtype}, and a step that is followed online may read floating ones, the "
                "carry and its input; keep it outside of the cell, or as something static"
            )
    return _kind(type(cell).__name__)(graph, leaves, checks.feature_axes(cell), parent=None)


def parameters(cell: nnx.RNNCellBase, kind: Any = ...) -> dict[str, Any]:
    """The arrays of a cell, or those of a kind, as nested dicts under the cell's own names."""
    return named((path, _value(leaf)) for path, leaf in nnx.to_flat_state(nnx.state(cell, kind)))


def initial_carry(cell: Any, input_shape: tuple[int, ...], rngs: nnx.Rngs) -> PyTree:
    """What the cell's streams start from.

    Raises:
      TypeError: it depends on parameters.
    """
    other = linen_cell(cell)
    with jax.ensure_compile_time_eval():  # NaN goes through whatever is computed of it
        params = _filled(named(other.leaves), jnp.nan)
        start = other._with(params).initialize_carry((1, *input_shape[1:]), nnx.Rngs(0))
        reads = any(bool(jnp.isnan(leaf).any()) for leaf in jax.tree.leaves(start))
    if reads:
        raise TypeError(
            f"initialize_carry of {type(cell).__name__} reads parameters, and what a stream "
            "starts from has no influence; let it return constants, and add what is learned in "
            "the step"
        )
    return cell.initialize_carry(tuple(input_shape), rngs)


def named(leaves: Iterable[tuple[Path, Any]]) -> dict[str, Any]:
    """Nested dicts of strings, which the places in a list become, too."""
    tree: dict[str, Any] = {}
    for (*folders, last), leaf in leaves:
        place = tree
        for folder in folders:
            place = place.setdefault(str(folder), {})
        place[str(last)] = leaf
    return tree


def _value(leaf: Any) -> Any:
    """The array of a variable, or the array that a leaf already is."""
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _shape(value: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(value), jnp.result_type(value))


def _filled(shapes: PyTree, value: float) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, value, leaf.dtype), shapes)


@functools.cache
def _kind(name: str) -> type[AnyCell]:
    """One class per name, so that sentences about a cell name the user's."""
    return type(name, (AnyCell,), {})
