"""The cells of ours against their papers' equations, written with numpy's complex numbers."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snaprl.cores import (
    BPTT,
    RTRL,
    ELSTMCell,
    IndRNNCell,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LRUCell,
    OnlineRNN,
    RTUCell,
    SnAp,
)

pytestmark = pytest.mark.usefixtures("x64")

N, M, B = 4, 3, 2
WIDE = {"features": N, "param_dtype": jnp.float64}


def drawn(cell, seed=0):
    """Parameters, a carry and inputs."""
    rng = np.random.default_rng(seed)
    carry = cell.initialize_carry(jax.random.key(0), (B, M))
    shapes = jax.eval_shape(cell.init, jax.random.key(0), carry, jnp.zeros((B, M)))["params"]
    params, carry = (
        jax.tree.map(lambda p: rng.normal(0, 0.7, p.shape), tree) for tree in (shapes, carry)
    )
    return params, carry, rng.normal(size=(B, M))


def run(cell, params, carry, x_t):
    return cell.apply({"params": params}, carry, x_t)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_indrnn():
    cell = IndRNNCell(**WIDE)
    params, h, x = drawn(cell)
    expected = x @ params["i"]["kernel"] + params["i"]["bias"] + params["u"] * h
    after, y = run(cell, params, h, x)
    np.testing.assert_allclose(y, np.maximum(expected, 0), rtol=1e-13)
    np.testing.assert_array_equal(after, y)


@pytest.mark.parametrize("output_gate", [True, False])
def test_elstm(output_gate):
    cell = ELSTMCell(**WIDE, output_gate=output_gate)
    params, carry, x = drawn(cell)
    c = carry[0] if output_gate else carry

    def arriving(gate, c):
        layer = params[f"i{gate}"]
        return x @ layer["kernel"] + layer["bias"] + params[f"w{gate}"] * c

    f, z = sigmoid(arriving("f", c)), np.tanh(arriving("z", c))
    c = f * c + (1 - f) * z
    after, y = run(cell, params, carry, x)
    if output_gate:
        np.testing.assert_allclose(y, sigmoid(arriving("o", c)) * c, rtol=1e-13)
        np.testing.assert_array_equal(after[1], y)
        after = after[0]
    else:
        np.testing.assert_array_equal(after, y)
    np.testing.assert_allclose(after, c, rtol=1e-13)


def eigenvalue(params):
    return np.exp(-np.exp(params["nu"]) + 1j * np.exp(params["theta"]))


def complex_input(params, x):
    return x @ (params["re"]["kernel"] + 1j * params["im"]["kernel"])


def test_lru():
    cell = LRUCell(**WIDE)
    params, (re, im), x = drawn(cell)
    h = eigenvalue(params) * (re + 1j * im) + np.exp(params["gamma"]) * complex_input(params, x)
    after, y = run(cell, params, (re, im), x)
    np.testing.assert_allclose(y, np.concatenate([h.real, h.imag], -1), rtol=1e-13)
    np.testing.assert_array_equal(np.concatenate(after, -1), y)


@pytest.mark.parametrize("nonlinear", [False, True])
def test_rtu(nonlinear):
    cell = RTUCell(**WIDE, nonlinear=nonlinear, activation_fn=nn.tanh)
    params, (re, im), x = drawn(cell)
    lambda_ = eigenvalue(params)
    u = lambda_ * (re + 1j * im) + np.sqrt(1 - np.abs(lambda_) ** 2) * complex_input(params, x)
    parts = np.concatenate([u.real, u.imag], -1)
    after, y = run(cell, params, (re, im), x)
    np.testing.assert_allclose(y, np.tanh(parts), rtol=1e-12)
    np.testing.assert_allclose(
        np.concatenate(after, -1), np.tanh(parts) if nonlinear else parts, rtol=1e-12
    )


@pytest.mark.parametrize("cell", [LRUCell, RTUCell])
def test_eigenvalues_start_on_the_ring(cell):
    """Uniformly: as many in the inner half of the ring's area as in the outer one."""
    size = 4000
    cell = cell(size, r_min=0.4, r_max=0.9, max_phase=0.3, param_dtype=jnp.float64)
    carry = cell.initialize_carry(jax.random.key(0), (1, 1))
    params = cell.init(jax.random.key(1), carry, jnp.zeros((1, 1)))["params"]
    lambda_ = eigenvalue(params)
    modulus, phase = np.abs(lambda_), np.angle(lambda_)
    assert 0.4 <= modulus.min() < 0.401
    assert 0.899 < modulus.max() <= 0.9
    assert 0 <= phase.min() < 0.001
    assert 0.299 < phase.max() <= 0.3
    error = 4 / np.sqrt(size) / 2  # four standard errors of a share of one half
    assert abs((modulus**2 < (0.4**2 + 0.9**2) / 2).mean() - 0.5) < error
    assert abs((phase < 0.15).mean() - 0.5) < error
    if "gamma" in params:
        np.testing.assert_allclose(np.exp(params["gamma"]) ** 2, 1 - modulus**2, rtol=1e-12)


@pytest.mark.parametrize("cell", [LRUCell(256), RTUCell(256)])
def test_the_widest_ring_starts_with_numbers_in_float32(cell):
    with jax.enable_x64(False):
        carry = cell.initialize_carry(jax.random.key(0), (1, 1))
        params = cell.init(jax.random.key(1), carry, jnp.zeros((1, 1)))["params"]
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("cell", [LRUCell, RTUCell])
def test_a_ring_that_is_none(cell):
    says = re.escape("r_min is 0.9 and r_max is 0.5; it must be 0 <= r_min < r_max <= 1")
    with pytest.raises(ValueError, match=f"(?m)^{says}$"):
        run(cell(N, r_min=0.9, r_max=0.5), {}, (jnp.zeros((B, N)),) * 2, jnp.zeros((B, M)))


# ---- normalised cells ------------------------------------------------------------------------


def normalised(params, gate, p, epsilon):
    p = (p - p.mean(-1, keepdims=True)) / np.sqrt(p.var(-1, keepdims=True) + epsilon)
    return params[f"gain_{gate}"] * p + params[f"bias_{gate}"]


@pytest.mark.parametrize("constant_statistics", [False, True])
def test_layer_norm_gru(constant_statistics):
    cell = LayerNormGRUCell(**WIDE, epsilon=0.01, constant_statistics=constant_statistics)
    params, h, x = drawn(cell)
    a, s = (
        {g: source @ params[f"{kind}{g}"]["kernel"] for g in "rzn"}
        for kind, source in (("i", x), ("h", h))
    )
    r, z = (sigmoid(normalised(params, g, a[g] + s[g], 0.01)) for g in "rz")
    n = np.tanh(normalised(params, "n", a["n"] + r * s["n"], 0.01))
    after, y = run(cell, params, h, x)
    np.testing.assert_allclose(y, (1 - z) * n + z * h, rtol=1e-12)
    np.testing.assert_array_equal(after, y)


@pytest.mark.parametrize("constant_statistics", [False, True])
def test_layer_norm_lstm(constant_statistics):
    cell = LayerNormLSTMCell(**WIDE, epsilon=0.01, constant_statistics=constant_statistics)
    params, (c, h), x = drawn(cell)
    i, f, g, o = (
        normalised(params, k, x @ params[f"i{k}"]["kernel"] + h @ params[f"h{k}"]["kernel"], 0.01)
        for k in "ifgo"
    )
    after, y = run(cell, params, (c, h), x)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    np.testing.assert_allclose(after[0], c, rtol=1e-12)
    np.testing.assert_allclose(y, sigmoid(o) * np.tanh(c), rtol=1e-12)
    np.testing.assert_array_equal(after[1], y)


LAYER_NORM = pytest.mark.parametrize("kind", [LayerNormGRUCell, LayerNormLSTMCell])


def segment_gradient(cell, method, params, xs, weights):
    rnn = OnlineRNN(cell, method)
    carry = rnn.initialize_carry(jax.random.key(0), xs.shape[1:])

    def loss(params):
        return jnp.vdot(weights, rnn.apply({"params": {"cell": params}}, carry, xs)[1])

    return jax.jit(jax.grad(loss))(params)


def flax_gradient(cell, params, xs, weights):
    rnn = nn.RNN(cell, time_major=True)

    def loss(params):
        return jnp.vdot(weights, rnn.apply({"params": {"cell": params}}, xs))

    return jax.jit(jax.grad(loss))(params)


def problem(cell, steps=5):
    params, _, _ = drawn(cell, seed=1)
    rng = np.random.default_rng(2)
    return params, rng.normal(size=(steps, B, M)), rng.normal(size=(steps, B, N))


def distance(found, expected):
    differences = jax.tree.map(lambda x, y: np.abs(x - y).max(), found, expected)
    return max(jax.tree.leaves(differences))


@LAYER_NORM
def test_backpropagation_moves_the_statistics(kind):
    cell = kind(**WIDE)
    params, xs, weights = problem(cell)
    found = segment_gradient(cell, BPTT(), params, xs, weights)
    assert distance(found, flax_gradient(cell, params, xs, weights)) < 1e-12


@LAYER_NORM
def test_to_an_influence_the_statistics_are_constants(kind):
    """Whatever the cell says about them: of what SnAp computes, that is the definition."""
    moving, constant = kind(**WIDE), kind(**WIDE, constant_statistics=True)
    params, xs, weights = problem(moving)
    found = segment_gradient(moving, SnAp(), params, xs, weights)
    expected = segment_gradient(constant, SnAp(), params, xs, weights)
    assert distance(found, expected) == 0.0


@LAYER_NORM
def test_moving_statistics_make_an_exact_method_depend_on_the_split(kind):
    """Exact inside the segment, where backpropagation moves them; of what was before it, not."""
    cell = kind(**WIDE)
    params, xs, weights = problem(cell)
    expected = flax_gradient(cell, params, xs, weights)
    assert distance(segment_gradient(cell, RTRL(), params, xs, weights), expected) < 1e-12
    rnn = OnlineRNN(cell, RTRL())
    carry = rnn.initialize_carry(jax.random.key(0), xs.shape[1:])
    variables = {"params": {"cell": params}}
    carry, _ = rnn.apply(variables, carry, xs[:-1])

    def last(params):
        return jnp.vdot(weights[-1:], rnn.apply({"params": {"cell": params}}, carry, xs[-1:])[1])

    first = segment_gradient(cell, RTRL(), params, xs[:-1], weights[:-1])
    found = jax.tree.map(jnp.add, first, jax.grad(last)(params))
    assert distance(found, expected) > 1e-3


@LAYER_NORM
def test_constant_statistics_are_constants_to_every_gradient(kind):
    cell = kind(**WIDE, constant_statistics=True)
    params, xs, weights = problem(cell)
    found = segment_gradient(cell, BPTT(), params, xs, weights)
    expected = flax_gradient(cell, params, xs, weights)
    assert distance(found, expected) < 1e-12
    moving = flax_gradient(kind(**WIDE), params, xs, weights)
    assert distance(found, moving) > 1e-3  # or the law above would say nothing
