"""What a mistake with nnx's cells is told: one sentence that names it, before anything runs."""

import re

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from snaprl.cores import BPTT, UORO, SnAp
from snaprl.cores.nnx import OnlineRNN

T, B, M, N = 3, 2, 2, 3


def fresh(rnn, streams=B):
    return rnn.initialize_carry((streams, M), nnx.Rngs(0))


def says(sentence, kind=ValueError):
    """The whole sentence on a line of its own: jax adds a note on how it filters tracebacks."""
    return pytest.raises(kind, match=f"(?m)^{re.escape(sentence)}$")


GRU = nnx.GRUCell(M, N, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"cell": nnx.GRUCell}, "cell is the class GRUCell; it must be an instance of"),
        ({"cell": nnx.RNN(GRU)}, "cell is of type RNN; it must be an instance of"),
        ({"cell": nn.GRUCell(N)}, "GRUCell is flax.linen's; use snaprl.cores.OnlineRNN"),
        ({"method": SnAp}, "method is the class SnAp; it must be an instance of"),
        ({"method": "snap"}, "method is of type str; it must be an instance of"),
    ],
)
def test_what_is_no_cell_and_no_method(arguments, sentence):
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}"):
        OnlineRNN(**{"cell": GRU} | arguments)


class OwnCell(nnx.RNNCellBase):
    """Holds what a test gives it."""

    def __init__(self, **held):
        self.dense = nnx.Linear(M + N, N, rngs=nnx.Rngs(0))
        for name, value in held.items():
            setattr(self, name, value)

    def __call__(self, carry, inputs):
        carry = nnx.tanh(self.dense(jnp.concatenate([inputs, carry], -1)))
        return carry, carry

    def initialize_carry(self, input_shape, rngs=None):
        start = getattr(self, "start", jnp.zeros(N))
        return jnp.broadcast_to(start, (*input_shape[:-1], N))


def test_a_cell_that_holds_what_has_no_gradient():
    with says(
        "dropout.rngs.count of OwnCell is an array of uint32, and a step that is followed online "
        "may read floating ones, the carry and its input; keep it outside of the cell, or as "
        "something static",
        TypeError,
    ):
        OnlineRNN(OwnCell(dropout=nnx.Dropout(0.5, rngs=nnx.Rngs(0))))


class Adding(nnx.RNNCellBase):
    """Adds up its inputs where it should not."""

    def __init__(self):
        self.total = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, carry, inputs):
        self.total[...] = self.total[...] + inputs.sum()
        return carry, carry

    def initialize_carry(self, input_shape, rngs=None):
        return jnp.zeros((*input_shape[:-1], N))


def test_a_cell_that_changes_what_it_holds():
    with says(
        "a step of Adding changes its total, and what a step that is followed online changes is "
        "the carry; keep it there",
        TypeError,
    ):
        fresh(OnlineRNN(Adding()))


def test_a_start_that_is_learned():
    rnn = OnlineRNN(OwnCell(start=nnx.Param(jnp.zeros(N))))
    with says(
        "initialize_carry of OwnCell reads parameters, and what a stream starts from has no "
        "influence; let it return constants, and add what is learned in the step",
        TypeError,
    ):
        fresh(rnn)


def test_a_mask_for_a_cell_that_reads_nobody_knows_how_many_inputs():
    mask = {"dense": {"kernel": np.ones((M + N, N))}}
    with says(
        "OwnCell has no attribute in_features, and what a mask leaves depends on how many inputs "
        "there are; give it one, an int or a tuple"
    ):
        OnlineRNN(OwnCell(), mask=mask)
    OnlineRNN(OwnCell(in_features=M), mask=mask)


def test_a_method_that_does_not_take_any_cell():
    with pytest.raises(TypeError, match="^OwnCell is not known to be unit-wise, as this method"):
        fresh(OnlineRNN(OwnCell(), UORO()))


def test_shapes_that_do_not_fit():
    rnn = OnlineRNN(GRU)
    carry, xs = fresh(rnn), jnp.zeros((T, B, M))
    with says("xs has shape (2, 2); a segment of inputs is [T, B, M]"):
        rnn(carry, xs[0])
    with says("x has shape (3, 2, 2); one step's inputs are [B, M]"):
        rnn.step(carry, xs)
    with says("xs has shape (3, 2, 5); the cell reads 2 inputs"):
        rnn(carry, jnp.zeros((T, B, 5)))
    with says("x has shape (2, 5); the cell reads 2 inputs"):
        rnn.step(carry, jnp.zeros((B, 5)))
    with says("input_shape is (2, 5); the cell reads 2 inputs"):
        rnn.initialize_carry((B, 5), nnx.Rngs(0))
    with says("input_shape is (3, 2, 2); it must be (streams, inputs), each 1, 2, ..."):
        rnn.initialize_carry((T, B, M), nnx.Rngs(0))
    with says("input_shape is of type Rngs; initialize_carry takes (input_shape, rngs)", TypeError):
        rnn.initialize_carry(nnx.Rngs(0), (B, M))
    with says("xs has shape (0, 2, 2); a segment has at least one step"):
        rnn(carry, xs[:0])
    with says("resets is float32[3, 2]; it must be bool[3, 2]"):
        rnn(carry, xs, jnp.zeros((T, B)))
    with says("reset is bool[3]; it must be bool[2]"):
        rnn.step(carry, xs[0], jnp.zeros(T, bool))


def test_carries_that_belong_elsewhere():
    def differs(place, found, needed):
        return says(
            f"carry.{place} is {found} where {needed} is needed; initialize_carry with "
            "input_shape (2, 2) makes the carry that fits"
        )

    rnn, xs = OnlineRNN(GRU), jnp.zeros((T, B, M))
    with differs("hidden", (3, 3), (2, 3)):
        rnn(fresh(rnn, 3), xs)
    with differs("influence", (), "({'hn': {...}, 'hr': {...}, 'hz': {...}, 'in': {...}, ...},)"):
        rnn(fresh(OnlineRNN(GRU, BPTT())), xs)
    for call, inputs in ((rnn, xs), (rnn.step, xs[0])):
        for carry in (fresh(rnn).hidden, None, inputs):
            with pytest.raises(TypeError, match="^carry is .*; it must be the CoreState that"):
                call(carry, inputs)


@pytest.mark.parametrize("leaf", ["kernel", "weights"])
def test_a_mask_that_fits_nothing(leaf):
    with says(
        {
            "kernel": "mask dense_h/kernel has shape (3, 3); the parameter has (3, 9)",
            "weights": "mask dense_h/weights masks no parameter of the cell; it has "
            "dense_h/kernel, dense_i/bias, dense_i/kernel",
        }[leaf]
    ):
        OnlineRNN(GRU, SnAp(), mask={"dense_h": {leaf: np.ones((N, N))}})
    with says("mask dense_h/kernel has entries other than 0 and 1"):
        OnlineRNN(GRU, mask={"dense_h": {"kernel": np.full((N, 3 * N), 0.5)}})


def test_a_new_mask_of_other_leaves():
    rnn = OnlineRNN(GRU, mask={"dense_h": {"kernel": np.ones((N, 3 * N))}})
    with says(
        "the new mask has other leaves, Mask(dense_i/kernel), than the core's own, "
        "Mask(dense_h/kernel)"
    ):
        rnn.rewire({"dense_i": {"kernel": np.ones((M, 3 * N))}})
    with says("mask dense_h/kernel has shape (3, 3); the parameter has (3, 9)"):
        rnn.rewire({"dense_h": {"kernel": np.ones((N, N))}})
