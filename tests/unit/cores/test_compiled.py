"""What XLA makes of a segment: what is known of a unit is not done again for each weight."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from snaprl.cores import RFLO, OnlineRNN, SnAp

UNITS, INPUTS = 8, 5
ARITHMETIC = re.compile(r" (?:add|subtract|multiply|divide|negate|exponential|tanh|power)\(")


def loops(method, steps, streams):
    """For every fused loop over the recurrent influence, how many operations it does per entry."""
    rnn = OnlineRNN(nn.GRUCell(UNITS), method)
    carry = rnn.initialize_carry(jax.random.key(0), (streams, INPUTS))
    xs, resets = jnp.ones((steps, streams, INPUTS)), jnp.zeros((steps, streams), bool)
    variables = rnn.init(jax.random.key(1), carry, xs)

    def loss(variables, carry, xs, resets):
        carry, ys = rnn.apply(variables, carry, xs, resets=resets)
        return (ys**2).sum(), carry

    compiled = jax.jit(jax.grad(loss, has_aux=True)).lower(variables, carry, xs, resets).compile()
    text = str(compiled.as_text())
    shape = rf"f32\[{streams},{UNITS},{UNITS}\]"
    return [
        len(ARITHMETIC.findall(body))
        for body in re.findall(r"%fused_computation.*?\n\}", text, re.DOTALL)
        if re.search(rf"ROOT \S+ = {shape}", body)
    ]


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("method", [SnAp(), RFLO()], ids=str)
def test_the_influence_is_gone_over_with_two_operations_a_step(method, steps, streams):
    counts = loops(method, steps, streams)
    assert counts, "no loop over the influence was found"
    # (13): the old one times a decay, and a product and a sum for each step
    assert max(counts) <= 2 * steps + 1
