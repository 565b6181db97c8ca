"""Backpropagation through a segment by jax's own: any cell, and memory within a budget.

What lies before the segment may be attached to the state that the segment starts from: the identity
forward, and backward `dL/dh_0 J_0` for the parameters (16).
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from snaprl.cores.loops import scan
from snaprl.cores.resets import where_reset
from snaprl.cores.types import Array, Params, PyTree

# (what is known of the past, dL/dh_0 shaped like the carry) to dL/dh_0 J_0
Contract = Callable[[PyTree, PyTree], Params]


def attach(params: Params, hidden: PyTree, past: PyTree, contract: Contract) -> PyTree:
    """Returns `hidden`; what flows back into it goes to `params` through `contract`.

    `past` is an argument of the rule's, as everything has to be that may be traced: the rule is
    called when the gradient is taken, which may be outside of the jit or the loop that this is in.
    """

    @jax.custom_vjp
    def attached(params: Params, hidden: PyTree, past: PyTree) -> PyTree:
        return hidden

    def forward(params: Params, hidden: PyTree, past: PyTree) -> tuple[PyTree, PyTree]:
        return hidden, (params, past)

    def backward(residuals: PyTree, ct_hidden: PyTree) -> tuple[Params, PyTree, None]:
        params, past = residuals
        grads = contract(past, ct_hidden)
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
        return grads, jax.tree.map(jnp.zeros_like, ct_hidden), None

    attached.defvjp(forward, backward)
    return attached(params, hidden, past)


def step(cell: nn.RNNCellBase, params: Params, hidden: PyTree, x_t: Array) -> tuple[PyTree, Array]:
    """One step of any cell, whose new carry has the types of the old one, as a loop needs it."""
    after, y = cell.apply({"params": params}, hidden, x_t)  # type: ignore
    y: Array = y  # type: ignore
    return jax.tree.map(lambda new, old: new.astype(old.dtype), after, hidden), y


def unroll(
    cell: nn.RNNCellBase,
    params: Params,
    hidden: PyTree,
    xs: Array,
    resets: Array | None,
    *,
    pieces: int = 1,
    through_time: bool = True,
) -> tuple[PyTree, Array]:
    """Runs a cell over a segment.

    Args:
      cell: any flax cell.
      params: its parameters.
      hidden: the carry before the first step.
      xs: `[T, B, ...]`.
      resets: bool `[T, B]` or None.
      pieces: into how many pieces the segment is cut; of each, the backward pass keeps the state
        that it starts from, and computes the rest again (Chen et al. 2016, arXiv 1604.06174).
      through_time: False leaves each step to itself.

    Returns:
      The carry after the last step, and the outputs `[T, B, ...]`.
    """
    initial = cell.initialize_carry(jax.random.key(0), xs.shape[1:])

    def one_step(hidden: PyTree, inputs: tuple) -> tuple[PyTree, Array]:
        x_t, reset_t = inputs
        hidden = where_reset(reset_t, initial, hidden)
        hidden = hidden if through_time else jax.lax.stop_gradient(hidden)
        return step(cell, params, hidden, x_t)

    if pieces <= 1:
        return scan(one_step, hidden, (xs, resets))
    length = -(-len(xs) // pieces)

    def piece(hidden: PyTree, inputs: tuple) -> tuple[PyTree, Array]:
        return jax.lax.scan(one_step, hidden, inputs)

    whole = len(xs) // length * length
    parts = jax.tree.map(lambda x: x[:whole].reshape(-1, length, *x.shape[1:]), (xs, resets))
    hidden, ys = jax.lax.scan(jax.checkpoint(piece), hidden, parts)
    ys = ys.reshape(whole, *ys.shape[2:])
    if whole < len(xs):
        rest = jax.tree.map(lambda x: x[whole:], (xs, resets))
        hidden, last = jax.checkpoint(piece)(hidden, rest)
        ys = jnp.concatenate([ys, last])
    return hidden, ys
