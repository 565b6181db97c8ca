"""What a wrong argument of `OnlineRNN` is told, for linen and nnx: one sentence that names it."""

import numbers
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from snaprl.cores.cells import is_unitwise
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
    if not _is_whole(value, least):
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


def check_input_shape(shape: Any, cell: Any, taken: str) -> None:
    """Raises where `shape` is not `(B, M)`; `taken` tells which arguments are expected."""
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"input_shape is {_described(shape)}; {taken}")
    axes = 1 + feature_axes(cell)
    # a cell of a user's own may read nothing
    least = [1] + [int(is_unitwise(cell))] * (axes - 1)
    if len(shape) != axes or not all(map(_is_whole, shape, least)):
        names = ", ".join(["streams", *["inputs"] * (axes - 1)])
        raise ValueError(f"input_shape is {tuple(shape)}; it must be ({names}), each 1, 2, ...")


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
    """Raises where `value` is no array of real numbers, such as a list of them."""
    found = _described(value)
    if not hasattr(value, "__array__") or not hasattr(value, "dtype"):
        raise TypeError(f"{name} is {found}; it must be an array")
    real = (jnp.bool_, jnp.integer, jnp.floating)
    if not any(jnp.issubdtype(value.dtype, kind) for kind in real):
        raise TypeError(f"{name} is {found}; it must be an array of real numbers")


def check_variables(variables: Any, params: Any, name: str) -> None:
    """Raises where the cell, a submodule of this `name`, has no parameters; `params` are all."""
    if not variables.get("params"):
        place = f"params/{name}"
        raise ValueError(
            f"the variables hold {', '.join(f'params/{k}' for k in sorted(params)) or 'nothing'}, "
            f'and no {place}, where the parameters of the cell are: {{"params": {{"{name}": ...}}}}'
        )


def check_params(cell: Any, params: Params, expected: Params, inputs: Collection[str]) -> None:
    """Raises where the parameters are not those of the cell, whose shapes are `expected`.

    A bias may be left out, or be there beside a kernel; how many rows the layers `inputs` have is
    compared with the inputs themselves.
    """
    kind = type(cell).__name__
    if not expected.keys() <= params.keys():
        raise ValueError(
            f"the parameters are {', '.join(sorted(params)) or 'none'}, and a {kind} has "
            f"{', '.join(sorted(expected))}; apply the module to variables of its own cell"
        )
    for path, leaf in jax.tree.leaves_with_path(expected):
        layer, *last = (part.key for part in path)
        found: Any = params[layer]
        for key in last:
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is None and last == ["bias"]:
            continue
        rows = int(layer in inputs)
        shape = None if found is None else jnp.shape(found)
        what = "missing" if found is None else _described(found)
        if shape is None or len(shape) != leaf.ndim or shape[rows:] != leaf.shape[rows:]:
            raise ValueError(
                f"the parameter {'/'.join([layer, *last])} is {what}, and that of a "
                f"{kind} of {cell.features} units is {_described(leaf)}; apply the module to "
                "variables of its own cell"
            )


def check_carry(carry: Any) -> None:
    """Raises where `carry` is no `CoreState`, whatever is in it."""
    if not isinstance(carry, CoreState):
        raise TypeError(
            f"carry is {_described(carry)}; it must be the CoreState that initialize_carry makes, "
            "and it comes before the inputs"
        )


def check_tree(
    name: str,
    tree: PyTree,
    expected: PyTree,
    input_shape: tuple[int, ...],
    *,
    widen: bool = False,
) -> PyTree:
    """Returns a part of the carry; raises where it has other leaves or shapes than `expected`.

    Nor may what is not floating stand where floats are needed, or the other way round. With
    `widen` shorter floats are made as long as the expected ones, and longer ones are refused.
    """
    structure = jax.tree.structure(expected)
    if jax.tree.structure(tree) != structure:
        found, needed = (_BRIEF.repr(jax.tree.map(jnp.shape, t)) for t in (tree, expected))
        if found == needed:  # what tells them apart lies deeper
            name, found, needed = f"a leaf of {name}", *_apart(tree, expected)
        _refuse(name, found, needed, input_shape)

    def leaf(path: tuple, value: Any, other: Any) -> Any:
        place = name + jax.tree_util.keystr(path)
        if jnp.shape(value) != other.shape:
            _refuse(place, jnp.shape(value), other.shape, input_shape)
        long = widen and jnp.promote_types(_dtype(value), other.dtype) != other.dtype
        if _is_floating(value) != _is_floating(other) or long:
            raise ValueError(f"{place} is {_described(value)} where {_described(other)} is needed")
        return jnp.asarray(value, other.dtype) if widen else value

    return jax.tree.map_with_path(leaf, tree, expected)


def _refuse(name: str, found: Any, needed: Any, input_shape: tuple[int, ...]) -> None:
    raise ValueError(
        f"{name} is {found} where {needed} is needed; "
        f"initialize_carry with input_shape {tuple(input_shape)} makes the carry that fits"
    )


def _apart(tree: PyTree, expected: PyTree) -> tuple[str, str]:
    """The first paths, one of each tree, that the other has not."""
    found, needed = (
        [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(t)]
        for t in (tree, expected)
    )

    def first(paths: list[str], others: list[str]) -> str:
        return next((path for path in paths if path not in others), "none")

    return first(found, needed), first(needed, found)


def check_pattern(pattern: PyTree, expected: PyTree, method: GradientMethod) -> None:
    """Raises where the `pattern` among the variables is none, or one of another kind of method."""
    if pattern == ():
        raise ValueError(
            f"the variables have a mask, sparsity/cell, and no sparsity/pattern, which {method!r} "
            "reads off it; rewire(rnn, variables, mask, input_shape) gives variables that have both"
        )
    if isinstance(pattern, Mapping):
        raise ValueError(
            "sparsity/pattern is a dict, as what reads a file gives it that is not told what is in "
            "it; restore it into the variables that init makes, or leave it out and let "
            "rewire(rnn, variables, mask, input_shape) make it"
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


def _is_whole(value: Any, least: int) -> bool:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and int(value) >= least


def _dtype(leaf: Any) -> Any:
    return getattr(leaf, "dtype", type(leaf))


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(_dtype(leaf), jnp.floating)


def _described(value: Any) -> str:
    """The type and shape of an array, `float32[4, 16]`; of anything else, what it is."""
    if isinstance(value, (jax.Array, jax.ShapeDtypeStruct, np.ndarray)):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"of type {type(value).__name__}"
