"""A gradient that is taken outside of the program that ran the segment is the same one.

What the backward pass reads then has left the jit, the loop or the checkpoint that made it: a rule
that kept anything of that to itself would fail here.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import probe
from contract.registry import IN_64, METHODS, B, M, N

from snaprl.cores import BPTT, RTRL, OnlineRNN, SnAp

pytestmark = pytest.mark.usefixtures("x64")

T = 2
RING = {"h": {"kernel": np.roll(np.eye(N, dtype=int), 1, axis=0)}}
MIXING = nn.GRUCell(**IN_64, gate_fn=nn.softmax)  # on the general path
ROWS: dict[str, tuple[nn.RNNCellBase, Any, Any]] = {
    **{name: (nn.SimpleCell(**IN_64), row.method, None) for name, row in METHODS.items()},
    "snap2, sparse": (nn.SimpleCell(**IN_64), SnAp(order=2), RING),
    "tail-snap2, sparse": (nn.SimpleCell(**IN_64), BPTT(tail=SnAp(order=2)), RING),
    "tail-snap1, pieces": (nn.SimpleCell(**IN_64), BPTT(tail=SnAp(order=1), pieces=2), None),
    "snap1, any cell": (MIXING, SnAp(order=1), None),
    "rtrl, any cell": (MIXING, RTRL(), None),
    "tail-snap1, any cell": (MIXING, BPTT(tail=SnAp(order=1), pieces=2), None),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_gradient_from_outside_is_the_gradient(name):
    cell, method, mask = ROWS[name]
    rnn, rng = OnlineRNN(cell, method, mask=mask), np.random.default_rng(96)
    xs, weights = (jnp.asarray(rng.normal(size=(2, T, B, size))) for size in (M, N))
    fresh = rnn.initialize_carry(jax.random.key(0), (B, M))
    variables = jax.jit(rnn.init)(jax.random.key(1), fresh, xs[0])

    def loss(params, carry, xs, weights):
        carry, ys = rnn.apply(variables | {"params": params}, carry, xs)
        return jnp.vdot(weights, ys), carry

    def by_scan(params, carry, xs, weights):
        def body(carry, inputs):
            value, carry = loss(params, carry, *inputs)
            return carry, value

        carry, values = jax.lax.scan(body, carry, (xs, weights))
        return values.sum(), carry

    def gradient(loss):
        return jax.grad(loss, argnums=(0, 2), has_aux=True)

    params = variables["params"]
    first, carry = jax.jit(gradient(loss))(params, fresh, xs[0], weights[0])
    second, end = jax.jit(gradient(loss))(params, carry, xs[1], weights[1])
    for outside in (jax.jit(loss), jax.checkpoint(loss)):
        probe.assert_close(gradient(outside)(params, carry, xs[1], weights[1]), (second, end))
    summed, last = gradient(by_scan)(params, fresh, xs, weights)
    both = jax.tree.map(jnp.add, first[0], second[0]), jnp.stack([first[1], second[1]])
    probe.assert_close((summed, last), (both, end))
