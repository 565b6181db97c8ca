"""Dense recurrent weights: order 2 is exact, and RTRL keeps whole Jacobians, unit by unit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import probe
from contract.registry import CELLS, B, M
from contract.test_exactness import flax_gradient

from snaprl.cores import BPTT, RTRL, OnlineRNN, SnAp

pytestmark = pytest.mark.usefixtures("x64")

SPLITS = [(4,), (1, 3), (3, 1), (1, 2, 1)]


@pytest.mark.parametrize("cell", ["residual", "gru", "lstm", "elstm", "rtu-nonlinear"])
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
            return jnp.vdot(probe.widened(segment.weights, ys), ys), carry_t

        return jax.grad(loss, has_aux=True)(params)

    for split in SPLITS:
        carry, total = rnn.initialize_carry(jax.random.key(0), (B, M)), None
        for piece in segment.cut(*split):
            found, carry = gradient(params, carry, piece)
            total = found if total is None else jax.tree.map(lambda a, b: a + b, total, found)
        probe.assert_close(total, expected)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("reset", [1, 2])
def test_what_is_not_a_number_ends_with_a_reset_in_the_middle(cell, reset):
    rnn, segment = OnlineRNN(CELLS[cell], RTRL()), probe.draw_segment(82, 3)
    variables = {"params": {"cell": probe.draw_params(cell, 82)}}
    segment.resets[reset, 1] = True
    carry = rnn.initialize_carry(jax.random.key(0), (B, M))
    sick = segment._replace(xs=segment.xs.copy())
    sick.xs[:reset, 1] = np.nan
    influence = jax.tree.map(lambda J: J.at[1].set(np.nan), carry.influence)
    run = jax.jit(rnn.apply)
    expected, _ = run(variables, carry, segment.xs, segment.resets)
    for start, xs in [(carry, sick.xs), (carry._replace(influence=influence), segment.xs)]:
        found, _ = run(variables, start, xs, segment.resets)
        probe.assert_close(found, expected, 0.0)


def test_a_fresh_carry_holds_every_buffer_once():
    """Otherwise it could not be donated."""
    for method in (RTRL(), SnAp(), SnAp(order=2)):
        carry = OnlineRNN(CELLS["lstm"], method).initialize_carry(jax.random.key(0), (B, M))
        places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(carry.influence)]
        assert len(set(places)) == len(places)
