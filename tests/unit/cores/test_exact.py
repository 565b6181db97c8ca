"""What exact RTRL does at every step of a segment, and what once."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from snaprl.cores import BPTT, RTRL, OnlineRNN, sparsity

UNITS, INPUTS, STREAMS, STEPS = 16, 3, 2, 9
CELLS = {"gru": nn.GRUCell(UNITS), "lstm": nn.OptimizedLSTMCell(UNITS)}


def equations(jaxpr: Any) -> Iterator[Any]:
    """All of a program, whatever lies inside of what."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("method", [RTRL(), BPTT(tail=RTRL())], ids=str)
@pytest.mark.parametrize("fan_in", [None, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_no_step_touches_the_influence(cell, fan_in, method):
    """A product of its size for each step is N times what all else costs."""
    if fan_in is not None:
        mask = sparsity.mask(CELLS[cell], INPUTS, sparsity.fixed_fan_in(fan_in))
    else:
        mask = None
    rnn = OnlineRNN(CELLS[cell], method, mask)
    carry = rnn.initialize_carry(jax.random.key(0), (STREAMS, INPUTS))
    xs = jnp.ones((STEPS, STREAMS, INPUTS))
    variables = rnn.init(jax.random.key(1), carry, xs)
    influence = max(leaf.size for leaf in jax.tree.leaves(carry.influence)) // STREAMS
    program = jax.make_jaxpr(rnn.apply)(variables, carry, xs)
    loops = [
        equation.params["jaxpr"]
        for equation in equations(program.jaxpr)
        if equation.primitive.name == "scan" and equation.params["length"] == STEPS
    ]
    assert len(loops) >= 2, "forward, and P"
    for loop in loops:
        sizes = [x.aval.size for e in equations(loop.jaxpr) for x in e.outvars]
        assert max(sizes) < influence
