"""Order 3 where it is neither order 2 nor all there is: on a ring of units with one chord."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.probe import assert_close
from contract.test_general import CELLS, drawn, gradients
from jax.flatten_util import ravel_pytree

from snaprl.cores import BPTT, RTRL, SnAp, reach
from snaprl.cores.cells import unitwise

pytestmark = pytest.mark.usefixtures("x64")

N, T = 7, 6
RING = np.roll(np.eye(N, dtype=bool), 1, axis=1)  # unit i reads unit i - 1, and itself
RING |= np.eye(N, dtype=bool)
RING[4, 1] = True  # unit 1 reads unit 4 as well

FEW = {
    "simple": nn.SimpleCell(N, param_dtype=jnp.float64),
    "gru": nn.GRUCell(N, param_dtype=jnp.float64),
}


def gradient(monkeypatch, name, method, split):
    cell = FEW[name]
    monkeypatch.setitem(CELLS, name, (cell, (2,)))
    mask = {layer: {"kernel": RING} for layer in unitwise(cell).recurrent}
    rnn, variables, carry, *segment = drawn(name, method, mask=mask, steps=T)
    assert sum(split) == T
    grads, xs, after = gradients(rnn, variables, carry, *segment, split)
    return ravel_pytree(grads)[0], xs, after


def test_order_3_is_a_part_of_the_closure():
    reads = RING & ~np.eye(N, dtype=bool)
    two, three, all_of_it = (reach.reach(reads, order) for order in (2, 3, reach.EVERYTHING))
    assert two.sum() < three.sum() < all_of_it.sum() == N * N
    assert not (two & ~three).any()


@pytest.mark.parametrize(
    ("name", "split", "tail"),
    [
        ("simple", (1, 5), False),
        pytest.param("simple", (3, 3), True, marks=pytest.mark.slow),
        pytest.param("gru", (2, 1, 3), False, marks=pytest.mark.slow),
        ("gru", (1, 5), True),
    ],
)
def test_both_paths_are_one(monkeypatch, name, split, tail):
    """The general path knows nothing of units: entries of (4) and (5), as they are written."""
    methods = SnAp(3), SnAp(3, entries=True)
    fast, slow = (
        gradient(monkeypatch, name, BPTT(tail=m) if tail else m, split)[0] for m in methods
    )
    assert_close(fast, slow)


def test_it_is_neither_order_2_nor_exact(monkeypatch):
    found = [gradient(monkeypatch, "simple", m, (3, 3))[0] for m in (SnAp(2), SnAp(3), RTRL())]
    assert np.abs(found[1] - found[0]).max() > 1e-3
    assert np.abs(found[1] - found[2]).max() > 1e-3


def test_the_influence_is_that_of_three_steps(monkeypatch):
    """(5) with dense matrices, masked by S_3, on jax's own Jacobians."""
    cell, split = FEW["simple"], (T,)
    monkeypatch.setitem(CELLS, "simple", (cell, (2,)))
    mask = {"h": {"kernel": RING}}
    rnn, variables, carry, xs, resets, weights = drawn("simple", SnAp(3), mask=mask, steps=T)
    params = dict(variables["params"]["cell"])
    params["h"] = {"kernel": jnp.where(RING, params["h"]["kernel"], 0)}
    theta, unravel = ravel_pytree(params)

    def step(h, t, x):
        return cell.apply({"params": unravel(t)}, h[None], x[None])[1][0]

    linearise = jax.jit(jax.jacobian(step, (0, 1)))
    unit = np.asarray(ravel_pytree(jax.tree.map(_units, params))[0]).astype(int)
    there = np.asarray(ravel_pytree({**jax.tree.map(jnp.ones_like, params), "h": mask["h"]})[0])
    reads = RING & ~np.eye(N, dtype=bool)
    S = reach.reach(reads, 3)[unit].T * there  # [N, P]
    expected = 0.0
    for b in range(xs.shape[1]):
        h, J = np.zeros(N), np.zeros(S.shape)
        for t in range(T):
            if resets[t, b]:
                h, J = np.zeros(N), np.zeros(S.shape)
            D_t, I_t = linearise(h, theta, xs[t, b])
            h, J = step(h, theta, xs[t, b]), S * (np.asarray(I_t) + np.asarray(D_t) @ J)
            expected += weights[t, b] @ J
    found, _, _ = gradients(rnn, variables, carry, xs, resets, weights, split)
    np.testing.assert_allclose(ravel_pytree(found)[0], expected, rtol=1e-12, atol=1e-12)


def _units(p):
    return jnp.broadcast_to(jnp.arange(N, dtype=float), p.shape)
