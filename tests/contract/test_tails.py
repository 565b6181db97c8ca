"""Any method with an influence may be a tail: (16) with that influence, and nothing else."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.probe import assert_close
from jax.flatten_util import ravel_pytree

from snaprl.cores import BPTT, KFRTRL, OKRTRL, RFLO, RTRL, UORO, EProp, OnlineRNN, SnAp, Sparsity
from snaprl.cores.cells import unitwise
from snaprl.cores.segment import pack

pytestmark = pytest.mark.usefixtures("x64")

T, B, M, N = 4, 2, 2, 5
CELLS = {
    "gru": nn.GRUCell(N, param_dtype=jnp.float64),
    "lstm": nn.LSTMCell(N, param_dtype=jnp.float64),
}
TAILS = [
    *[SnAp(0), SnAp(1), SnAp(2), SnAp(3), RTRL(), RFLO(), EProp()],
    *[UORO(), KFRTRL(), OKRTRL(rank=2)],
]


def pairs(quick):
    """Every tail on every cell; in the fast suite those of `quick` on one cell."""
    rows = [(cell, tail, cell == "gru" and tail in quick) for cell in CELLS for tail in TAILS]
    return pytest.mark.parametrize(
        ("cell", "tail"),
        [
            pytest.param(cell, tail, id=f"{cell}-{tail}", marks=() if now else pytest.mark.slow)
            for cell, tail, now in rows
        ],
    )


RING = np.roll(np.eye(N, dtype=bool), 1, axis=1)  # unit i reads unit i - 1


class Run:
    """A core with a ring for a mask, and its gradients of a loss over two segments."""

    def __init__(self, cell, method):
        self.cell = CELLS[cell]
        names = unitwise(self.cell).recurrent
        self.mask = {name: {"kernel": RING} for name in names}
        self.rnn = OnlineRNN(self.cell, method, mask=self.mask)
        self.carry = self.rnn.initialize_carry(jax.random.key(0), (B, M))
        rng = np.random.default_rng(0)
        self.xs, self.weights = rng.normal(size=(2, T, B, M)), rng.normal(size=(2, T, B, N))
        self.resets = rng.random((2, T, B)) < 0.2
        variables = self.rnn.init(jax.random.key(1), self.carry, self.xs[0])
        theta, unravel = ravel_pytree(variables["params"])
        self.variables = {**variables, "params": unravel(rng.normal(0, 0.7, theta.shape))}
        self.gradient = jax.jit(jax.grad(self.loss, (0, 1), has_aux=True, allow_int=True))

    def loss(self, params, xs, carry, resets, weights):
        after, ys = self.rnn.apply({**self.variables, "params": params}, carry, xs, resets)
        return jnp.vdot(weights, ys), after

    def segment(self, number, carry):
        """`((d params, d xs), carry)`."""
        inputs = self.resets[number], self.weights[number]
        return self.gradient(self.variables["params"], self.xs[number], carry, *inputs)

    def lambda_0(self, carry):
        """dL/dh_0 of the second segment, by jax through flax's own cell."""
        initial = self.cell.initialize_carry(jax.random.key(0), (B, M))
        kept = jax.tree.map(lambda p: p, dict(self.variables["params"]["cell"]))
        for name, leaf in self.mask.items():
            kernel = jnp.where(leaf["kernel"], kept[name]["kernel"], 0)
            kept[name] = {**kept[name], "kernel": kernel}

        @jax.grad
        def of_start(hidden):
            total = 0.0
            steps = zip(self.xs[1], self.resets[1], self.weights[1], strict=True)
            for x, reset, weight in steps:
                hidden = jax.tree.map(
                    lambda i, h, r=reset: jnp.where(r[:, None], i, h), initial, hidden
                )
                hidden, y = self.cell.apply({"params": kept}, hidden, x)
                total += jnp.vdot(weight, y)
            return total

        return jax.jit(of_start)(carry.hidden)


@pairs(TAILS)
def test_a_tail_adds_what_its_influence_says_and_nothing_else(cell, tail):
    plain, tailed, alone = (Run(cell, method) for method in (BPTT(), BPTT(tail=tail), tail))
    # nothing came before the first segment
    expected, after = plain.segment(0, plain.carry)
    found, carry = tailed.segment(0, tailed.carry)
    assert_close(found, expected)
    # the influence is the tail's own, keys and all
    assert_close(carry, alone.segment(0, alone.carry)[1])
    # and (16) is what it says of the second
    expected, _ = plain.segment(1, after)
    found, _ = tailed.segment(1, carry)
    assert_close(found[1], expected[1])
    view, params = unitwise(tailed.cell), tailed.variables["params"]["cell"]
    sparsity = Sparsity(tailed.mask, tailed.variables["sparsity"].get("pattern", ()))
    memory = tail.memory(tailed.cell, sparsity)
    past = jax.tree.map(jnp.zeros_like, params)
    if tail != SnAp(0):
        # of a stream that starts anew at once, h_0 is not read, and lambda_0 is 0
        lambda_0 = memory.lift(sparsity, pack(tailed.lambda_0(carry)))
        past = memory.contract(view, params, sparsity, carry.influence, lambda_0, None)
        past = {
            k: {j: past[k][j].reshape(p.shape) for j, p in v.items()} for k, v in params.items()
        }
        for name in tailed.mask:  # estimates know of absent weights too
            past[name]["kernel"] = jnp.where(RING, past[name]["kernel"], 0)
        assert np.abs(ravel_pytree(past)[0]).max() > 1e-3
    assert_close(found[0]["cell"], jax.tree.map(jnp.add, expected[0]["cell"], past))


@pairs([SnAp(1), SnAp(2), KFRTRL()])
def test_pieces_change_nothing(cell, tail):
    whole, pieces = (Run(cell, BPTT(tail=tail, pieces=k)) for k in (1, 2))
    carries = whole.carry, pieces.carry
    for number in range(2):
        (expected, one), (found, other) = (
            run.segment(number, carry) for run, carry in zip((whole, pieces), carries, strict=True)
        )
        assert_close(found, expected)
        assert_close(other, one)
        carries = one, other
