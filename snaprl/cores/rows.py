"""The weights that enter one unit, as a row: what a pair of the influence holds.

A row of L entries holds, layer by layer, the weights from a layer's inputs and its bias; a sparse
layer has as many entries as the longest fan-in among its units, and leaves the rest of them 0.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from snaprl.cores.reach import FanIn, Indices
from snaprl.cores.types import Array, Params, Sparsity
from snaprl.cores.unitwise import Derivatives, Entries, UnitwiseCell


class Part(NamedTuple):
    """One array of the parameters, and where it lies in a row."""

    name: str  # of the layer, or of a local parameter
    leaf: str  # kernel, bias; "" for a local parameter
    entries: Entries  # U of them: the derivative of the unit's state with respect to it, or to a, s
    span: slice


def parts(
    cell: UnitwiseCell, params: Params, sparsity: Sparsity, derivatives: Derivatives | None = None
) -> Iterator[Part]:
    """Goes through a row from left to right; without `derivatives` the entries are ()."""
    alpha, sigma, _, local = derivatives or ((), (), (), ())
    start = 0
    for names, block in ((cell.inputs, alpha), (cell.recurrent, sigma), (cell.local, local)):
        for g, name in enumerate(names):
            entries = tuple(row[g] for row in block)
            for leaf in ("kernel", "bias") if names is not cell.local else ("",):
                if leaf and leaf not in params[name]:
                    continue
                stop = start + (_width(params, sparsity, name) if leaf == "kernel" else 1)
                yield Part(name, leaf, entries, slice(start, stop))
                start = stop


def length(cell: UnitwiseCell, params: Params, sparsity: Sparsity) -> int:
    """L, the number of entries in a row."""
    return max(part.span.stop for part in parts(cell, params, sparsity))


def sources(
    part: Part, cell: UnitwiseCell, sparsity: Sparsity, xs: Array, read: Array
) -> Array | None:
    """What the weights of a part multiply: `[..., K]` or, for a sparse layer, `[..., N, K]`.

    None stands for one. `xs` is `[..., M]`, `read` `[..., N]`.
    """
    if part.leaf != "kernel":
        return None
    source = xs if part.name in cell.inputs else read
    lists = sparsity.pattern.fan_in.get(part.name)
    return source if lists is None else filled(source, lists.inputs.T)


def kept(part: Part, sparsity: Sparsity, values: Array) -> Array:
    """`[N, ...]` for a bias or a local parameter, 0 for units whose own is masked away."""
    mask: Any = sparsity.mask.get(part.name)
    mask = mask.get(part.leaf) if part.leaf and mask is not None else mask
    if mask is None:
        return values
    return jnp.where(mask.reshape(mask.shape + (1,) * (values.ndim - 1)) != 0, values, 0)


def to_tree(cell: UnitwiseCell, params: Params, sparsity: Sparsity, rows: Array) -> dict[str, Any]:
    """Rows `[N, L]`, one per unit, as a tree shaped like the parameters."""
    tree: dict[str, Any] = {}
    for part in parts(cell, params, sparsity):
        values = rows[:, part.span]
        if part.leaf == "":
            tree[part.name] = values[:, 0]
        elif part.leaf == "bias":
            tree[part.name]["bias"] = values[:, 0]
        else:
            tree[part.name] = {"kernel": _spread(values, sparsity.pattern.fan_in.get(part.name))}
    return tree


def moved(cell: UnitwiseCell, params: Params, before: Sparsity, after: Sparsity) -> np.ndarray:
    """Where the entries of a unit's row lay under another pattern: `[N, L]`; L where nowhere."""
    nowhere = length(cell, params, before)
    columns = []
    both = zip(parts(cell, params, before), parts(cell, params, after), strict=True)
    for old, new in both:
        lists = after.pattern.fan_in.get(new.name)
        if new.leaf != "kernel" or lists is None:
            width = new.span.stop - new.span.start
            place = np.broadcast_to(np.arange(width), (cell.features, width)) + old.span.start
            if new.leaf != "kernel":
                there = np.asarray(kept(new, after, jnp.ones(cell.features)))[:, None]
                place = np.where(there, place, nowhere)
        else:
            was = before.pattern.fan_in[new.name]
            slot = np.pad(np.asarray(was.slot), ((0, 1), (0, 0)), constant_values=len(was.inputs))
            place = slot[np.asarray(lists.inputs), np.arange(cell.features)].T  # [N, K]
            place = np.where(place < len(was.inputs), place + old.span.start, nowhere)
        columns.append(place)
    return np.concatenate(columns, -1)


def filled(values: Array, index: Indices) -> Array:
    """`values[..., index]`, 0 where the index is past the end."""
    return values.at[..., index].get(mode="fill", fill_value=0)


def _spread(values: Array, lists: FanIn | None) -> Array:
    """`[N, K]` as a kernel `[inputs, N]`."""
    if lists is None:
        return values.T
    units = np.arange(len(values))[None]
    return values.at[units, lists.slot].get(mode="fill", fill_value=0)


def _width(params: Params, sparsity: Sparsity, name: str) -> int:
    lists = sparsity.pattern.fan_in.get(name)
    return params[name]["kernel"].shape[0] if lists is None else lists.inputs.shape[0]
