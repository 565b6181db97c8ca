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

from snaprl.cores import structure
from snaprl.cores.segment import influence_dtype, where_reset
from snaprl.cores.types import Array, CoreState, Params, PyTree, Sparsity


class Entries(NamedTuple):
    """The entries of J that are kept (4)."""

    row: Any  # [E] which number of the state
    column: Any  # [E] which number of the parameters


class Flat(NamedTuple):
    """A cell as a function of vectors, of one stream."""

    step: Callable[[Array, Array, Array], Array]  # (theta [P], h_tm1 [S], x_t) -> h_t [S]
    output: Callable[[Array], Array]  # h_t [S] -> y_t
    state: Callable[[PyTree], Array]  # carry [B, ...] -> [B, S]
    carry: Callable[[Array], PyTree]  # undoes `state`


def flat(cell: nn.RNNCellBase, params: Params, inputs: Any) -> Flat:
    """Returns the cell as a `Flat`; `inputs` is one step's `[B, ...]`, or its shape and type.

    Raises:
      ValueError: the cell's output is none of the arrays of its new carry.
    """
    one = (1, *inputs.shape[1:])
    carry = jax.eval_shape(lambda: cell.initialize_carry(jax.random.key(0), one))
    leaves, tree = jax.tree.flatten(carry)
    shapes = [leaf.shape[1:] for leaf in leaves]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    unravel = ravel_pytree(jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), params))[1]
    which = _output(cell, params, carry, jax.ShapeDtypeStruct(one, inputs.dtype))

    def to_carry(state: Array) -> PyTree:
        parts = jnp.split(state, ends, axis=-1)
        return jax.tree.unflatten(
            tree,
            [x.reshape(*x.shape[:-1], *shape) for x, shape in zip(parts, shapes, strict=True)],
        )

    def step(theta: Array, h_tm1: Array, x_t: Array) -> Array:
        carry = to_carry(h_tm1[None])
        return as_state(cell.apply({"params": unravel(theta)}, carry, x_t[None])[0])[0]  # type: ignore

    return Flat(step, lambda h: jax.tree.leaves(to_carry(h))[which], as_state, to_carry)


def _output(cell: nn.RNNCellBase, params: Params, carry: PyTree, x: Any) -> int:
    """Which array of the new carry the cell's output is."""

    def call(params: Params, carry: PyTree, x: Array) -> tuple:
        after, y = cell.apply({"params": params}, carry, x)  # type: ignore
        return y, jax.tree.leaves(after)

    found = jax.make_jaxpr(call)(params, carry, x).jaxpr.outvars
    for k, leaf in enumerate(found[1:]):
        if leaf is found[0]:
            return k
    raise ValueError(
        f"the output of {type(cell).__name__} is not a part of its new carry, and only what is in "
        "the carry has an influence; let the cell return its new state, and read it out afterwards"
    )


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
      ValueError: there are more of them than in `like`, whose shapes they are to have.
    """
    view = flat(cell, params, inputs)
    theta = np.concatenate([p.ravel() for p in jax.tree.leaves(_filled(params, mask))])
    carry = jax.eval_shape(lambda: cell.initialize_carry(jax.random.key(0), (1, *inputs.shape[1:])))
    size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(carry))
    dtype = jnp.result_type(*jax.tree.leaves(params))
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
            f"is room for {room}); start from a mask that is at least as dense, or make the core "
            "anew"
        )
    # past the last column is no parameter: nothing is read or written there
    spare = (0, room - len(row))
    row, column = np.pad(row, spare), np.pad(column, spare, constant_values=len(theta))
    return Entries(row.astype(np.int32), column.astype(np.int32))


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
) -> tuple[PyTree, Array]:
    """One step of the core (1), and of its influence (5)."""
    view, theta = flat(cell, params, x_t), ravel_pytree(params)[0]
    entries: Entries = sparsity.pattern

    def stream(inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        h_tm1, J_tm1, x_t = inputs
        D_t, I_t = jax.jacrev(view.step, (1, 0))(theta, h_tm1, x_t)
        dense = jnp.zeros_like(I_t, J_tm1.dtype).at[entries].set(J_tm1, mode="drop")
        J_t = (I_t + D_t @ dense).at[entries].get(mode="fill", fill_value=0)
        return view.step(theta, h_tm1, x_t), J_t

    # one after the other: S x P is large, and of convolutions side by side XLA makes one in which a
    # stream's NaN reaches the others
    h_t, J_t = jax.lax.map(stream, (view.state(hidden), influence, x_t))
    return view.carry(h_t), J_t


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

    def step(state: tuple, inputs: tuple) -> tuple[tuple, None]:
        x_t, reset_t = inputs
        hidden, influence = _restarted(reset_t, initial, *state)
        return advance(cell, params, sparsity, hidden, influence, x_t), None

    return jax.lax.scan(step, (state.hidden, state.influence), (xs, resets))[0][1]


def as_state(carry: PyTree) -> Array:
    """A carry `[B, ...]` as `[B, S]`."""
    return jnp.concatenate([x.reshape(len(x), -1) for x in jax.tree.leaves(carry)], axis=-1)


def contract(params: Params, sparsity: Sparsity, influence: Array, lambda_: Array) -> Params:
    """`sum lambda . J` over streams, `lambda [B, S]`, as a tree shaped like the parameters."""
    theta, unravel = ravel_pytree(params)
    entries: Entries = sparsity.pattern
    values = (lambda_[:, entries.row] * influence).sum(0)
    total = jnp.zeros_like(theta, values.dtype).at[entries.column].add(values, mode="drop")
    return unravel(total.astype(theta.dtype))


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
        hidden, influence = advance(cell, params, sparsity, hidden, influence, x_t)
        return (hidden, influence), view.output(view.state(hidden))

    (end, after), ys = jax.lax.scan(step, (hidden, influence), (xs, resets))
    return (end, after, ys), (params, sparsity, initial, hidden, influence, xs, resets)


def _follow_backward(cell, residuals, cotangents):
    params, sparsity, initial, hidden, influence, xs, resets = residuals
    view, theta = flat(cell, params, xs[0]), ravel_pytree(params)[0]
    size = view.state(hidden).shape[-1]

    def step(state: tuple, inputs: tuple) -> tuple[tuple, Array]:
        (hidden, influence, grads), (x_t, reset_t, ct_t) = state, inputs
        hidden, influence = _restarted(reset_t, initial, hidden, influence)
        zeros = jnp.zeros((len(x_t), size), ct_t.dtype)
        (lambda_,) = jax.vjp(view.output, zeros)[1](ct_t)  # dL_t/dh_t
        h_tm1 = view.state(hidden)
        through = jax.vjp(lambda x: jax.vmap(view.step, (None, 0, 0))(theta, h_tm1, x), x_t)[1]
        hidden, influence = advance(cell, params, sparsity, hidden, influence, x_t)
        known = contract(params, sparsity, influence, lambda_)
        return (hidden, influence, jax.tree.map(jnp.add, grads, known)), through(lambda_)[0]

    zeros = jax.tree.map(jnp.zeros_like, params)
    (_, _, grads), ct_xs = jax.lax.scan(
        step, (hidden, influence, zeros), (xs, resets, cotangents[2])
    )
    return grads, None, None, None, None, ct_xs, None


_follow.defvjp(_follow_forward, _follow_backward)


def _restarted(
    reset_t: Array | None, initial: PyTree, hidden: PyTree, influence: PyTree
) -> tuple[PyTree, PyTree]:
    return where_reset(reset_t, initial, hidden), where_reset(reset_t, 0.0, influence)
