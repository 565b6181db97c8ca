"""A cell with constant fan-in is flax's cell with a mask, whatever the method.

What holds for masked cells is held elsewhere; here only the two are compared.
"""

import re
from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import probe
from contract.registry import METHODS, B, M

from snaprl.cores import (
    BPTT,
    RTRL,
    CoreState,
    OnlineRNN,
    SnAp,
    SparseGRUCell,
    SparseLSTMCell,
    SparseSimpleCell,
)
from snaprl.cores.ours import sparse
from snaprl.cores.sparsity import fixed_fan_in

pytestmark = pytest.mark.usefixtures("x64")

N, K, SEED = 6, 2, 3  # not the registry's N: of three units, two inputs are almost all
WIDE = {"features": N, "param_dtype": jnp.float64}
SPARSE = {"fan_in": K, "seed": SEED}
CELLS = {
    "simple": (SparseSimpleCell(**WIDE, **SPARSE), nn.SimpleCell(**WIDE), "h"),
    "residual": (
        SparseSimpleCell(**WIDE, **SPARSE, residual=True, activation_fn=nn.swish),
        nn.SimpleCell(**WIDE, residual=True, activation_fn=nn.swish),
        "h",
    ),
    "gru": (SparseGRUCell(**WIDE, **SPARSE), nn.GRUCell(**WIDE), "rzn"),
    "lstm": (SparseLSTMCell(**WIDE, **SPARSE), nn.LSTMCell(**WIDE), "ifgo"),
    "lstm-custom": (
        SparseLSTMCell(
            **WIDE,
            **SPARSE,
            gate_fn=nn.softplus,
            activation_fn=nn.swish,
            carry_init=nn.initializers.constant(0.3),
        ),
        nn.LSTMCell(
            **WIDE,
            gate_fn=nn.softplus,
            activation_fn=nn.swish,
            carry_init=nn.initializers.constant(0.3),
        ),
        "ifgo",
    ),
}
CELL = pytest.mark.parametrize("cell", CELLS)
PATTERN = fixed_fan_in(K)((N, N), SEED)  # [inputs, units]
UNITS = np.arange(N)


def recurrent(cell):
    gates = CELLS[cell][2]
    return ["h"] if gates == "h" else [f"h{gate}" for gate in gates]


def sources():
    """`[K, N]`, one unit after the other."""
    return np.stack([np.flatnonzero(PATTERN[:, unit]) for unit in UNITS], axis=1)


def as_dense(cell, params):
    """The parameters of flax's cell."""
    tree = {name: dict(layer) for name, layer in params.items()}
    for name in recurrent(cell):
        kernel = np.zeros((N, N))
        kernel[sources(), UNITS] = tree[name].pop("values")
        tree[name]["kernel"] = kernel
    return tree


def as_sparse(cell, gradient):
    """The gradient of flax's kernels at the places that exist."""
    tree = {name: dict(layer) for name, layer in gradient.items()}
    for name in recurrent(cell):
        kernel = np.asarray(tree[name].pop("kernel"))
        assert not kernel[~PATTERN].any()
        tree[name]["values"] = kernel[sources(), UNITS]
    return tree


def drawn(cell, seed):
    """Parameters, biases too, and a segment."""
    rng = np.random.default_rng(seed)
    ours = CELLS[cell][0]
    carry = ours.initialize_carry(jax.random.key(0), (B, M))
    shapes = jax.eval_shape(ours.init, jax.random.key(0), carry, jnp.zeros((B, M)))["params"]
    params = jax.tree.map(lambda p: rng.normal(0, 0.8, p.shape), shapes)
    steps = 4
    resets = np.zeros((steps, B), bool)
    resets[2, 1] = True
    xs, weights = (rng.normal(size=(steps, B, size)) for size in (M, N))
    return params, probe.Segment(xs, resets, weights)


def modules(method, cell):
    ours, flaxs, _ = CELLS[cell]
    mask = {name: {"kernel": PATTERN} for name in recurrent(cell)}
    return OnlineRNN(ours, method), OnlineRNN(flaxs, method, mask=mask)


@lru_cache
def gradient(rnn):
    def loss(params, carry, xs, segment):
        carry, ys = rnn.apply({"params": {"cell": params}}, carry, xs, segment.resets)
        return jnp.vdot(segment.weights, ys), (carry, ys)

    both = jax.jit(jax.grad(loss, argnums=(0, 2), has_aux=True))
    return lambda params, carry, segment: both(params, carry, segment.xs, segment)


SOME = ["snap1", "snap2", "rtrl", "bptt", "tail-snap2"]
PAIRS = pytest.mark.parametrize(
    ("method", "cell"),
    [
        pytest.param(m, c, marks=() if c == "gru" and m in SOME else pytest.mark.slow)
        for m in METHODS
        for c in CELLS
    ],
)


@PAIRS
def test_it_is_the_masked_cell(method, cell):
    """Outputs, carry with its influence, and gradients, over two segments."""
    params, segment = drawn(cell, 1)
    both = modules(METHODS[method].method, cell)
    carries = [rnn.initialize_carry(jax.random.key(0), (B, M)) for rnn in both]
    for piece in segment.cut(1, 3):
        (found, xs), (carry, ys) = gradient(both[0])(params, carries[0], piece)
        (expected, expected_xs), (expected_carry, expected_ys) = gradient(both[1])(
            as_dense(cell, params), carries[1], piece
        )
        probe.assert_close(ys, expected_ys)
        probe.assert_close(carry, expected_carry)
        probe.assert_close(found, as_sparse(cell, expected))
        probe.assert_close(xs, expected_xs)
        carries = [carry, expected_carry]


@CELL
def test_flax_runs_it_and_finds_the_same_parameters(cell):
    params, segment = drawn(cell, 2)
    rnn = nn.RNN(CELLS[cell][0], time_major=True)
    ours, _ = modules(SnAp(), cell)
    carry = ours.initialize_carry(jax.random.key(0), (B, M))
    shapes, expected = (
        jax.eval_shape(init)
        for init in (
            lambda: ours.init(jax.random.key(0), carry, segment.xs),
            lambda: rnn.init(jax.random.key(0), segment.xs),
        )
    )
    described = [jax.tree.map(lambda p: (p.shape, p.dtype), tree) for tree in (shapes, expected)]
    assert described[0] == described[1]
    assert {shapes["params"]["cell"][name]["values"].shape for name in recurrent(cell)} == {(K, N)}
    variables = {"params": {"cell": params}}
    _, ys = jax.jit(ours.apply)(variables, carry, segment.xs)
    probe.assert_close(ys, jax.jit(rnn.apply)(variables, segment.xs))


@CELL
@pytest.mark.parametrize("few", [0, 100])
def test_acting_is_the_forward_pass(monkeypatch, cell, few):
    """By going through the fan-in, and by the kernel written out."""
    gathered, calls = sparse.gathered, []
    monkeypatch.setattr(sparse, "_FEW_STREAMS", few)
    monkeypatch.setattr(sparse, "gathered", lambda *a: calls.append(a) or gathered(*a))
    params, segment = drawn(cell, 3)
    ours, _ = modules(SnAp(), cell)
    variables = {"params": {"cell": params}}
    carry = ours.initialize_carry(jax.random.key(0), (B, M))
    expected, expected_ys = jax.jit(ours.apply)(variables, carry, segment.xs, segment.resets)
    acting, ys = CoreState(carry.hidden, ()), []
    calls.clear()
    for x_t, reset_t in zip(segment.xs, segment.resets, strict=True):
        acting, y_t = ours.apply(variables, acting, x_t, reset_t, method="step")
        ys.append(y_t)
    probe.assert_close(jnp.stack(ys), expected_ys)
    probe.assert_close(acting.hidden, expected.hidden)
    assert len(calls) == (len(recurrent(cell)) * segment.steps if few else 0)


def test_both_products_are_the_same_and_have_the_same_gradients():
    rng = np.random.default_rng(4)
    h, values, weights = (rng.normal(size=shape) for shape in ((B, 5, N), (K, N), (B, 5, N)))
    index = sparse.connections(N, K, SEED)
    np.testing.assert_array_equal(index, sources())

    def by_fan_in(h, values):
        return jnp.vdot(weights, sparse.gathered(h, values, index))

    def by_kernel(h, values):
        return jnp.vdot(weights, h @ sparse.written_out(values, index))

    found, expected = (jax.value_and_grad(f, (0, 1))(h, values) for f in (by_fan_in, by_kernel))
    probe.assert_close(found, expected)


def test_connections_follow_from_the_seed():
    index = sparse.connections(50, 7, 1)
    assert index.shape == (7, 50)
    assert all(len(set(column)) == 7 for column in index.T)
    np.testing.assert_array_equal(index, sparse.connections.__wrapped__(50, 7, 1))
    assert (index != sparse.connections(50, 7, 2)).any()


def test_an_influence_of_order_2_is_compressed():
    """At order 1 it has the shape of the kernel, for now."""
    size, fan_in = 40, 2
    cell = SparseGRUCell(size, fan_in)

    def numbers(method):
        rnn = OnlineRNN(cell, method)
        carry = jax.eval_shape(lambda: rnn.initialize_carry(jax.random.key(0), (1, M)))
        return sum(leaf.size for leaf in jax.tree.leaves(carry.influence))

    weights = 3 * (fan_in + M + 1) + 1
    assert numbers(SnAp(order=2)) <= (fan_in + 1) * size * weights
    assert numbers(SnAp(order=1)) == 3 * size * (size + M + 1) + size
    assert numbers(BPTT()) == 0
    assert numbers(RTRL()) <= size * size * weights


def says(sentence):
    return pytest.raises(ValueError, match=f"(?m)^{re.escape(sentence)}$")


def test_a_mask_beside_the_fan_in():
    rnn = OnlineRNN(SparseGRUCell(N, K), mask={"ir": {"kernel": np.ones((M, N))}})
    with says(
        "mask is given for a SparseGRUCell, whose own attributes say which weights it has; use "
        "GRUCell with a mask"
    ):
        rnn.initialize_carry(jax.random.key(0), (B, M))


@pytest.mark.parametrize("fan_in", [N + 1, 0])
def test_a_fan_in_that_is_none(fan_in):
    with pytest.raises(ValueError, match="fan_in is"):
        OnlineRNN(SparseGRUCell(N, fan_in)).initialize_carry(jax.random.key(0), (B, M))
