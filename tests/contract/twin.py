"""A slow, obvious twin of every method: dense Jacobians, masked by a pattern, step by step.

    h_t = f(theta, h_tm1, x_t)                    (1)
    J_t = S * (I_t + D_t J_tm1)                   (2), (5)
    dL/dtheta = sum_t (dL_t/dh_t) J_t             (3)

D_t and I_t are jax's Jacobians of flax's own cell. S is had from structure, never from values: a
weight belongs to the unit at the last index of its array, and (4) closes S_1 over that unit's state
variables. A state is the vector of all its variables in flax's order: `[c, h]` for an LSTM.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from contract.probe import Outcome, Segment, shapes
from contract.registry import CELLS, METHODS, N, Pattern
from jax.flatten_util import ravel_pytree

from snaprl.cores import CoreState


class Stand(NamedTuple):
    """Where the streams stand."""

    state: np.ndarray  # [B, U N]
    influence: np.ndarray  # [B, U N, P]


class Result(NamedTuple):
    """What a segment gives."""

    stand: Stand
    ys: np.ndarray  # [T, B, N]
    params: np.ndarray  # [P]  dL/dtheta
    xs: np.ndarray  # [T, B, M]  dL/dxs


def flat(params: Any) -> np.ndarray:
    """A tree shaped like the parameters as the vector theta."""
    return np.asarray(ravel_pytree(params)[0])


def unflat(cell: str, theta: np.ndarray) -> Any:
    """Undoes `flat`."""
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape), shapes(cell))
    return ravel_pytree(zeros)[1](jnp.asarray(theta))


def flat_state(hidden: Any) -> np.ndarray:
    """flax's carry as `[B, U N]`."""
    return np.concatenate([np.asarray(h) for h in jax.tree.leaves(hidden)], axis=-1)


def unit_of_weight(cell: str) -> np.ndarray:
    """For each entry of theta, the unit that it enters: the last index of its array."""
    return flat(jax.tree.map(lambda p: np.broadcast_to(np.arange(N), p.shape), shapes(cell)))


def flat_influence(method: str, cell: str, influence: Any, streams: int) -> np.ndarray:
    """A method's influence as the dense J `[B, U N, P]`."""
    unit = unit_of_weight(cell)
    pattern = METHODS[method].influence
    if pattern is Pattern.NONE:
        assert influence == ()
        return np.zeros((streams, state_size(cell), len(unit)))
    rows = []
    for tree in influence:  # one per state variable
        if pattern is Pattern.ALL:
            rows.append(
                np.stack([[flat(take(tree, b, i)) for i in range(N)] for b in range(streams)])
            )
        else:
            kept = np.stack([flat(take(tree, b)) for b in range(streams)])
            rows.append(np.where(np.arange(N)[:, None] == unit, kept[:, None, :], 0.0))
    return np.concatenate(rows, axis=1)


def stand(method: str, cell: str, carry: CoreState) -> Stand:
    """Where a carry of `OnlineRNN` stands."""
    state = flat_state(carry.hidden)
    return Stand(state, flat_influence(method, cell, carry.influence, len(state)))


def result(method: str, cell: str, outcome: Outcome) -> Result:
    """What `OnlineRNN` gave, as the twin would write it."""
    theta = flat(outcome.params["cell"])
    return Result(stand(method, cell, outcome.carry), outcome.ys, theta, outcome.xs)


def take(tree: Any, *index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def state_size(cell: str) -> int:
    return N * len(jax.tree.leaves(CELLS[cell].initialize_carry(jax.random.key(0), (1, 1))))


@lru_cache
def jacobians(cell: str):
    """`(theta, h_tm1 [B, U N], x_t [B, M]) -> (h_t, D_t, I_t, dh_t/dx_t)` of flax's cell."""
    flax_cell: nn.RNNCellBase = CELLS[cell]
    carry = flax_cell.initialize_carry(jax.random.key(0), (1, 1))
    variables = len(jax.tree.leaves(carry))

    def step(h_tm1: jax.Array, theta: jax.Array, x_t: jax.Array) -> jax.Array:
        parts = jax.tree.unflatten(jax.tree.structure(carry), jnp.split(h_tm1, variables))
        after, _ = flax_cell.apply({"params": unflat(cell, theta)}, parts, x_t)
        return jnp.concatenate(jax.tree.leaves(after))

    def linearise(h_tm1: jax.Array, theta: jax.Array, x_t: jax.Array) -> tuple:
        return step(h_tm1, theta, x_t), *jax.jacobian(step, (0, 1, 2))(h_tm1, theta, x_t)

    return jax.jit(jax.vmap(linearise, in_axes=(0, None, 0)))


def unroll(
    method: str, cell: str, params: Any, mask: Any, stand: Stand, segment: Segment
) -> Result:
    """One segment from `stand`, one stream and one step after the other."""
    row = METHODS[method]
    keep = flat(mask).astype(bool)
    theta = np.where(keep, flat(params), 0.0)
    size, (steps, streams, inputs) = state_size(cell), segment.xs.shape
    unit = np.arange(size) % N
    same_unit = unit[:, None] == unit
    # (4), and a weight that is masked away has no influence
    S = {
        Pattern.NONE: np.zeros((size, len(theta)), bool),
        Pattern.UNITS: (unit[:, None] == unit_of_weight(cell)) & keep,
        Pattern.ALL: np.ones((size, len(theta)), bool) & keep,
    }[row.influence]
    initial = flat_state(CELLS[cell].initialize_carry(jax.random.key(0), (streams, inputs)))

    h, J = (np.array(x) for x in stand)
    J_0 = J.copy()
    ys, linear = [], []
    by_influence = np.zeros_like(theta)
    for t in range(steps):
        h = np.where(segment.resets[t][:, None], initial, h)
        h, *steps_t = (np.array(x) for x in jacobians(cell)(h, theta, segment.xs[t]))
        for b, (D_t, I_t, _) in enumerate(zip(*steps_t, strict=True)):
            if segment.resets[t, b]:
                J[b] = 0.0
            J[b] = S * (I_t + D_t @ J[b])  # (2), (5)
            by_influence += segment.weights[t, b] @ J[b, -N:]  # (3): y is the last variable
        ys.append(h[:, -N:])
        linear.append(steps_t)

    # lambda_t = dL_t/dh_t + D_{t+1}^T lambda_{t+1}, with as much of D as the method looks at (11)
    by_adjoint, dxs = np.zeros_like(theta), np.zeros(segment.xs.shape)
    for b in range(streams):
        lambda_ = np.zeros(size)
        for t in reversed(range(steps)):
            D_t, I_t, dh_dx = (x[b] for x in linear[t])
            lambda_[-N:] += segment.weights[t, b]
            by_adjoint += lambda_ @ I_t
            dxs[t, b] = lambda_ @ dh_dx
            D_t = D_t if row.adjoint is Pattern.ALL else np.where(same_unit, D_t, 0.0)
            lambda_ = np.zeros(size) if segment.resets[t, b] else lambda_ @ D_t
        by_adjoint += lambda_ @ J_0[b]  # (16)
    by_adjoint = np.where(keep, by_adjoint, 0.0)

    # where the adjoint looks at what the influence keeps, (3) is the definition
    gradient = by_influence if row.influence is row.adjoint else by_adjoint
    gradient = gradient if row.learns else np.zeros_like(theta)
    return Result(Stand(h, J), np.stack(ys), gradient, dxs)
