"""Real-time recurrent learning: the exact influence of every weight on every unit (2).

Reference: Williams and Zipser, "A Learning Algorithm for Continually Running Fully Recurrent
Neural Networks", Neural Computation 1989. Memory is N times that of the parameters per stream.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from snaprl.cores import segment
from snaprl.cores.bptt import full_adjoint
from snaprl.cores.cells import unitwise
from snaprl.cores.masks import apply_mask
from snaprl.cores.types import Array, CoreState, Params, PyTree
from snaprl.cores.unitwise import (
    Derivatives,
    Entries,
    Entry,
    UnitwiseCell,
    Vector,
    plain_total,
    total,
)


@dataclasses.dataclass(frozen=True)
class RTRL:
    """Exact, whatever the split into segments: `J_t = I_t + D_t J_tm1` (2).

    Inside a segment the exact gradient is backpropagation's, so (3) is had as (16): the influence
    meets the adjoint once, at the segment's start.
    """

    @property
    def memory(self) -> segment.Memory:
        """The influence of (2), as the tail of another method may carry it."""
        return EXACT

    def init(
        self, cell: nn.RNNCellBase, params: Params, mask: Params, batch_size: int, key: Array
    ) -> PyTree:
        """Zeros: U trees shaped like `params`, streams and then units (rows) in front."""
        del mask, key
        return _init(unitwise(cell), params, batch_size)

    def unroll(
        self,
        cell: nn.RNNCellBase,
        params: Params,
        mask: Params,
        state: CoreState,
        xs: Array,
        resets: Array | None,
    ) -> tuple[CoreState, Array]:
        """See `GradientMethod.unroll`."""
        return segment.unroll(cell, full_adjoint, EXACT, params, mask, state, xs, resets)


def _init(cell: UnitwiseCell, params: Params, batch_size: int) -> tuple[Params, ...]:
    dtype = segment.influence_dtype(params)
    shape = (batch_size, cell.features)
    zeros = jax.tree.map(lambda p: jnp.zeros((*shape, *p.shape), dtype), params)
    return (zeros,) * cell.states


def _advance(
    cell: UnitwiseCell,
    params: Params,
    mask: Params,
    linearised: segment.Linearised,
    influence: tuple[Params, ...],
) -> tuple[Params, ...]:
    """Runs (2) over the segment; J is U (rows) x `[B, N, ...parameter]`."""

    def step(J_tm1: tuple[Params, ...], inputs: tuple) -> tuple[tuple[Params, ...], None]:
        x_t, read_tm1, derivatives, reset_t = inputs
        J_tm1 = segment.where_reset(reset_t, 0.0, J_tm1)
        J_t = []
        for u in range(cell.states):
            through_weights = _dynamics(cell, params, derivatives, u)
            I_t = {
                **_immediate(params, cell.inputs, x_t, derivatives.alpha[u]),
                **_immediate(params, cell.recurrent, read_tm1, derivatives.sigma[u]),
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
        return tuple(apply_mask(J, mask) for J in J_t), None

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
    eye = jnp.eye(params[names[0]]["kernel"].shape[-1], dtype=source.dtype)
    layers = {}
    for name, gate in zip(names, gates, strict=True):
        if gate is None:
            gate = jnp.zeros((source.shape[0], eye.shape[0]), source.dtype)
        bias = gate[:, :, None] * eye[None]  # [B, row, unit]
        layers[name] = {"kernel": bias[:, :, None, :] * source[:, None, :, None]}
        if "bias" in params[name]:
            layers[name]["bias"] = bias
    return layers


def _over_weights(rows: Array, like: Array) -> Array:
    """`[B, N]` broadcast over a parameter's own axes."""
    return rows.reshape(rows.shape + (1,) * (like.ndim - 2))


def _contract(influence: tuple[Params, ...], lambda_0: Vector, reset: Array | None) -> Params:
    """`lambda_0 . J_0`, summed over streams and units: the second term of (16)."""

    def leaf(*rows: Array) -> Array:
        rows = segment.where_reset(reset, 0.0, rows)
        terms = zip(lambda_0, rows, strict=True)
        return plain_total(jnp.einsum("bl,bl...->...", x, J) for x, J in terms)

    return jax.tree.map(leaf, *influence)


EXACT = segment.Memory(_init, _advance, _contract, full_adjoint)
