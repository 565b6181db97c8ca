"""What exact RTRL does at every step of a segment, and what once."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snaprl.cores import BPTT, RTRL, Mask, OnlineRNN, exact, sparsity

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


@pytest.mark.parametrize("most", [1, 2, 4, STEPS])
@pytest.mark.parametrize("fan_in", [None, 2])
def test_long_segments_go_by_pieces(fan_in, most, monkeypatch):
    mask = fan_in and sparsity.mask(CELLS["lstm"], INPUTS, sparsity.fixed_fan_in(fan_in))
    rnn = OnlineRNN(CELLS["lstm"], RTRL(), mask)
    carry = rnn.initialize_carry(jax.random.key(0), (STREAMS, INPUTS))
    xs = jax.random.normal(jax.random.key(2), (STEPS, STREAMS, INPUTS))
    resets = jax.random.bernoulli(jax.random.key(3), 0.1, (STEPS, STREAMS))
    variables = rnn.init(jax.random.key(1), carry, xs)
    expected, _ = jax.jit(rnn.apply)(variables, carry, xs, resets)
    monkeypatch.setattr(exact, "AT_ONCE", most)
    found, _ = jax.jit(lambda *arguments: rnn.apply(*arguments))(variables, carry, xs, resets)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_blocks_that_never_hear_of_each_other(cell):
    """With room for more the influence goes through one matrix, and without by lists."""
    blocks = np.kron(np.eye(4), np.ones((UNITS // 4, UNITS // 4))).astype(bool)
    mask = sparsity.mask(CELLS[cell], INPUTS, lambda shape, seed: blocks)
    xs = jax.random.normal(jax.random.key(2), (2, STEPS, STREAMS, INPUTS))
    found = []
    for room in (1.0, 8.0):
        rnn = OnlineRNN(CELLS[cell], RTRL(), Mask(mask, room=room))
        carry = rnn.initialize_carry(jax.random.key(0), (STREAMS, INPUTS))
        variables: Any = rnn.init(jax.random.key(1), carry, xs[0])

        def loss(params, carry, xs, rnn=rnn, variables=variables):
            outcome: Any = rnn.apply({**variables, "params": params}, carry, xs)
            return (outcome[1] ** 2).sum(), outcome[0]

        gradient = jax.jit(jax.grad(loss, has_aux=True))
        _, carry = gradient(variables["params"], carry, xs[0])
        found.append(gradient(variables["params"], carry, xs[1])[0])
        reach = len(variables["sparsity"]["pattern"].columns)
        assert (2 * reach < UNITS) == (room == 1.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *found)
