"""What XLA makes of a segment: what is known of a unit is not done again for each weight."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snaprl.cores import RFLO, OnlineRNN, SnAp, compiler_options, sparsity
from snaprl.cores.streams import TERMS

UNITS, INPUTS = 6, 5
CELL = nn.GRUCell(UNITS)
ARITHMETIC = re.compile(r" (?:add|subtract|multiply|divide|negate|exponential|tanh|power)\(")


def lowered(method, steps, streams, cell=CELL, mask=None):
    """A gradient whose carry is donated, and its arguments."""
    rnn = OnlineRNN(cell, method, mask)
    carry = rnn.initialize_carry(jax.random.key(0), (streams, INPUTS))
    xs = jax.random.normal(jax.random.key(2), (steps, streams, INPUTS))
    resets = jax.random.bernoulli(jax.random.key(3), 0.2, (steps, streams))
    variables = rnn.init(jax.random.key(1), carry, xs)

    params = variables.pop("params")

    def loss(params, variables, carry, xs, resets):
        carry, ys = rnn.apply({"params": params, **variables}, carry, xs, resets=resets)
        return (ys**2).sum(), carry

    grad = jax.jit(jax.grad(loss, has_aux=True), donate_argnums=2)
    arguments = (params, variables, carry, xs, resets)
    return grad.lower(*arguments), arguments


def loops(method, steps, streams):
    """For every fused loop over the recurrent influence, how many operations it does per entry."""
    text = str(lowered(method, steps, streams)[0].compile().as_text())
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


@pytest.mark.parametrize("steps, streams", [(2, 3), (8, 3), (20, 3), (8, TERMS**2), (2, TERMS + 1)])
def test_with_our_options_the_influence_is_replaced_in_place(steps, streams):
    program, (params, variables, carry, xs, resets) = lowered(SnAp(), steps, streams)
    plain, ours = program.compile(), program.compile(compiler_options())
    copies = re.compile(rf" = f32\[{streams},{UNITS},{UNITS}\]\S* copy\(")
    assert copies.search(str(plain.as_text())), "XLA needs to be told no more"
    assert not copies.search(str(ours.as_text()))
    ends = []
    for run in (plain, ours):
        end = jax.tree.map(jnp.copy, carry)
        for _ in range(3):
            grads, end = run(params, variables, end, xs, resets)
        ends.append((grads, end))
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_a_stream_of_pairs_is_copied_once_for_its_step_and_never_for_its_gradient():
    """Once it has to be: rows are written while others are still to be looked up."""
    cell = nn.GRUCell(64)  # lists of several lengths
    mask = sparsity.mask(cell, INPUTS, sparsity.fixed_fan_in(16))
    program, (_, _, carry, *_) = lowered(SnAp(2), 1, 3, cell, mask)
    text = str(program.compile(compiler_options()).as_text())
    _, pairs, weights = carry.influence[0].shape
    own = rf"= f32\[1,{pairs},{weights}\]\S* dynamic-slice\("  # of one stream, alone or in a loop
    assert len(re.findall(own, text)) == 1
