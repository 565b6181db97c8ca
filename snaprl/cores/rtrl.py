"""Real-time recurrent learning: the exact influence of every weight on every unit (2).

Reference: Williams and Zipser, "A Learning Algorithm for Continually Running Fully Recurrent
Neural Networks", Neural Computation 1989. Memory is N times that of the parameters per stream.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from snaprl.cores import general, pairs, reach, segment
from snaprl.cores.bptt import BPTT, full_adjoint
from snaprl.cores.cells import is_unitwise, unitwise
from snaprl.cores.masks import apply_mask
from snaprl.cores.method import Remembering
from snaprl.cores.resets import remembered, where_reset
from snaprl.cores.types import Array, CoreState, Params, PyTree, Sparsity
from snaprl.cores.unitwise import (
    Derivatives,
    Entries,
    Entry,
    UnitwiseCell,
    Vector,
    dense,
    plain_total,
    total,
)


@dataclasses.dataclass(frozen=True)
class RTRL(Remembering):
    """Exact, whatever the split into segments: `J_t = I_t + D_t J_tm1` (2).

    Inside a segment the exact gradient is backpropagation's, so (3) is had as (16): the influence
    meets the adjoint once, at the segment's start. Where the recurrent weights are sparse, what is
    zero by structure is not stored.
    """

    order: ClassVar[None] = None  # n of (4): there is no end to what is followed

    def memory(self, cell: nn.RNNCellBase, sparsity: Sparsity) -> segment.Memory:
        """The influence of (2), as the tail of another method may carry it."""
        del cell
        return EXACT if sparsity.pattern == () else pairs.MEMORY

    def pattern(
        self, cell: nn.RNNCellBase, params: Params, mask: Params, inputs: Array, like: PyTree = ()
    ) -> PyTree:
        """Which units a weight ever reaches; () where the recurrent weights are dense."""
        if not is_unitwise(cell):
            return general.pattern(cell, params, mask, inputs, reach.EVERYTHING, like)
        view = unitwise(cell)
        if not sparse(view, mask):
            return ()
        return pairs.pattern(view, params, mask, reach.EVERYTHING, like)

    def adjoint(self, cell: nn.RNNCellBase, sparsity: Sparsity) -> segment.Adjoint:
        """Backpropagation's: inside the segment it is exact already."""
        del cell, sparsity
        return full_adjoint

    def init(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        sparsity: Sparsity,
        batch_size: int,
        key: Array,
    ) -> PyTree:
        """Zeros: U trees shaped like `params`, streams and then units (rows) in front.

        With sparse recurrent weights, or a cell that is not unit-wise, those of `SnAp`.
        """
        if not is_unitwise(cell):
            return general.init(params, sparsity, batch_size)
        return super().init(cell, params, sparsity, batch_size, key)

    def transfer(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        before: Sparsity,
        after: Sparsity,
        influence: PyTree,
    ) -> PyTree:
        """See `GradientMethod.transfer`."""
        if not is_unitwise(cell):
            return general.transfer(before, after, influence)
        return super().transfer(cell, params, before, after, influence)

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
        return BPTT(tail=self).unroll(cell, params, sparsity, state, xs, resets)


def sparse(cell: UnitwiseCell, mask: Params) -> bool:
    """Whether the recurrent weights of the cell are sparse, so that (4) leaves something out."""
    return any("kernel" in mask.get(name, {}) for name in cell.recurrent)


def _init(
    cell: UnitwiseCell, params: Params, sparsity: Sparsity, batch_size: int
) -> tuple[Params, ...]:
    del sparsity
    dtype = segment.influence_dtype(params)
    shape = (batch_size, cell.features)
    # not one tree U times: a buffer that is there twice cannot be donated
    return tuple(
        jax.tree.map(lambda p: jnp.zeros((*shape, *p.shape), dtype), params)
        for _ in range(cell.states)
    )


def _advance(
    cell: UnitwiseCell,
    params: Params,
    sparsity: Sparsity,
    linearised: segment.Linearised,
    influence: tuple[Params, ...],
) -> tuple[Params, ...]:
    """Runs (2) over the segment; J is U (rows) x `[B, N, ...parameter]`."""

    def step(J_tm1: tuple[Params, ...], inputs: tuple) -> tuple[tuple[Params, ...], None]:
        x_t, read_tm1, derivatives, reset_t = inputs
        J_tm1 = where_reset(reset_t, 0.0, J_tm1)
        J_t = []
        for u in range(cell.states):
            through_weights = _dynamics(cell, params, derivatives, u)
            I_t = {
                **_immediate(params, cell.inputs, x_t, derivatives.alpha[u]),
                **_immediate(params, cell.recurrent, read_tm1, derivatives.sigma[u]),
                **_immediate_local(cell, derivatives.local[u] if cell.local else (), read_tm1),
            }

            def row(
                now: Array, *rows: Array, u: int = u, weights: Entry = through_weights
            ) -> Array:
                through_units = (
                    None if delta is None else _over_weights(delta, J) * J
                    for delta, J in zip(derivatives.delta[u], rows, strict=True)
                )
                read = rows[cell.read]
                mixed = None if weights is None else jnp.einsum("blk,bk...->bl...", weights, read)
                return total((now, mixed, *through_units))

            J_t.append(jax.tree.map(row, I_t, *J_tm1))
        return tuple(apply_mask(J, sparsity.mask) for J in J_t), None

    steps = (linearised.xs, linearised.h_tm1[cell.read], linearised.derivatives, linearised.resets)
    return segment.scan(step, influence, steps)[0]


def _dynamics(cell: UnitwiseCell, params: Params, derivatives: Derivatives, u: int) -> Entry:
    """What the weights add to D_t in the rows of state variable u (8): `[B, N, N]`."""
    return total(
        None if sigma is None else sigma[:, :, None] * params[name]["kernel"].T[None]
        for sigma, name in zip(derivatives.sigma[u], cell.recurrent, strict=True)
    )


def _immediate(
    params: Params, names: tuple[str, ...], source: Array, gates: Entries
) -> dict[str, dict[str, Array]]:
    """I_t for the layers `names` (9): a weight into unit i moves unit i alone."""
    layers = {}
    for name, gate in zip(names, gates, strict=True):
        eye = jnp.eye(params[name]["kernel"].shape[-1], dtype=source.dtype)
        if gate is None:
            gate = jnp.zeros((source.shape[0], eye.shape[0]), source.dtype)
        bias = gate[:, :, None] * eye[None]  # [B, row, unit]
        layers[name] = {"kernel": bias[:, :, None, :] * source[:, None, :, None]}
        if "bias" in params[name]:
            layers[name]["bias"] = bias
    return layers


def _immediate_local(cell: UnitwiseCell, entries: Entries, like: Array) -> dict[str, Array]:
    """I_t for the parameters that a unit keeps for itself: `[B, row, unit]`."""
    eye = jnp.eye(like.shape[-1], dtype=like.dtype)
    return {
        name: dense(entry, like)[:, :, None] * eye[None]
        for name, entry in zip(cell.local, entries, strict=True)
    }


def _over_weights(rows: Array, like: Array) -> Array:
    """`[B, N]` broadcast over a parameter's own axes."""
    return rows.reshape(rows.shape + (1,) * (like.ndim - 2))


def _contract(
    cell: UnitwiseCell,
    params: Params,
    sparsity: Sparsity,
    influence: tuple[Params, ...],
    lambda_0: Vector,
    anew: Array | None,
) -> Params:
    """`lambda_0 . J_0`, summed over streams and units: the second term of (16)."""
    del cell, params, sparsity
    influence = remembered(anew, influence)

    def leaf(*rows: Array) -> Array:
        terms = zip(lambda_0, rows, strict=True)
        return plain_total(jnp.einsum("bl,bl...->...", x, J) for x, J in terms)

    return jax.tree.map(leaf, *influence)


EXACT = segment.Memory(_init, _advance, _contract, segment.masked_trees, full_adjoint)
