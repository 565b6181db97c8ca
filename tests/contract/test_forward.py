"""Law 7: forward values are flax's own, and the second call compiles nothing."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import probe
from contract.registry import CELLS, DETERMINED, METHODS, B, M, N, pairs

from snaprl.cores import OnlineRNN

METHOD = pytest.mark.parametrize("method", METHODS)
CELL = pytest.mark.parametrize("cell", CELLS)
T = 3
# flax's orthogonal kernels need a QR decomposition, which jax has in long floats only.
NO_QR: dict[str, Any] = {"recurrent_kernel_init": nn.initializers.lecun_normal()}


def flax_forward(cell, params, xs):
    """The outputs `[T, B, N]` and the last carry of `nn.RNN`."""
    rnn = nn.RNN(cell, time_major=True, return_carry=True)
    return jax.jit(rnn.apply)({"params": {"cell": params}}, xs)


@pairs()
def test_forward_values_are_those_of_flax(method, cell, x64):
    variables, segment = probe.draw_variables(cell, 31), probe.draw_segment(31, T)
    found = probe.program(method, cell)(variables, probe.fresh(method, cell), segment)
    carry, ys = flax_forward(CELLS[cell], variables["params"]["cell"], segment.xs)
    probe.assert_close(found.ys, ys)
    probe.assert_close(found.carry.hidden, carry)


@CELL
def test_forward_values_are_those_of_flax_in_float32(cell):
    with jax.enable_x64(True):
        params, segment = probe.draw_params(cell, 32), probe.draw_segment(32, T)
    single = CELLS[cell].clone(param_dtype=jnp.float32)
    params, xs = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), (params, segment.xs))
    rnn = OnlineRNN(single)
    carry = rnn.initialize_carry(jax.random.key(0), (B, M))
    after, ys = jax.jit(rnn.apply)({"params": {"cell": params}}, carry, xs)
    expected_carry, expected = flax_forward(single, params, xs)
    assert ys.dtype == jnp.float32
    probe.assert_close(ys, expected, 1e-6)
    probe.assert_close(after.hidden, expected_carry, 1e-6)


@CELL
@pytest.mark.parametrize("influence", [True, False])
def test_acting_is_the_forward_pass_and_leaves_influence_alone(cell, influence, x64):
    method = "snap1"
    variables, rnn = probe.draw_variables(cell, 33, density=0.7), probe.core(method, cell)
    before, segment = probe.draw_segment(33, 2 * T).cut(T, T)
    segment.resets[1] = [True, False]
    carry = probe.program(method, cell)(variables, probe.fresh(method, cell), before).carry
    expected = probe.program(method, cell)(variables, carry, segment)
    act = jax.jit(lambda carry, x, reset: rnn.apply(variables, carry, x, reset, method="step"))
    kept = carry.influence if influence else ()
    acting = carry._replace(influence=kept)
    ys = []
    for x_t, reset_t in zip(segment.xs, segment.resets, strict=True):
        acting, y_t = act(acting, x_t, reset_t)
        ys.append(y_t)
    probe.assert_close(jnp.stack(ys), expected.ys)
    probe.assert_close(acting.hidden, expected.carry.hidden)
    probe.assert_close(acting.influence, kept, 0.0)


@METHOD
def test_the_second_call_compiles_nothing(method, x64):
    """The carry that comes back has the shapes and types of the one that a stream starts with."""
    variables, segment = probe.draw_variables("lstm", 34), probe.draw_segment(34, T)
    run = probe.program(method, "lstm")
    carry = probe.fresh(method, "lstm")
    outcome = run(variables, carry, segment)
    compiled = run._cache_size()
    assert compiled > 0
    types = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), carry)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), outcome.carry) == types
    for _ in range(2):
        outcome = run(variables, outcome.carry, segment)
    assert run._cache_size() == compiled


@METHOD
@pytest.mark.parametrize("inputs", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_carry_keeps_its_types_in_short_floats(method, dtype, inputs):
    """As in float64, and whatever the inputs are; what a step returns, a segment accepts."""
    rnn = OnlineRNN(nn.LSTMCell(N, param_dtype=dtype, **NO_QR), METHODS[method].method)
    carry = rnn.initialize_carry(jax.random.key(0), (B, M))
    xs = jnp.ones((T, B, M), inputs)
    variables = jax.eval_shape(rnn.init, jax.random.key(1), carry, xs)
    types = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), carry)
    for after in (
        jax.eval_shape(rnn.apply, variables, carry, xs)[0],
        jax.eval_shape(rnn.apply, variables, carry, xs[:1])[0],
        jax.eval_shape(lambda *a: rnn.apply(*a, method="step"), variables, carry, xs[0])[0],
    ):
        assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), after) == types


@pytest.mark.parametrize("method", ["snap1", "tail-rtrl"])
def test_batch_major_is_the_same_with_two_axes_exchanged(method, x64):
    cell = "gru"
    rnn = probe.core(method, cell).clone(time_major=False)
    variables = probe.with_pattern(rnn, probe.draw_variables(cell, 35))
    segment = probe.draw_segment(35, T)
    segment.resets[1] = [True, False]
    carry = probe.fresh(method, cell)
    expected = probe.program(method, cell)(variables, carry, segment)
    xs, resets = segment.xs.swapaxes(0, 1), segment.resets.swapaxes(0, 1)
    after, ys = jax.jit(rnn.apply)(variables, carry, xs, resets)
    probe.assert_close(ys, expected.ys.swapaxes(0, 1))
    probe.assert_close(after, expected.carry)


def relative_error(found, expected):
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# Four times what was seen: float32 has 24 bits and bfloat16 eight.
TOLERANCE = {jnp.float32: 1e-6, jnp.bfloat16: 0.05}


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell])
@pytest.mark.parametrize("steps", [1, T])
def test_a_cell_that_computes_in_bfloat16_does_what_flax_does(cell, steps):
    """Parameters, carry and influence stay in float32; only the linear maps are short."""
    cell = cell(N, dtype=jnp.bfloat16)
    rnn, xs = OnlineRNN(cell), jnp.asarray(np.random.default_rng(37).normal(size=(steps, B, M)))
    carry = rnn.initialize_carry(jax.random.key(0), (B, M))
    variables = jax.jit(rnn.init)(jax.random.key(1), carry, xs)
    after, ys = jax.jit(rnn.apply)(variables, carry, xs)
    _, expected = flax_forward(cell, variables["params"]["cell"], xs)
    assert ys.dtype == expected.dtype
    probe.assert_close(ys, expected, 2**-8)
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("method", DETERMINED)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_short_floats_stay_close_to_float64(method, dtype):
    """Gradients have the parameters' type; the influence is never shorter than float32."""
    cell, steps, streams, units = nn.GRUCell(8, **NO_QR), 16, 2, 8
    rng = np.random.default_rng(36)
    # numbers that every type can hold, so that only the arithmetic differs
    xs, weights = (
        np.asarray(jnp.asarray(rng.normal(size=(steps, streams, n)), jnp.bfloat16), np.float32)
        for n in (M, units)
    )

    def run(dtype, params):
        rnn = OnlineRNN(cell.clone(param_dtype=dtype), METHODS[method].method)
        carry = rnn.initialize_carry(jax.random.key(0), (streams, M))
        segments = [jnp.asarray(x, dtype) for x in (xs[:8], xs[8:])]
        if params is None:
            params = jax.jit(rnn.init)(jax.random.key(1), carry, segments[0])["params"]
        params = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)

        def loss(params, carry, xs, weights):
            carry, ys = rnn.apply({"params": params}, carry, xs)
            return jnp.vdot(ys, jnp.asarray(weights, ys.dtype)), (carry, ys)

        gradient = jax.jit(jax.grad(loss, has_aux=True))
        outputs, gradients = [], []
        for x, w in zip(segments, (weights[:8], weights[8:]), strict=True):
            grads, (carry, ys) = gradient(params, carry, x, w)
            outputs.append(ys)
            gradients.append(grads)
        return params, outputs, gradients, carry.influence

    params, outputs, gradients, influence = run(dtype, None)
    with jax.enable_x64(True):
        exact = run(jnp.float64, params)[1:]

    assert {leaf.dtype for leaf in jax.tree.leaves((outputs, gradients))} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(influence)} <= {jnp.dtype(jnp.float32)}
    leaves = zip(
        jax.tree.leaves((outputs, gradients, influence)), jax.tree.leaves(exact), strict=True
    )
    for found, expected in leaves:
        if METHODS[method].learns or np.any(np.asarray(expected)):
            assert relative_error(found, expected) < TOLERANCE[dtype]
        else:
            assert not np.any(np.asarray(found))
