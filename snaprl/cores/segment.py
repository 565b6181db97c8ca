"""A segment of T steps: forward, and the gradient of its end-to-end pass, for unit-wise cells.

Every method here is three choices over one machine:

- the *adjoint*: how `lambda_t = dL/dh_t` moves backward inside the segment, through the units' own
  dynamics d_t (11), or through the whole of D_t as backpropagation does;
- the *memory*: what is known of the influence of the weights on the state before the segment, how
  it meets `lambda_0`, and how it advances over the segment;
- the *trainable* weights: all, or none.

The gradient is then, for any choice,

    dL/dW[g] = sum_t (lambda_t sigma_t[g]) read(h_tm1)^T  +  lambda_0 . J_0      (12), (16)

and no influence is formed per step.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from snaprl.cores.cells import unitwise
from snaprl.cores.loops import scan
from snaprl.cores.masks import apply_mask
from snaprl.cores.resets import at_start, where_reset
from snaprl.cores.types import Array, CoreState, Params, PyTree, Sparsity
from snaprl.cores.unitwise import (
    Derivatives,
    Entries,
    UnitwiseCell,
    Vector,
    dense,
    join,
    joined_layer,
    over_units,
    split,
    vector_block,
    written_out,
)


class Linearised(NamedTuple):
    """What a segment's forward pass leaves for its gradient and its influence."""

    xs: Array  # [T, B, M]
    h_tm1: Vector  # U x [T, B, N]  states before each step, after resets
    derivatives: Derivatives  # of phi, [T, B, N] each
    resets: Array | None  # [T, B] bool


class Memory(NamedTuple):
    """The influence of the weights on the state, before the segment and after it.

    `contract` takes lambda as `lift` makes it of one vector per state variable; a memory whose own
    adjoint follows more than that gets from it what `lift` would not know.
    """

    init: Callable  # (cell, params, sparsity, batch_size) -> influence
    advance: Callable  # (cell, params, sparsity, linearised, influence) -> influence
    # (cell, params, sparsity, influence, lambda_0, resets before the first step [B] or None)
    # -> lambda_0 . J_0 or None
    contract: Callable
    transfer: Callable  # (cell, params, sparsity, sparsity afterwards, influence) -> influence
    adjoint: "Adjoint | None" = None  # with this one, a step's gradient is lambda_1 . J_1 (3)
    lift: Callable = lambda sparsity, lambda_: lambda_


# (cell, params, sparsity, linearised, dL/dys) -> (lambda_1..T, lambda_0): U x [T, B, N] for the
# units' own weights, and what met the influence before the segment
Adjoint = Callable[[UnitwiseCell, Params, Sparsity, Linearised, Array], tuple[Vector, Vector]]


class Rule(NamedTuple):
    """A method, as `_run` needs it."""

    advance: Callable  # (cell, params, sparsity, linearised, influence) -> influence
    # (cell, params, sparsity, linearised, influence, influence after, dL/dys) -> (dL/dparams,
    # lambda_1..T for the units' own weights, U x [T, B, N])
    gradient: Callable


def by_adjoint(adjoint: Adjoint, memory: Memory) -> Rule:
    """The gradient of an adjoint inside the segment, and of a memory of what came before it."""

    def gradient(
        cell: UnitwiseCell,
        params: Params,
        sparsity: Sparsity,
        linearised: Linearised,
        influence: PyTree,
        after: PyTree,
        ct_ys: Array,
    ) -> tuple[Params, Vector]:
        lambdas, lambda_0 = adjoint(cell, params, sparsity, linearised, ct_ys)
        own = memory.adjoint is adjoint
        if own and len(ct_ys) == 1:
            lambda_1 = memory.lift(sparsity, tuple(x[0] for x in lambdas))
            return memory.contract(cell, params, sparsity, after, lambda_1, None), lambdas  # (3)
        grads = outer_products(cell, params, linearised, lambdas)
        lambda_0 = lambda_0 if own else memory.lift(sparsity, lambda_0)
        anew = at_start(linearised.resets)
        before = memory.contract(cell, params, sparsity, influence, lambda_0, anew)
        return grads if before is None else jax.tree.map(jnp.add, grads, before), lambdas

    return Rule(memory.advance, gradient)


def masked_trees(
    cell: UnitwiseCell,
    params: Params,
    before: Sparsity,
    after: Sparsity,
    influence: tuple[Params, ...],
) -> tuple[Params, ...]:
    """`Memory.transfer` of an influence that is U trees shaped like the parameters."""
    del cell, params, before
    return tuple(apply_mask(tree, after.mask) for tree in influence)


def influence_dtype(params: Params) -> jnp.dtype:
    """Influence is float32 at least: bfloat16 would forget what it carries."""
    return jnp.promote_types(jnp.float32, jnp.result_type(*jax.tree.leaves(params)))


def forward(
    cell: UnitwiseCell,
    params: Params,
    initial: Vector,
    hidden: Vector,
    xs: Array,
    resets: Array | None,
) -> tuple[Vector, Array, Linearised]:
    """Runs (6) and (7) over a segment.

    Args:
      cell: the cell.
      params: its parameters.
      initial: U x `[B, N]`, the state that a reset restores.
      hidden: U x `[B, N]`, the state before the first step.
      xs: `[T, B, M]`.
      resets: `[T, B]` bool or None.

    Returns:
      The state after the last step, the outputs `[T, B, N]`, and what was linearised on the way.
    """
    dtype = cell.dtype or jnp.result_type(xs, params[cell.inputs[0]]["kernel"])
    linear = _joined if len(xs) > 1 else _separate
    read_input, read_hidden = (linear(params, n, dtype) for n in (cell.inputs, cell.recurrent))
    a = read_input(xs)
    local = local_params(cell, params, hidden[0])
    state_dtype = jnp.promote_types(dtype, hidden[0].dtype)
    hidden, initial = jax.tree.map(lambda x: x.astype(state_dtype), (hidden, initial))

    def step(h_tm1: Vector, inputs: tuple) -> tuple[Vector, tuple]:
        a_t, reset_t = inputs
        h_tm1 = where_reset(reset_t, initial, h_tm1)
        h_t, saved = cell.phi(a_t, read_hidden(h_tm1[cell.read]), h_tm1, local)
        return h_t, (h_tm1, outputs(cell, h_t), saved)

    end, (h_tm1, ys, saved) = scan(step, hidden, (a, resets))
    derivatives = cell.derivatives(saved, h_tm1, tuple(w[None] for w in local))
    return end, ys, Linearised(xs, h_tm1, derivatives, resets)


def outputs(cell: UnitwiseCell, h_t: Vector) -> Array:
    """What the rest of the network reads, `[..., N]` or several state variables side by side."""
    return join(tuple(h_t[u] for u in cell.outputs), h_t[0])


def arrivals(cell: UnitwiseCell, ct_ys: Array) -> Entries:
    """What reaches each state variable from the outputs."""
    parts = split(ct_ys, len(cell.outputs))
    return tuple(
        parts[cell.outputs.index(u)] if u in cell.outputs else None for u in range(cell.states)
    )


def local_params(cell: UnitwiseCell, params: Params, like: Array) -> Vector:
    """The parameters that a unit keeps for itself, `[1, N]` each."""
    return tuple(params[name].astype(like.dtype)[None] for name in cell.local)


def _joined(params: Params, names: tuple[str, ...], dtype: Dtype) -> Callable:
    """The dense layers `names` as one matrix product: `[..., K]` to G x `[..., N]`."""
    if not names:
        return lambda x: ()
    kernel, bias = joined_layer(params, names)
    kernel = kernel.astype(dtype)
    bias = None if bias is None else bias.astype(dtype)

    def apply(x: Array) -> Vector:
        y = x.astype(dtype) @ kernel
        return split(y if bias is None else y + over_units(bias, y), len(names))

    return apply


def _separate(params: Params, names: tuple[str, ...], dtype: Dtype) -> Callable:
    """The same as one product per gate: for a single step, joining would copy the weights."""
    layers = [jax.tree.map(lambda p: p.astype(dtype), params[name]) for name in names]

    def apply(x: Array) -> Vector:
        x = x.astype(dtype)
        ys = (x @ layer["kernel"] for layer in layers)
        return tuple(
            y + over_units(layer["bias"], y) if "bias" in layer else y
            for y, layer in zip(ys, layers, strict=True)
        )

    return apply


def backward(
    transpose: Callable[[Vector, PyTree], Entries],
    steps: PyTree,
    cell: UnitwiseCell,
    linearised: Linearised,
    ct_ys: Array,
) -> tuple[Vector, Vector]:
    """Runs `lambda_t = dL_t/dh_t + D_{t+1}^T lambda_{t+1}` backward; `transpose` applies D^T."""
    like = linearised.h_tm1[0][0]
    end = tuple(jnp.zeros_like(like) for _ in range(cell.states))

    def step(lambda_: Vector, inputs: tuple) -> tuple[Vector, Vector]:
        step_t, reset_t, ct_t = inputs
        lambda_ = tuple(
            x if ct is None else x + ct for x, ct in zip(lambda_, arrivals(cell, ct_t), strict=True)
        )
        lambda_tm1 = written_out(transpose(lambda_, step_t), like)
        return where_reset(reset_t, 0.0, lambda_tm1), lambda_

    lambda_0, lambdas = scan(step, end, (steps, linearised.resets, ct_ys), reverse=True)
    return lambdas, lambda_0


def immediate_adjoint(
    cell: UnitwiseCell,
    params: Params,
    sparsity: Sparsity,
    linearised: Linearised,
    ct_ys: Array,
) -> tuple[Vector, Vector]:
    """`lambda_t = dL_t/dh_t`: nothing comes back from a later step."""
    del params, sparsity
    zero = jnp.zeros_like(linearised.h_tm1[0])
    return tuple(dense(ct, zero) for ct in arrivals(cell, ct_ys)), (zero[0],) * cell.states


def outer_products(
    cell: UnitwiseCell, params: Params, linearised: Linearised, lambdas: Vector
) -> Params:
    """The sum over the segment's steps in (12), for every weight."""
    alpha, sigma, _, local = linearised.derivatives
    into_a = written_out(vector_block(lambdas, alpha), lambdas[0])  # G x [T, B, N]
    into_s = written_out(vector_block(lambdas, sigma), lambdas[0])
    into_w = written_out(vector_block(lambdas, local), lambdas[0])
    read = linearised.h_tm1[cell.read]
    return (
        _layer_gradient(params, cell.inputs, linearised.xs, into_a)
        | _layer_gradient(params, cell.recurrent, read, into_s)
        | {name: w.sum((0, 1)) for name, w in zip(cell.local, into_w, strict=True)}
    )


def input_gradient(
    cell: UnitwiseCell, params: Params, linearised: Linearised, lambdas: Vector
) -> Array:
    """What the adjoint gives to `xs`, `[T, B, M]`."""
    kernel = joined_layer(params, cell.inputs)[0].astype(lambdas[0].dtype)
    return join(vector_block(lambdas, linearised.derivatives.alpha), lambdas[0]) @ kernel.T


def _layer_gradient(
    params: Params, names: tuple[str, ...], source: Array, target: Vector
) -> dict[str, dict[str, Array]]:
    """Gradients of the dense layers `names` from `source [T, B, K]` to `target` G x `[T, B, N]`."""
    layers = {}
    for name, arriving in zip(names, target, strict=True):
        # one product per gate: joining the gates costs more than it saves
        layers[name] = {"kernel": jnp.einsum("tbj,tbk->jk", source, arriving)}
        if "bias" in params[name]:
            layers[name]["bias"] = arriving.sum((0, 1))
    return layers


def _run_plain(
    cell: UnitwiseCell,
    rule: Rule,
    params: Params,
    sparsity: Sparsity,
    initial: Vector,
    hidden: Vector,
    influence: PyTree,
    xs: Array,
    resets: Array | None,
) -> tuple[Vector, PyTree, Array]:
    primal = (params, sparsity, initial, hidden, influence, xs, resets)
    return _run_forward(cell, rule, *primal)[0]


def linearise(
    cell: UnitwiseCell,
    params: Params,
    initial: Vector,
    hidden: Vector,
    xs: Array,
    resets: Array | None,
) -> Linearised:
    """What `forward` linearised, in the influence's type."""
    return _long(forward(cell, params, initial, hidden, xs, resets)[2], params)


def _long(linearised: Linearised, params: Params) -> Linearised:
    dtype = influence_dtype(params)
    long = jax.tree.map(lambda x: x.astype(dtype), linearised._replace(resets=None))
    return long._replace(resets=linearised.resets)


def _run_forward(cell, rule, params, sparsity, initial, hidden, influence, xs, resets):
    end, ys, linearised = forward(cell, params, initial, hidden, xs, resets)
    linearised = _long(linearised, params)
    after = rule.advance(cell, params, sparsity, linearised, influence)
    return (end, after, ys), (params, sparsity, influence, after, xs, linearised)


def _run_backward(cell, rule, residuals, cotangents):
    params, sparsity, influence, after, xs, linearised = residuals
    ct_ys = cotangents[2].astype(influence_dtype(params))  # nothing flows back from the end state
    arguments = (params, sparsity, linearised, influence, after, ct_ys)
    grads, lambdas = rule.gradient(cell, *arguments)
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
    ct_xs = input_gradient(cell, params, linearised, lambdas).astype(xs.dtype)
    return grads, None, None, None, None, ct_xs, None


_run = jax.custom_vjp(_run_plain, nondiff_argnums=(0, 1))
_run.defvjp(_run_forward, _run_backward)


def pack(hidden: PyTree) -> Vector:
    """A flax carry as U x `[B, N]`."""
    return tuple(hidden) if isinstance(hidden, (tuple, list)) else (hidden,)


def unpack(hidden: Vector) -> PyTree:
    """Undoes `pack`."""
    return hidden[0] if len(hidden) == 1 else hidden


def initial_state(cell: nn.RNNCellBase, xs_t: Array) -> Vector:
    """The state U x `[B, N]` that a reset restores: the cell's initial carry."""
    return pack(cell.initialize_carry(jax.random.key(0), xs_t.shape))


def unroll(
    cell: nn.RNNCellBase,
    rule: Rule,
    params: Params,
    sparsity: Sparsity,
    state: CoreState,
    xs: Array,
    resets: Array | None,
) -> tuple[CoreState, Array]:
    """`GradientMethod.unroll` for a flax cell that is unit-wise, with the given choices."""
    view, hidden = unitwise(cell), pack(state.hidden)
    end, influence, ys = _run(
        view,
        rule,
        params,
        sparsity,
        initial_state(cell, xs[0]),
        hidden,
        state.influence,
        xs,
        resets,
    )
    end = tuple(x.astype(h.dtype) for x, h in zip(end, hidden, strict=True))
    ys = view.readout(ys) if view.readout else ys
    return jax.lax.stop_gradient(CoreState(unpack(end), influence)), ys


def step(
    cell: nn.RNNCellBase, params: Params, hidden: PyTree, x: Array, reset: Array | None
) -> tuple[PyTree, Array]:
    """Acts: one step of a unit-wise cell, `x [B, M]` to `y [B, N]`; no influence is touched."""
    view, before = unitwise(cell), pack(hidden)
    resets = None if reset is None else reset[None]
    end, ys, _ = forward(view, params, initial_state(cell, x), before, x[None], resets)
    end = tuple(x.astype(h.dtype) for x, h in zip(end, before, strict=True))
    return unpack(end), view.readout(ys[0]) if view.readout else ys[0]
