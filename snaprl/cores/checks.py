"""What a wrong argument of `OnlineRNN` is told, for linen and nnx: one sentence that names it."""

import numbers
import reprlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from snaprl.cores.types import Array, CoreState, GradientMethod, Params, PyTree

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 2  # the names of layers, and not what is in them


def check_cell(cell: Any, base: type) -> None:
    """Raises where `cell` is no instance of `base`, the `RNNCellBase` of linen or of nnx."""
    if isinstance(cell, base):
        return
    from flax import nnx  # for this sentence only: who uses linen need not load it

    layers = (nn, "snaprl.cores.OnlineRNN"), (nnx, "snaprl.cores.nnx.OnlineRNN")
    for library, layer in layers:
        if isinstance(cell, library.RNNCellBase):
            raise TypeError(f"{type(cell).__name__} is {library.__name__}'s; use {layer}")
    raise TypeError(f"cell is {_described(cell)}; it must be an instance of a recurrent cell")


def check_method(name: str, method: Any) -> None:
    """Raises where `method` is no gradient method."""
    if isinstance(method, type) or not isinstance(method, GradientMethod):
        raise TypeError(
            f"{name} is {_described(method)}; it must be an instance of a gradient method, such as "
            "SnAp(order=1)"
        )


def check_whole(method: Any, name: str, least: int) -> None:
    """Raises where the attribute `name` is no whole number of at least `least`; makes it an int.

    numpy's integers are what a loop over an array of them gives.
    """
    value = getattr(method, name)
    if not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(
            f"{type(method).__name__}({name}={value!r}): {name} is {least}, {least + 1}, ..."
        )
    object.__setattr__(method, name, int(value))  # frozen, and this is its __post_init__


def feature_axes(cell: Any) -> int:
    """Axes of one step's inputs beside that of the streams: 1 where the cell does not say."""
    try:
        return cell.num_feature_axes
    except NotImplementedError:
        return 1


def check_input_shape(shape: Any, feature_axes: int, order: str) -> None:
    """Raises where `shape` is not `(B, M)`; `order` is that of `initialize_carry`'s arguments."""
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"input_shape is {_described(shape)}; initialize_carry takes {order}")
    whole = all(isinstance(size, numbers.Integral) and int(size) > 0 for size in shape)
    if len(shape) != 1 + feature_axes or not whole:
        axes = ", ".join(["streams", *["inputs"] * feature_axes])
        raise ValueError(f"input_shape is {tuple(shape)}; it must be ({axes}), each 1, 2, ...")


def check_inputs(what: str, shape: tuple[int, ...], inputs: int) -> None:
    """Raises where the last axis is not what the cell reads."""
    if shape[-1] != inputs:
        raise ValueError(f"{what} {tuple(shape)}; the cell reads {inputs} inputs")


def check_resets(name: str, resets: Array | None, shape: tuple[int, ...]) -> None:
    """Raises where `resets` are given, and are not one bool per step."""
    found, needed = _described(resets), f"bool{list(shape)}"
    if resets is not None and found != needed:
        raise ValueError(f"{name} is {found}; it must be {needed}")


def check_array(name: str, value: Any) -> None:
    """Raises where `value` is no array, such as a list of numbers."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(f"{name} is {_described(value)}; it must be an array")


def check_layers(cell: Any, params: Params, names: set[str]) -> None:
    """Raises where the parameters are not those of the cell, whose layers have these `names`."""
    if not names <= params.keys():
        raise ValueError(
            f"the parameters are {', '.join(sorted(params))}, and a {type(cell).__name__} has "
            f"{', '.join(sorted(names))}; apply the module to variables of its own cell"
        )


def check_carry(carry: Any) -> None:
    """Raises where `carry` is no `CoreState`, whatever is in it."""
    if not isinstance(carry, CoreState):
        raise TypeError(
            f"carry is {_described(carry)}; it must be the CoreState that initialize_carry makes, "
            "and it comes before the inputs"
        )


def check_tree(name: str, tree: PyTree, expected: PyTree, input_shape: tuple[int, ...]) -> None:
    """Raises where a part of the carry has other leaves or shapes than `expected`.

    Nor may what is not floating stand where floats are needed, or the other way round.
    """
    found, needed = (jax.tree.map(jnp.shape, t) for t in (tree, expected))
    if found == needed:
        leaves = zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(expected), strict=True)
        for (path, leaf), other in leaves:
            if _is_floating(leaf) != _is_floating(other):
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)} is {_described(leaf)} where "
                    f"{other.dtype}{list(other.shape)} is needed"
                )
        return
    if jax.tree.structure(tree) == jax.tree.structure(expected):
        leaves = zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(expected), strict=True)
        path, found, needed = next(
            (path, jnp.shape(leaf), other.shape)
            for (path, leaf), other in leaves
            if jnp.shape(leaf) != other.shape
        )
        name += jax.tree_util.keystr(path)
    raise ValueError(
        f"{name} is {_BRIEF.repr(found)} where {_BRIEF.repr(needed)} is needed; "
        f"initialize_carry with input_shape {tuple(input_shape)} makes the carry that fits"
    )


def check_pattern(pattern: PyTree, expected: PyTree, method: GradientMethod) -> None:
    """Raises where the `pattern` among the variables is none, or one of another kind of method."""
    if pattern == ():
        raise ValueError(
            f"the variables have a mask, sparsity/cell, and no sparsity/pattern, which {method!r} "
            "reads off it; rewire(rnn, variables, mask, input_shape) gives variables that have both"
        )
    if type(pattern) is not type(expected):
        refuse_pattern(method)


def refuse_pattern(method: GradientMethod) -> None:
    """Raises: the pattern among the variables is another method's, or a mask's of other shapes."""
    raise ValueError(
        f"sparsity/pattern does not have the shapes that {method!r} gives it for the module's "
        "mask; apply the variables with the method and the mask that they were made with, or leave "
        "it out and let rewire(rnn, variables, mask, input_shape) make it"
    )


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.floating)


def _described(value: Any) -> str:
    """The type and shape of an array, `float32[4, 16]`; of anything else, what it is."""
    if isinstance(value, (jax.Array, np.ndarray)):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"of type {type(value).__name__}"
