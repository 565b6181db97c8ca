"""The mask and the pattern lie side by side in the variables, and belong together."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.probe import assert_close

from snaprl.cores import BPTT, RTRL, OnlineRNN, SnAp, rewire

pytestmark = pytest.mark.usefixtures("x64")

N, M, B, T = 4, 2, 2, 3
CELL = nn.SimpleCell(N, param_dtype=jnp.float64)
XS = np.random.default_rng(0).normal(size=(T, B, M))
SPARSE, DENSE = (
    {"h": {"kernel": keep}} for keep in (np.eye(N, k=1, dtype=bool), np.ones((N, N), bool))
)
MISSING = r"the variables have a mask, sparsity/cell, and no sparsity/pattern, which SnAp\(order=2"


def made(method, mask=SPARSE, cell=CELL):
    """`(rnn, carry, variables)`, whose parameters are the same for every method and mask."""
    rnn = OnlineRNN(cell, method, mask=mask)
    carry = rnn.initialize_carry(jax.random.key(0), (B, M))
    return rnn, carry, rnn.init(jax.random.key(1), carry, XS)


def gradient(rnn, variables, carry):
    """After two segments."""

    def loss(params, carry):
        after, ys = rnn.apply({**variables, "params": params}, carry, XS)
        return (ys**2).sum(), after

    learn = jax.jit(jax.grad(loss, has_aux=True))
    _, carry = learn(variables["params"], carry)
    return learn(variables["params"], carry)[0]


@pytest.mark.parametrize("way", ["no pattern at all", "a new mask under cell alone"])
def test_a_mask_without_its_pattern_is_refused(way):
    rnn, carry, variables = made(SnAp(2))
    mask = SPARSE if way == "no pattern at all" else DENSE
    variables = {**variables, "sparsity": {"cell": mask}}
    with pytest.raises(ValueError, match=MISSING):
        rnn.apply(variables, carry, XS)
    # the way out that it names
    variables, _ = rewire(rnn, variables, SPARSE, (B, M))
    assert_close(gradient(rnn, variables, carry), gradient(*_in_order(made(SnAp(2)))))
    # acting needs none
    rnn.apply({**variables, "sparsity": {"cell": mask}}, carry, XS[0], method="step")


def test_a_pattern_of_another_method_is_refused():
    """Of a ring: in each step further a weight reaches one unit more."""
    ring = {"h": {"kernel": np.roll(np.eye(N, dtype=bool), 1, axis=1)}}
    _, _, variables = made(SnAp(2), ring)
    for method in (SnAp(3), RTRL(), SnAp(2, entries=True)):
        rnn, carry, _ = made(method, ring)
        with pytest.raises(ValueError, match="does not have the shapes that"):
            rnn.apply(variables, carry, XS)


@pytest.mark.parametrize("method", [SnAp(1), SnAp(0), BPTT(), BPTT(tail=SnAp(1))])
def test_a_method_without_a_pattern_takes_the_variables_of_one_that_has(method):
    rnn, carry, variables = made(method)
    other = made(SnAp(2))[2]
    assert "pattern" in other["sparsity"]
    assert "pattern" not in variables["sparsity"]
    assert_close(gradient(rnn, other, carry), gradient(rnn, variables, carry))
    changed, after = rewire(rnn, other, SPARSE, (B, M), carry)
    assert "pattern" not in changed["sparsity"]
    assert_close(after, carry)


def _in_order(parts):
    rnn, carry, variables = parts
    return rnn, variables, carry
