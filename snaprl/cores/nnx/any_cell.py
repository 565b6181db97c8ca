"""Any cell of nnx as one of linen, which the general path of `snaprl.cores.general` follows."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from snaprl.cores.types import Array, PyTree

Path = tuple[Any, ...]  # names, and places in lists


class AnyCell(nn.RNNCellBase):
    """Computes what an nnx cell does, with parameters under that cell's own names.

    Attributes:
      graph: the cell without the values of its parameters.
      leaves: where each parameter lies in it, and its shape and type.
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
        return self._with(params)(carry, inputs)

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
      TypeError: it holds other variables than parameters.
    """
    graph, params, others = nnx.split(cell, nnx.Param, ...)
    for path, variable in nnx.to_flat_state(others):
        raise TypeError(
            f"{'.'.join(map(str, path))} of {type(cell).__name__} is a {variable.type.__name__}, "
            "and a step that is followed online may read parameters, the carry and its input; "
            "keep it outside of the cell"
        )
    leaves = tuple(
        (path, jax.ShapeDtypeStruct(variable.shape, variable.dtype))
        for path, variable in nnx.to_flat_state(params)
    )
    return _kind(type(cell).__name__)(graph, leaves, feature_axes(cell), parent=None)


def feature_axes(cell: Any) -> int:
    """Axes of one step's inputs beside that of the streams: 1 where the cell does not say."""
    try:
        return cell.num_feature_axes
    except NotImplementedError:
        return 1


def parameters(cell: nnx.RNNCellBase) -> dict[str, Any]:
    """The parameters as nested dicts under the cell's own names."""
    state = nnx.to_flat_state(nnx.state(cell, nnx.Param))
    return named((path, variable.get_value()) for path, variable in state)


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


def _filled(shapes: PyTree, value: float) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, value, leaf.dtype), shapes)


@functools.cache
def _kind(name: str) -> type[AnyCell]:
    """One class per name, so that sentences about a cell name the user's."""
    return type(name, (AnyCell,), {})
