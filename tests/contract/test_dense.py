"""Dense recurrent weights: order 2 is exact, and RTRL keeps whole Jacobians, unit by unit."""

import jax
import pytest
from contract import probe
from contract.registry import CELLS, B, M
from contract.test_exactness import flax_gradient

from snaprl.cores import BPTT, RTRL, OnlineRNN, SnAp

pytestmark = pytest.mark.usefixtures("x64")

SPLITS = [(4,), (1, 3), (1, 1, 2)]


@pytest.mark.parametrize("cell", ["residual", "gru", "lstm"])
@pytest.mark.parametrize("method", [RTRL(), SnAp(order=2), SnAp(order=5), BPTT(tail=RTRL())])
def test_without_a_mask_they_are_the_gradient_of_the_whole_history(method, cell):
    rnn = OnlineRNN(CELLS[cell], method)
    params = probe.draw_params(cell, 81)
    segment = probe.draw_segment(81, 4, reset_rate=0.2)
    expected, _ = flax_gradient(cell)(params, segment)

    @jax.jit
    def gradient(params, carry, segment):
        def loss(params):
            variables = {"params": {"cell": params}}
            carry_t, ys = rnn.apply(variables, carry, segment.xs, segment.resets)
            return (segment.weights * ys).sum(), carry_t

        return jax.grad(loss, has_aux=True)(params)

    for split in SPLITS:
        carry, total = rnn.initialize_carry(jax.random.key(0), (B, M)), None
        for piece in segment.cut(*split):
            found, carry = gradient(params, carry, piece)
            total = found if total is None else jax.tree.map(lambda a, b: a + b, total, found)
        probe.assert_close(total, expected)


def test_a_fresh_carry_holds_every_buffer_once():
    """Otherwise it could not be donated."""
    for method in (RTRL(), SnAp(), SnAp(order=2)):
        carry = OnlineRNN(CELLS["lstm"], method).initialize_carry(jax.random.key(0), (B, M))
        places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(carry.influence)]
        assert len(set(places)) == len(places)
