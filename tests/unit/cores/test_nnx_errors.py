"""What a mistake with nnx's cells is told: one sentence that names it, before anything runs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from snaprl.cores import BPTT, SnAp
from snaprl.cores.nnx import OnlineRNN

T, B, M, N = 3, 2, 2, 3


def fresh(rnn, streams=B):
    return rnn.initialize_carry((streams, M), nnx.Rngs(0))


def says(sentence, kind=ValueError):
    """The whole sentence on a line of its own: jax adds a note on how it filters tracebacks."""
    return pytest.raises(kind, match=f"(?m)^{re.escape(sentence)}$")


GRU = nnx.GRUCell(M, N, rngs=nnx.Rngs(0))


class OwnCell(nnx.GRUCell):
    """A subclass may compute anything."""


def test_a_cell_that_is_not_known():
    with says(
        "OwnCell is not a cell whose gradient can be followed online; use one of nnx's "
        "SimpleCell, GRUCell, LSTMCell, OptimizedLSTMCell",
        TypeError,
    ):
        OnlineRNN(OwnCell(M, N, rngs=nnx.Rngs(0)))


def changed(**changes):
    cell = nnx.GRUCell(M, N, rngs=nnx.Rngs(0))
    for name, value in changes.items():
        setattr(cell.dense_h, name, value)
    return cell


def own_promotion(arrays, dtype=None):
    return tuple(arrays)


@pytest.mark.parametrize(
    "make",
    [
        lambda: changed(precision="highest"),
        lambda: changed(dot_general=lambda *args, **kwargs: jax.lax.dot_general(*args, **kwargs)),
        lambda: changed(preferred_element_type=jnp.float32),
        lambda: changed(dtype=jnp.bfloat16),
        lambda: changed(promote_dtype=own_promotion),
        lambda: changed(bias=nnx.Param(jnp.zeros(3 * N))),
        lambda: nnx.LoRALinear(N, 3 * N, lora_rank=1, use_bias=False, rngs=nnx.Rngs(0)),
    ],
)
def test_a_layer_that_computes_something_else(make):
    cell = make()
    if not isinstance(cell, nnx.GRUCell):
        cell, cell.dense_h = nnx.GRUCell(M, N, rngs=nnx.Rngs(0)), cell
    with says(
        "dense_h is not the linear layer that nnx's GRUCell makes; what it computes cannot be "
        "followed online",
        TypeError,
    ):
        OnlineRNN(cell)


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
    with says("input_shape is (3, 2, 2); it must be (streams, inputs)"):
        rnn.initialize_carry((T, B, M), nnx.Rngs(0))
    with says("resets is float32[3, 2]; it must be bool[3, 2]"):
        rnn(carry, xs, jnp.zeros((T, B)))
    with says("reset is bool[3]; it must be bool[2]"):
        rnn.step(carry, xs[0], jnp.zeros(T, bool))


def test_carries_that_belong_elsewhere():
    def sentence(name, has, needs):
        return says(
            f"{name} does not belong to this cell, method and 2 streams: it has shapes {has} "
            f"where {needs} are needed; initialize_carry makes one"
        )

    rnn, xs = OnlineRNN(GRU), jnp.zeros((T, B, M))
    with sentence("carry.hidden", "(3, 3)", "(2, 3)"):
        rnn(fresh(rnn, 3), xs)
    with sentence("carry.influence", "none", "(2, 3), (2, 3, 3), (2, 3, 3) and 7 more"):
        rnn(fresh(OnlineRNN(GRU, BPTT())), xs)


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
    with says("the new mask has other leaves than the one that the core was made with"):
        rnn.rewire({"dense_i": {"kernel": np.ones((M, 3 * N))}})
    with says("mask dense_h/kernel has shape (3, 3); the parameter has (3, 9)"):
        rnn.rewire({"dense_h": {"kernel": np.ones((N, N))}})
