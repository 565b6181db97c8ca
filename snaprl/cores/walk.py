"""Influence that is only known by walking forward with it: estimates drawn at random.

Such a method has no adjoint. The gradient of a step is that of its own weights, exactly, and what
the influence before the step tells:

    dL_t/dtheta = dL_t/dh_t I_t + (dL_t/dh_t D_t) J_tm1                          (2), (3)

The first term is one product over the segment; for the second the backward pass walks again from
the segment's start, with the keys that the forward pass drew with. Nothing is kept per step but
what the forward pass linearised.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from snaprl.cores import loops, segment
from snaprl.cores.bptt import dynamics_transposed
from snaprl.cores.cells import unitwise
from snaprl.cores.resets import remembered, where_reset
from snaprl.cores.segment import Linearised
from snaprl.cores.types import Array, CoreState, Params, PyTree, Sparsity
from snaprl.cores.unitwise import Block, UnitwiseCell, Vector, written_out


class Drawn(NamedTuple):
    """What a stream carries of an estimate."""

    key: Array  # [B, 2] uint32: a stream draws for itself, whatever streams are beside it
    factors: PyTree  # [B, ...] what the estimate is made of; zeros estimate nothing


class Walk(NamedTuple):
    """An estimate of the influence, and how it goes through a segment."""

    init: Callable  # (cell, params, batch_size) -> factors
    advance: "Advance"
    # (cell, params, linearised, drawn, lambda) -> sum_t lambda_t . J_tm1, where lambda_t arrives at
    # the states before step t and is 0 where they are reset: U x [T, B, N]
    known: Callable
    contract: Callable  # (cell, params, factors, lambda) -> lambda . J


Advance = Callable[[UnitwiseCell, Params, Linearised, Drawn], Drawn]  # over a segment


class Walking:
    """A method that walks: it names its `Walk`, and the rest of `GradientMethod` follows."""

    def walk(self) -> Walk:
        """How the estimate goes."""
        raise NotImplementedError

    def pattern(
        self, cell: nn.RNNCellBase, params: Params, mask: Params, inputs: Array, like: PyTree = ()
    ) -> PyTree:
        """Nothing: an estimate in factors has no pattern of its own."""
        return ()

    def init(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        sparsity: Sparsity,
        batch_size: int,
        key: Array,
    ) -> Drawn:
        """An estimate of nothing, and a key for every stream; `key` is consumed."""
        del sparsity
        keys = jax.random.split(key, batch_size)
        data, usual = (jax.random.key_data(k) for k in (keys, jax.random.key(0)))
        if data.shape[1:] != usual.shape:  # of another kind, which the carry does not tell
            data = jax.vmap(lambda k: jax.random.bits(k, usual.shape, usual.dtype))(keys)
        return Drawn(data, self.walk().init(unitwise(cell), params, batch_size))

    def transfer(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        before: Sparsity,
        after: Sparsity,
        influence: PyTree,
    ) -> PyTree:
        """As it was: the gradient of a masked weight is dropped, wherever it comes from.

        That of a new weight does not start at 0: it is what was drawn for it while it was absent.
        """
        return influence

    def unroll(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        sparsity: Sparsity,
        state: CoreState,
        xs: Array,
        resets: Array | None,
    ) -> tuple[CoreState, Array]:
        """See `GradientMethod.unroll`."""
        return segment.unroll(cell, _rule(self.walk()), params, sparsity, state, xs, resets)

    def memory(self, cell: nn.RNNCellBase, sparsity: Sparsity) -> segment.Memory:
        """The estimate, as the tail of another method may carry it."""
        del cell
        walk = self.walk()

        def init(cell: UnitwiseCell, params: Params, sparsity: Sparsity, streams: int) -> Drawn:
            raise NotImplementedError("a key is needed: `Walking.init`")

        def contract(
            cell: UnitwiseCell,
            params: Params,
            sparsity: Sparsity,
            drawn: Drawn,
            lambda_0: Vector,
            anew: Array | None,
        ) -> Params:
            factors = remembered(anew, drawn.factors)
            return walk.contract(cell, params, factors, lambda_0)

        def transfer(cell, params, before, after, influence):
            return influence

        return segment.Memory(init, _advancing(walk), contract, transfer)


def by_steps(init: Callable, step: Callable, contract: Callable) -> Walk:
    """A walk that makes the estimate anew at every step.

    Args:
      init: as in `Walk`.
      step: `(cell, params, key, linearised_t, factors) -> factors`, with keys `[B]`.
      contract: as in `Walk`.
    """

    def go(cell: UnitwiseCell, params: Params, drawn: Drawn, now: Linearised) -> Drawn:
        key, kept = next_keys(drawn.key)
        factors = where_reset(now.resets, 0.0, drawn.factors)
        return Drawn(kept, step(cell, params, key, now, factors))

    def advance(cell: UnitwiseCell, params: Params, linearised: Linearised, drawn: Drawn) -> Drawn:
        return loops.scan(lambda d, now: (go(cell, params, d, now), None), drawn, linearised)[0]

    def known(
        cell: UnitwiseCell,
        params: Params,
        linearised: Linearised,
        drawn: Drawn,
        lambda_: Vector,
    ) -> Params:
        def add(state: tuple[Drawn, Params], inputs: tuple) -> tuple[tuple, None]:
            (drawn, grads), (now, lambda_tm1) = state, inputs
            factors = where_reset(now.resets, 0.0, drawn.factors)
            met = contract(cell, params, factors, lambda_tm1)
            return (go(cell, params, drawn, now), jax.tree.map(jnp.add, grads, met)), None

        start = drawn, no_gradient(params, lambda_)
        return loops.scan(add, start, (linearised, lambda_))[0][1]

    return Walk(init, advance, known, contract)


def no_gradient(params: Params, lambda_: Vector) -> Params:
    """Zeros, of the type of what an estimate gives for `lambda_`."""
    dtype = jnp.promote_types(segment.influence_dtype(params), lambda_[0].dtype)
    return jax.tree.map(lambda p: jnp.zeros(p.shape, dtype), params)


def next_keys(keys: Array) -> tuple[Array, Array]:
    """Of each stream's key `[B, 2]` the one to draw a step with, `[B]`, and the next, `[B, 2]`."""
    split = jax.vmap(jax.random.split)(jax.random.wrap_key_data(keys))
    return split[:, 0], jax.random.key_data(split[:, 1])


def _rule(walk: Walk) -> segment.Rule:
    """The method that walks with `walk`."""

    def gradient(
        cell: UnitwiseCell,
        params: Params,
        sparsity: Sparsity,
        linearised: Linearised,
        drawn: Drawn,
        after: Drawn,
        ct_ys: Array,
    ) -> tuple[Params, Vector]:
        del after
        lambdas, _ = segment.immediate_adjoint(cell, params, sparsity, linearised, ct_ys)
        grads = segment.outer_products(cell, params, linearised, lambdas)
        transpose = dynamics_transposed(cell, params, ct_ys)
        derivatives = linearised.derivatives
        before = transpose(lambdas, (derivatives.sigma, derivatives.delta))
        before = where_reset(linearised.resets, 0.0, written_out(before, lambdas[0]))
        known = walk.known(cell, params, linearised, drawn, before)
        return jax.tree.map(jnp.add, grads, known), lambdas

    return segment.Rule(_advancing(walk), gradient)


def _advancing(walk: Walk) -> Callable:
    """`walk.advance` as `segment.Memory` calls it."""

    def advance(
        cell: UnitwiseCell,
        params: Params,
        sparsity: Sparsity,
        linearised: Linearised,
        drawn: Drawn,
    ) -> Drawn:
        del sparsity
        return walk.advance(cell, params, linearised, drawn)

    return advance


class Layers(NamedTuple):
    """Layers of a cell that read one source."""

    names: tuple[str, ...]
    # of one step or of a segment, [..., K]; None: each has a weight of its own only
    source: Callable[[Linearised], Array | None]
    derivatives: Callable[[Linearised], Block]  # of phi: U x the layers


def layers_by_source(cell: UnitwiseCell) -> list[Layers]:
    """The layers that read the inputs, those that read the state, and the units' own weights."""
    groups = [
        Layers(cell.inputs, lambda now: now.xs, lambda now: now.derivatives.alpha),
        Layers(cell.recurrent, lambda now: now.h_tm1[cell.read], lambda now: now.derivatives.sigma),
        Layers(cell.local, lambda now: None, lambda now: now.derivatives.local),
    ]
    return [group for group in groups if group.names]
