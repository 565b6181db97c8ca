"""Cells that are not unit-wise, a user's own among them: right, and not fast.

The state is one vector of S numbers, the parameters one of P. `structure` finds by the cell's jaxpr
which of the former can depend on which of either; from that follows the pattern of (4), entry by
entry, and the influence is kept as a list of those entries, `[B, entries]`. Jacobians are jax's, of
one step and one stream at a time, and dense while the step lasts.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from snaprl.cores import forecast, structure
from snaprl.cores.readout import readout
from snaprl.cores.resets import where_reset
from snaprl.cores.segment import influence_dtype
from snaprl.cores.types import Array, CoreState, Params, PyTree, Sparsity


class Entries(NamedTuple):
    """The entries of J that are kept (4)."""

    row: Any  # [E] which number of the state
    column: Any  # [E] which number of the parameters


class Flat(NamedTuple):
    """A cell as a function of vectors."""

    step: Callable[[Array, Array, Array], Array]  # (theta [P], h_tm1 [S], x_t) -> h_t [S]
    output: Callable[[Array], Array]  # h_t [B, S] -> y_t [B, ...]
    state: Callable[[PyTree], Array]  # carry [B, ...] -> [B, S]
    carry: Callable[[Array], PyTree]  # undoes `state`, in the carry's own types


def flat(cell: nn.RNNCellBase, params: Params, inputs: Any) -> Flat:
    """Returns the cell as a `Flat`; `inputs` is one step's `[B, ...]`, or its shape and type.

    Raises:
      ValueError: the carry has other numbers than floating ones, or the cell's output is not one
        array, or no function of its new carry.
    """
    one = (1, *inputs.shape[1:])
    carry = jax.eval_shape(lambda: cell.initialize_carry(jax.random.key(0), one))
    leaves, tree = jax.tree.flatten(carry)
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"the carry of {type(cell).__name__} holds an array of {leaf.dtype}, and only a "
                "floating one can have an influence; keep it as floats, or outside of the cell"
            )
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    unravel = ravel_pytree(jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), params))[1]

    def arrays(state: Array, like: list[Any]) -> list[Array]:
        parts = zip(jnp.split(state, ends, axis=-1), like, strict=True)
        return [x.reshape(*x.shape[:-1], *a.shape[1:]).astype(a.dtype) for x, a in parts]

    def to_carry(state: Array) -> PyTree:
        return jax.tree.unflatten(tree, arrays(state, leaves))

    def step(theta: Array, h_tm1: Array, x_t: Array) -> Array:
        carry = to_carry(h_tm1[None])
        return as_state(cell.apply({"params": unravel(theta)}, carry, x_t[None])[0])[0]  # type: ignore

    def call(params: Params, carry: PyTree, x: Array) -> tuple[Any, list[Any]]:
        after, y = cell.apply({"params": params}, carry, x)  # type: ignore
        return y, jax.tree.leaves(after)

    arguments = params, carry, jax.ShapeDtypeStruct(one, inputs.dtype)
    y, after = jax.eval_shape(call, *arguments)
    if not isinstance(y, jax.ShapeDtypeStruct):
        raise ValueError(
            f"{type(cell).__name__} gives out a {type(y).__name__}, and its output must be one "
            "array; let it give out its new state, and take that apart afterwards"
        )
    read = readout(call, *arguments)
    if read is None:
        raise ValueError(
            f"the output of {type(cell).__name__} is not a function of its new carry alone, and "
            "only what is in the carry has an influence; let the cell return its new state, and "
            "read it out afterwards"
        )
    output = jax.vmap(lambda h_t: read(arrays(h_t[None], after))[0])
    return Flat(step, output, as_state, to_carry)


def pattern(
    cell: nn.RNNCellBase,
    params: Params,
    mask: Params,
    inputs: Any,
    order: int | None,
    like: Entries | tuple = (),
) -> Entries:
    """The entries of S_n (4), for n = `order`, or all that are ever reached.

    Raises:
      ValueError: there are more of them than in `like`, whose shapes they are to have; or the cell
        lets streams read each other, or its Jacobians do not fit into memory.
    """
    view = flat(cell, params, inputs)
    theta = np.concatenate([p.ravel() for p in jax.tree.leaves(_filled(params, mask))])
    carry = jax.eval_shape(lambda: cell.initialize_carry(jax.random.key(0), (1, *inputs.shape[1:])))
    size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(carry))
    dtype = jnp.result_type(*jax.tree.leaves(params))
    _check_streams(cell, params, carry, inputs)
    forecast.check_jacobians(cell, size, len(theta), influence_dtype(params))
    arguments = (
        jax.ShapeDtypeStruct((size,), dtype),
        jax.ShapeDtypeStruct(theta.shape, dtype),
        jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype),
    )
    there = [np.ones(size, bool), theta, np.ones(inputs.shape[1:], bool)]
    (found,) = structure.dependencies(lambda h, t, x: view.step(t, h, x), arguments, there)
    D, immediate = found[:, :size], found[:, size : size + len(theta)]
    S, steps = immediate, 1
    while order is None or steps < order:
        further = (immediate + D @ S).astype(bool)
        if further.nnz == S.nnz:
            break
        S, steps = further, steps + 1
    row, column = S.nonzero()
    room = len(like.row) if isinstance(like, Entries) else len(row)
    if len(row) > room:
        raise ValueError(
            f"the new pattern does not fit where the old one was ({len(row)} entries where there "
            f"is room for {room}); give the core's first mask room, by Mask(mask, room=...), or "
            "make the core anew"
        )
    # past the last column is no parameter: nothing is read or written there
    spare = (0, room - len(row))
    row, column = np.pad(row, spare), np.pad(column, spare, constant_values=len(theta))
    return Entries(row.astype(np.int32), column.astype(np.int32))


def _check_streams(cell: nn.RNNCellBase, params: Params, carry: PyTree, inputs: Any) -> None:
    """Raises where a stream's new carry depends on another stream."""
    rng = np.random.default_rng(0)

    def drawn(like: Any) -> Array:
        if jnp.issubdtype(like.dtype, jnp.inexact):
            return jnp.asarray(rng.normal(size=like.shape), like.dtype)
        return jnp.asarray(rng.integers(0, 2, like.shape), like.dtype)

    def two(like: Any) -> Any:
        return jax.ShapeDtypeStruct((2, *like.shape[1:]), like.dtype)

    with jax.ensure_compile_time_eval():
        theta = jax.tree.map(drawn, params)
        first = jax.tree.map(lambda x: drawn(two(x)), (carry, inputs))
        other = jax.tree.map(lambda x: x.at[1].set(drawn(x[1])), first)
        found = [cell.apply({"params": theta}, *read)[0] for read in (first, other)]  # type: ignore
        same = jax.tree.map(lambda a, b: np.array_equal(a[0], b[0], equal_nan=True), *found)
    if not all(jax.tree.leaves(same)):
        raise ValueError(
            f"{type(cell).__name__} lets streams read each other, and an influence is that of one "
            "stream; let a stream's new carry be a function of its own carry and inputs"
        )


def _filled(params: Params, mask: Params) -> PyTree:
    """The mask with its missing leaves, shaped like `params`."""

    def leaf(path: tuple, p: Any) -> np.ndarray:
        found: Any = mask
        for part in path:
            found = found.get(part.key) if found is not None else None
        return np.ones(p.shape, bool) if found is None else np.asarray(found).astype(bool)

    return jax.tree.map_with_path(leaf, params)


def init(params: Params, sparsity: Sparsity, batch_size: int) -> Array:
    """Zeros: `[B, entries]`."""
    return jnp.zeros((batch_size, len(sparsity.pattern.row)), influence_dtype(params))


def transfer(before: Sparsity, after: Sparsity, influence: Array) -> Array:
    """See `GradientMethod.transfer`."""
    old, new = (Entries(*map(np.asarray, x.pattern)) for x in (before, after))
    stride = 1 + max(old.column.max(initial=0), new.column.max(initial=0))
    keys, wanted = (x.row.astype(np.int64) * stride + x.column for x in (old, new))
    order = np.argsort(keys)
    place = order[np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)]
    return jnp.where(keys[place] == wanted, influence[:, place], 0)


def advance(
    cell: nn.RNNCellBase,
    params: Params,
    sparsity: Sparsity,
    hidden: PyTree,
    influence: Array,
    x_t: Array,
) -> tuple[Array, Array]:
    """One step of the core (1), to h_t as a vector, and of its influence (5)."""
    view, theta = flat(cell, params, x_t), ravel_pytree(params)[0]
    entries: Entries = sparsity.pattern

    def stream(inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        h_tm1, J_tm1, x_t = inputs
        D_t, I_t = jax.jacrev(view.step, (1, 0))(theta, h_tm1, x_t)
        dense = jnp.zeros_like(I_t, J_tm1.dtype).at[entries].set(J_tm1, mode="drop")
        J_t = (I_t + D_t @ dense).at[entries].get(mode="fill", fill_value=0)
        return view.step(theta, h_tm1, x_t), J_t.astype(J_tm1.dtype)

    # one after the other: S x P is large, and of convolutions side by side XLA makes one in which a
    # stream's NaN reaches the others
    return jax.lax.map(stream, (view.state(hidden), influence, x_t))


def influence_after(
    cell: nn.RNNCellBase,
    params: Params,
    sparsity: Sparsity,
    state: CoreState,
    xs: Array,
    resets: Array | None,
) -> Array:
    """The influence at the end of a segment."""
    initial = cell.initialize_carry(jax.random.key(0), xs.shape[1:])
    view = flat(cell, params, xs[0])

    def step(state: tuple, inputs: tuple) -> tuple[tuple, None]:
        x_t, reset_t = inputs
        hidden, influence = _restarted(reset_t, initial, *state)
        h_t, influence = advance(cell, params, sparsity, hidden, influence, x_t)
        return (view.carry(h_t), influence), None

    return jax.lax.scan(step, (state.hidden, state.influence), (xs, resets))[0][1]


def as_state(carry: PyTree) -> Array:
    """A carry `[B, ...]` as `[B, S]`."""
    return jnp.concatenate([x.reshape(len(x), -1) for x in jax.tree.leaves(carry)], axis=-1)


def contract(params: Params, sparsity: Sparsity, influence: Array, lambda_: Array) -> Params:
    """`sum lambda . J` over streams, `lambda [B, S]`: the influence's type, the params' shapes."""
    zeros, unravel = ravel_pytree(_zeros(params))
    entries: Entries = sparsity.pattern
    values = (lambda_[:, entries.row] * influence).sum(0).astype(zeros.dtype)
    return unravel(zeros.at[entries.column].add(values, mode="drop"))


def _zeros(params: Params) -> PyTree:
    """What a gradient is summed in: bfloat16 would forget the small terms."""
    dtype = influence_dtype(params)
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype), params)


def follow(
    cell: nn.RNNCellBase,
    params: Params,
    sparsity: Sparsity,
    state: CoreState,
    xs: Array,
    resets: Array | None,
) -> tuple[CoreState, Array]:
    """`GradientMethod.unroll` by (3) with (5), step by step; `xs` receive the step's own term.

    The backward pass walks through the segment again: nothing but the states is kept per step.
    """
    initial = cell.initialize_carry(jax.random.key(0), xs.shape[1:])
    run = functools.partial(_follow, cell)
    arguments = (params, sparsity, initial, state.hidden, state.influence, xs, resets)
    hidden, influence, ys = run(*arguments)
    return jax.lax.stop_gradient(CoreState(hidden, influence)), ys


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _follow(cell, params, sparsity, initial, hidden, influence, xs, resets):
    return _follow_forward(cell, params, sparsity, initial, hidden, influence, xs, resets)[0]


def _follow_forward(cell, params, sparsity, initial, hidden, influence, xs, resets):
    view = flat(cell, params, xs[0])

    def step(state: tuple, inputs: tuple) -> tuple[tuple, Array]:
        x_t, reset_t = inputs
        hidden, influence = _restarted(reset_t, initial, *state)
        h_t, influence = advance(cell, params, sparsity, hidden, influence, x_t)
        return (view.carry(h_t), influence), view.output(h_t)

    (end, after), ys = jax.lax.scan(step, (hidden, influence), (xs, resets))
    return (end, after, ys), (params, sparsity, initial, hidden, influence, xs, resets)


def _follow_backward(cell, residuals, cotangents):
    params, sparsity, initial, hidden, influence, xs, resets = residuals
    view, theta = flat(cell, params, xs[0]), ravel_pytree(params)[0]

    def step(state: tuple, inputs: tuple) -> tuple[tuple, Array]:
        (hidden, influence, grads), (x_t, reset_t, ct_t) = state, inputs
        hidden, influence = _restarted(reset_t, initial, hidden, influence)
        h_tm1 = view.state(hidden)
        through = jax.vjp(lambda x: jax.vmap(view.step, (None, 0, 0))(theta, h_tm1, x), x_t)[1]
        h_t, influence = advance(cell, params, sparsity, hidden, influence, x_t)
        (lambda_,) = jax.vjp(view.output, h_t)[1](ct_t)  # dL_t/dh_t
        grads = jax.tree.map(jnp.add, grads, contract(params, sparsity, influence, lambda_))
        return (view.carry(h_t), influence, grads), through(lambda_)[0]

    (_, _, grads), ct_xs = jax.lax.scan(
        step, (hidden, influence, _zeros(params)), (xs, resets, cotangents[2])
    )
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
    return grads, None, None, None, None, ct_xs, None


_follow.defvjp(_follow_forward, _follow_backward)


def _restarted(
    reset_t: Array | None, initial: PyTree, hidden: PyTree, influence: PyTree
) -> tuple[PyTree, PyTree]:
    return where_reset(reset_t, initial, hidden), where_reset(reset_t, 0.0, influence)
