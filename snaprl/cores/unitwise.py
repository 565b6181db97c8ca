"""Unit-wise cells: two linear maps, then a function of one unit at a time, (6) and (7).

    a_t = A x_t + b,   s_t = W read(h_tm1) + c                                  (6)
    h_t[i] = phi(a_t[:, i], s_t[:, i], h_tm1[i], w[:, i])                       (7)

w are parameters that a unit keeps for itself, such as the decay of a diagonal recurrence. A cell
without W is one whose recurrence is diagonal: its units know of each other through the inputs only.

Gates and state variables are Python tuples, not axes: `sigma[u][g]` is an array `[..., N]`, or
None where the derivative is zero by structure. XLA then sees plain elementwise arithmetic, and
never a matrix product over an axis of length one or two.
"""

from collections.abc import Callable, Iterable
from functools import reduce
from operator import add
from typing import NamedTuple, overload

import jax.numpy as jnp
from flax.typing import Dtype

from snaprl.cores.types import Array, Params

Vector = tuple[Array, ...]  # one per state variable (or gate): [..., N] each
Entry = Array | None  # None is zero by structure
Entries = tuple[Entry, ...]  # a vector with structural zeros
Block = tuple[Entries, ...]  # U x U (or U x G) of them


class Derivatives(NamedTuple):
    """Elementwise derivatives of phi at one or many steps, `[..., N]` each."""

    alpha: Block  # U x G  dphi/da
    sigma: Block  # U x G  dphi/ds
    delta: Block  # U x U  dphi/dh
    local: Block = ()  # U x Q  dphi/dw


class UnitwiseCell(NamedTuple):
    """A flax cell as (6) and (7).

    `phi(a, s, h, w) -> (h_t, saved)` takes tuples over gates, state variables and local parameters;
    `saved` is what `derivatives(saved, h, w)` needs, so that no transcendental function is computed
    twice. Gates of `s` are as many as `recurrent` layers.
    """

    features: int  # N
    inputs: tuple[str, ...]  # for each gate, the dense layer that reads x
    recurrent: tuple[str, ...]  # for each gate, the dense layer that reads the hidden state
    states: int  # U
    dtype: Dtype | None  # of the linear maps; None: what inputs and parameters promote to
    read: int  # which state variable W reads
    phi: Callable[[Vector, Vector, Vector, Vector], tuple[Vector, tuple]]
    derivatives: Callable[[tuple, Vector, Vector], Derivatives]
    outputs: tuple[int, ...] = (0,)  # the state variables that the rest of the network reads
    local: tuple[str, ...] = ()  # Q parameters `[N]`, one entry per unit
    exact: bool = True  # False: `derivatives` leaves something out, by design
    readout: Callable[[Array], Array] | None = (
        None  # of the outputs, elementwise; None: as they are
    )


@overload
def total(terms: tuple[Array, *Entries]) -> Array: ...
@overload
def total(terms: Iterable[Entry]) -> Entry: ...
def total(terms: Iterable[Entry]) -> Entry:
    """Sums entries, leaving structural zeros out: where the first is an array, so is the sum."""
    result = None
    for term in terms:
        if term is not None:
            result = term if result is None else result + term
    return result


def times(left: Entry, right: Entry) -> Entry:
    """Multiplies two entries; a structural zero stays one."""
    return None if left is None or right is None else left * right


def plain_total(terms: Iterable[Array]) -> Array:
    """Sums arrays, of which there is at least one."""
    return reduce(add, terms)


def vector_block(vector: Entries, block: Block) -> Entries:
    """`vector @ block`, that is `block.T @ vector`."""
    columns = range(len(block[0]) if block else 0)
    return tuple(
        total(times(v, row[k]) for v, row in zip(vector, block, strict=True)) for k in columns
    )


def block_block(left: Block, right: Block) -> Block:
    """`left @ right`."""
    return tuple(vector_block(row, right) for row in left)


def dense(entry: Entry, like: Array) -> Array:
    """Writes a structural zero out."""
    return jnp.zeros_like(like) if entry is None else entry


def written_out(entries: Entries, like: Array) -> Vector:
    """Writes every structural zero out."""
    return tuple(dense(entry, like) for entry in entries)


def join(entries: Entries, like: Array) -> Array:
    """Joins gates along the last axis: G x `[..., N]` to `[..., G N]`."""
    return jnp.concatenate(written_out(entries, like), axis=-1)


def split(joined: Array, parts: int) -> Vector:
    """Undoes `join`."""
    return tuple(jnp.split(joined, parts, axis=-1)) if parts > 1 else (joined,)


def over_units(vector: Array, like: Array) -> Array:
    """`[N]` with the leading axes of `like [..., N]`, each of length one."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def joined_layer(params: Params, names: tuple[str, ...]) -> tuple[Array, Array | None]:
    """Returns the kernels `[K, G N]` and the biases `[G N]` of the dense layers `names`, joined.

    The bias is None where no layer has one, and zero for a gate that alone has none.
    """
    kernels = [params[name]["kernel"] for name in names]
    biases = [params[name].get("bias") for name in names]
    bias = None
    if any(b is not None for b in biases):
        bias = join(tuple(biases), jnp.zeros_like(kernels[0][0]))
    return jnp.concatenate(kernels, axis=-1), bias


def _diagonal(kernel: Array) -> Array:
    # a gather: XLA's CPU backend would fuse a slice into every loop over the weights
    units = jnp.arange(kernel.shape[0])
    return kernel[units, units]


def diagonal_block(cell: UnitwiseCell, params: Params, derivatives: Derivatives) -> Block:
    """Returns `d_t[i] = D_t[i, i]`, the U x U block of a unit's own dynamics, of (8)."""
    diagonals = tuple(_diagonal(params[name]["kernel"]) for name in cell.recurrent)
    recurrent = tuple(
        total(
            None if s is None else s * over_units(w, s) for s, w in zip(row, diagonals, strict=True)
        )
        for row in derivatives.sigma
    )
    return tuple(
        tuple(
            total((entry, recurrent[u] if v == cell.read else None)) for v, entry in enumerate(row)
        )
        for u, row in enumerate(derivatives.delta)
    )
