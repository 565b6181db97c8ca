"""A slow, obvious twin of every method: dense Jacobians, masked by a pattern, step by step.

    h_t = f(theta, h_tm1, x_t)                    (1)
    J_t = S * (I_t + D_t J_tm1)                   (2), (5)
    dL/dtheta = sum_t (dL_t/dh_t) J_t             (3)

D_t and I_t are jax's Jacobians of flax's own cell. S is had from structure, never from values: a
weight belongs to the unit at the last index of its array, and (4) closes S_1 over that unit's state
variables. A state is the vector of all its variables in flax's order: `[c, h]` for an LSTM.
"""

import contextlib
import itertools
from functools import lru_cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from contract import probe
from contract.probe import Outcome, Segment, shapes
from contract.registry import CELLS, METHODS, READOUTS, N, Pattern
from jax.flatten_util import ravel_pytree

from snaprl.cores import CoreState, reach
from snaprl.cores.cells import unitwise


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


@lru_cache
def unit_of_weight(cell: str) -> np.ndarray:
    """For each entry of theta, the unit that it enters: the last index of its array."""
    return flat(jax.tree.map(lambda p: np.broadcast_to(np.arange(N), p.shape), shapes(cell)))


def flat_influence(method: str, cell: str, carry: CoreState, variables: Any) -> np.ndarray:
    """A method's influence as the dense J `[B, U N, P]`."""
    unit = unit_of_weight(cell)
    pattern, influence = METHODS[method].influence, carry.influence
    streams = len(flat_state(carry.hidden))
    if pattern is Pattern.NONE:
        assert influence == ()
        return np.zeros((streams, state_size(cell), len(unit)))
    found = probe.with_pattern(probe.core(method, cell), variables)["sparsity"].get("pattern")
    rows = []
    for tree in influence:  # one per state variable
        if found is not None:
            rows.append(from_pairs(cell, np.asarray(tree), found))
        elif pattern is Pattern.ALL:
            rows.append(
                np.stack([[flat(take(tree, b, i)) for i in range(N)] for b in range(streams)])
            )
        else:
            kept = np.stack([flat(take(tree, b)) for b in range(streams)])
            rows.append(np.where(np.arange(N)[:, None] == unit, kept[:, None, :], 0.0))
    return np.concatenate(rows, axis=1)


def from_pairs(cell: str, J: np.ndarray, found: reach.Pattern) -> np.ndarray:
    """`[B, E, L]` as the dense `[B, N, P]`: pairs (r, q) are rows of the weights into q."""
    places = place_of_weights(cell, found)  # [N, L]
    dense = np.zeros((len(J), N, len(unit_of_weight(cell)) + 1))
    for e, (r, q) in enumerate(zip(found.row, found.unit, strict=True)):
        if r == N:  # nobody's
            assert q == N
            assert not J[:, e].any()
            continue
        nowhere = places[q] == dense.shape[-1] - 1
        assert not J[:, e, nowhere].any()
        dense[:, r, places[q]] = J[:, e]
    return dense[..., :-1]


def place_of_weights(cell: str, found: reach.Pattern) -> np.ndarray:
    """For every entry of a unit's row the entry of theta that it is, P where it is none."""
    tree = unflat(cell, np.arange(len(unit_of_weight(cell))))
    blocks = []
    view = unitwise(CELLS[cell])
    for name in (*view.inputs, *view.recurrent):
        kernel = np.asarray(tree[name]["kernel"])
        listed = np.append(kernel, np.full((1, N), len(unit_of_weight(cell))), axis=0)
        blocks.append(listed[found.fan_in[name].inputs, np.arange(N)].T)
        if "bias" in tree[name]:
            blocks.append(np.asarray(tree[name]["bias"])[:, None])
    blocks += [np.asarray(tree[name])[:, None] for name in view.local]
    return np.concatenate(blocks, -1).astype(int)


def reached(cell: str, mask: Any, order: int | None) -> np.ndarray:
    """Which units r a weight into unit i reaches in n - 1 steps of the core, `[r, i]` (4)."""
    reads = np.eye(N, dtype=bool)
    for name, layer in mask.items():
        if name.startswith("h"):  # flax's recurrent layers
            reads |= np.asarray(layer["kernel"]).T.astype(bool)
    S = np.eye(N, dtype=bool)
    for _ in range(N if order is None else order - 1):
        S = S | (reads @ S)
    return S


def stand(method: str, cell: str, carry: CoreState, variables: Any) -> Stand:
    """Where a carry of `OnlineRNN` stands."""
    return Stand(flat_state(carry.hidden), flat_influence(method, cell, carry, variables))


def result(method: str, cell: str, outcome: Outcome, variables: Any) -> Result:
    """What `OnlineRNN` gave, as the twin would write it."""
    theta = flat(outcome.params["cell"])
    return Result(stand(method, cell, outcome.carry, variables), outcome.ys, theta, outcome.xs)


def take(tree: Any, *index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def state_size(cell: str) -> int:
    return N * len(jax.tree.leaves(CELLS[cell].initialize_carry(jax.random.key(0), (1, 1))))


def without_weights(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """For flax's `intercept_methods`: nothing flows back through a recurrent layer."""
    if isinstance(context.module, nn.Dense) and context.module.name.startswith("h"):
        args = jax.lax.stop_gradient(args)
    return next_call(*args, **kwargs)


@lru_cache
def jacobians(cell: str, own: bool = False):
    """`(h_tm1 [B, U N], theta, x_t [B, M]) -> (h_t, y_t, D_t, I_t, dh_t/dx_t)` of flax's cell.

    With `own`, D_t is what a unit keeps of itself, whatever its weights are.
    """
    # flax's optimized cell has the parameters of the other, and no layers that could be stopped
    flax_cell: nn.RNNCellBase = CELLS["lstm" if own and cell == "optimized-lstm" else cell]
    carry = flax_cell.initialize_carry(jax.random.key(0), (1, 1))
    variables = len(jax.tree.leaves(carry))

    def step(h_tm1: jax.Array, theta: jax.Array, x_t: jax.Array) -> tuple:
        parts = jax.tree.unflatten(jax.tree.structure(carry), jnp.split(h_tm1, variables))
        with nn.intercept_methods(without_weights) if own else contextlib.nullcontext():
            after, y_t = flax_cell.apply({"params": unflat(cell, theta)}, parts, x_t)
        h_t = jnp.concatenate(jax.tree.leaves(after))
        return h_t, (h_t, y_t)

    def linearise(h_tm1: jax.Array, theta: jax.Array, x_t: jax.Array) -> tuple:
        linear, values = jax.jacobian(step, (0, 1, 2), has_aux=True)(h_tm1, theta, x_t)
        return *values, *linear

    return jax.jit(jax.vmap(linearise, in_axes=(0, None, 0)))


@lru_cache
def readout(cell: str):
    """`h_t [B, U N] -> (y_t, dy_t/dh_t)`."""
    read = READOUTS.get(cell, lambda h: h[-N:])
    return jax.jit(jax.vmap(lambda h: (read(h), jax.jacobian(read)(h))))


def unroll(
    method: str, cell: str, params: Any, mask: Any, stand: Stand, segment: Segment
) -> Result:
    """One segment from `stand`, one stream and one step after the other."""
    row = METHODS[method]
    keep = flat(mask).astype(bool)
    theta = np.where(keep, flat(params), 0.0)
    size, (steps, streams, inputs) = state_size(cell), segment.xs.shape
    unit = np.arange(size) % N
    # (4), and a weight that is masked away has no influence
    S = reached(cell, mask, row.influence.order)[unit][:, unit_of_weight(cell)] & keep
    S &= row.influence is not Pattern.NONE
    own = row.influence is Pattern.OWN
    initial = flat_state(CELLS[cell].initialize_carry(jax.random.key(0), (streams, inputs)))

    h, J = (np.array(x) for x in stand)
    J_0 = J.copy()
    ys, linear, direct = [], [], []
    by_influence = np.zeros_like(theta)
    for t in range(steps):
        h = np.where(segment.resets[t][:, None], initial, h)
        own_D = np.array(jacobians(cell, own=True)(h, theta, segment.xs[t])[2]) if own else None
        h, y, *steps_t = (np.array(x) for x in jacobians(cell)(h, theta, segment.xs[t]))
        D = steps_t[0] if own_D is None else own_D  # what the influence follows
        steps_t[0] = D if row.adjoint is row.influence else steps_t[0]
        read, dy_dh = (np.asarray(x) for x in readout(cell)(h))
        np.testing.assert_allclose(read, y, rtol=1e-14, atol=1e-300)
        weights = np.asarray(probe.widened(segment.weights[t], y))
        direct.append(np.einsum("bo,boh->bh", weights, dy_dh))  # dL_t/dh_t
        for b, I_t in enumerate(steps_t[1]):
            if segment.resets[t, b]:
                J[b] = 0.0
            J[b] = S * (I_t + D[b] @ J[b])  # (2), (5)
            by_influence += direct[t][b] @ J[b]  # (3)
        ys.append(y)
        linear.append(steps_t)

    # lambda^i_t = (dL_t/dh_t)[S_i] + D_{t+1}[S_i, S_i]^T lambda^i_{t+1}: for the weights into unit
    # i, with as much of D as the method looks at (11), (15)
    by_adjoint, dxs = np.zeros_like(theta), np.zeros(segment.xs.shape)
    ways = reached(cell, mask, row.adjoint.order)
    for b, i in itertools.product(range(streams), range(N)):
        S_i, into_i = ways[unit, i], unit_of_weight(cell) == i
        lambda_ = np.zeros(size)
        for t in reversed(range(steps)):
            D_t, I_t, dh_dx = (x[b] for x in linear[t])
            lambda_ += direct[t][b]
            lambda_ *= S_i
            by_adjoint[into_i] += lambda_ @ I_t[:, into_i]
            dxs[t, b] += lambda_[unit == i] @ dh_dx[unit == i]
            D_t = D_t if row.adjoint is not Pattern.NOW else np.zeros_like(D_t)
            lambda_ = np.zeros(size) if segment.resets[t, b] else lambda_ @ D_t * S_i
        by_adjoint[into_i] += lambda_ @ J_0[b][:, into_i]  # (16)
    by_adjoint = np.where(keep, by_adjoint, 0.0)

    # where the adjoint looks at what the influence keeps, (3) is the definition
    gradient = by_influence if row.influence is row.adjoint else by_adjoint
    gradient = gradient if row.learns else np.zeros_like(theta)
    return Result(Stand(h, J), np.stack(ys), gradient, dxs)
