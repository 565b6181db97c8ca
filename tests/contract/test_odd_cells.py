"""Cells of users' own that are odd in one way each, on the path that takes any cell.

Exact RTRL is `jax.grad` of a plain loop over the cell, whatever is odd about it.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.probe import assert_close
from contract.spikes import spike

from snaprl.cores import (
    BPTT,
    RFLO,
    RTRL,
    LRUCell,
    OnlineRNN,
    RTUCell,
    SnAp,
    SparseGRUCell,
    StackedCell,
)

pytestmark = pytest.mark.usefixtures("x64")

B, M, N, T = 2, 2, 3, 4
IN_64: dict[str, Any] = {"dtype": jnp.float64, "param_dtype": jnp.float64}


class Odd(nn.RNNCellBase):
    """A cell of one array, `[B, N]`."""

    features: int = N

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], self.features), jnp.float64)

    @property
    def num_feature_axes(self) -> int:
        return 1


class Spiking(Odd):
    """Leaky integration of spikes: nothing but the surrogate tells that W is read at all."""

    @nn.compact
    def __call__(self, carry, x):
        spikes = nn.Dense(N, name="w", **IN_64)(spike(carry))
        new = 0.7 * carry + spikes + nn.Dense(N, name="a", **IN_64)(x)
        return new, new


def drawn(cell: nn.RNNCellBase, method: Any, dtype: Any = jnp.float64) -> tuple:
    """`(rnn, variables, carry, xs, resets, weights)`."""
    rnn, rng = OnlineRNN(cell, method), np.random.default_rng(0)
    carry = rnn.initialize_carry(jax.random.key(0), (B, M))
    xs = jnp.asarray(rng.normal(size=(T, B, M)), dtype)
    variables = rnn.init(jax.random.key(1), carry, xs)
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(0, 0.7, p.shape), p.dtype), variables["params"]
    )
    ys = jax.eval_shape(rnn.apply, variables, carry, xs)[1]
    weights = jnp.asarray(rng.normal(size=ys.shape), ys.dtype)
    return rnn, {"params": params}, carry, xs, rng.random((T, B)) < 0.2, weights


def gradient(
    rnn: OnlineRNN, variables: Any, carry: Any, xs: Any, resets: Any, weights: Any, split: Any
) -> Any:
    """Of the parameters, summed over the pieces of a segment."""

    @jax.jit
    def piece(params: Any, carry: Any, xs: Any, resets: Any, weights: Any) -> tuple:
        def loss(params: Any) -> tuple:
            after, ys = rnn.apply({"params": params}, carry, xs, resets)
            return jnp.vdot(weights, ys), after

        return jax.grad(loss, has_aux=True)(params)

    total, start = None, 0
    for length in split:
        cut = slice(start, start + length)
        found, carry = piece(variables["params"], carry, xs[cut], resets[cut], weights[cut])
        total = found if total is None else jax.tree.map(jnp.add, total, found)
        start += length
    return total


def loop(cell: nn.RNNCellBase) -> Callable:
    """The loss of the cell, called step by step."""

    def loss(params: Any, carry: Any, xs: Any, resets: Any, weights: Any) -> Any:
        initial, total = carry.hidden, 0.0
        carry = initial
        for x, reset, weight in zip(xs, resets, weights, strict=True):
            keep = jax.tree.map(
                lambda i, c, r=reset: jnp.where(r.reshape(-1, *(1,) * (c.ndim - 1)), i, c),
                initial,
                carry,
            )
            after, y = cell.apply({"params": params["cell"]}, keep, x)  # type: ignore
            carry = jax.tree.map(lambda a, k: a.astype(k.dtype), after, keep)
            total += jnp.vdot(weight, y)
        return total

    return loss


EXACT = pytest.mark.parametrize("method", [RTRL(), BPTT(tail=RTRL()), SnAp(order=9, entries=True)])


@EXACT
def test_what_only_a_surrogate_lets_through_is_remembered(method):
    rnn, variables, *segment = drawn(Spiking(), method)
    expected = jax.grad(loop(Spiking()))(variables["params"], *segment)
    for split in [(4,), (1, 3), (2, 1, 1)]:
        assert_close(gradient(rnn, variables, *segment, split), expected)
    assert np.abs(expected["cell"]["w"]["kernel"]).max() > 0.01


MIXING = {
    "softmax gates": nn.GRUCell(N, gate_fn=nn.softmax, **IN_64),
    "a cumulative sum": nn.SimpleCell(
        N, activation_fn=lambda v: jnp.tanh(jnp.cumsum(v, -1)), **IN_64
    ),
}


@pytest.mark.parametrize("cell", MIXING.values(), ids=MIXING)
@EXACT
def test_an_activation_that_mixes_units_is_differentiated_as_it_is(cell, method):
    rnn, variables, *segment = drawn(cell, method)
    expected = jax.grad(loop(cell))(variables["params"], *segment)
    assert_close(gradient(rnn, variables, *segment, (1, 3)), expected)
    rnn = OnlineRNN(cell, BPTT())
    fresh = segment[0]._replace(influence=())
    assert_close(gradient(rnn, variables, fresh, *segment[1:], (4,)), expected)


def test_a_method_for_unit_wise_cells_names_the_activation_that_mixes():
    rnn = OnlineRNN(MIXING["softmax gates"], RFLO())
    with pytest.raises(TypeError, match="gate_fn of GRUCell is not known to be elementwise"):
        rnn.initialize_carry(jax.random.key(0), (B, M))


@jax.custom_vjp
def squashed(v):
    return jnp.tanh(v)


def _slope(v, ct):
    return (ct * (1 - jnp.tanh(v) ** 2),)


squashed.defvjp(lambda v: (squashed(v), v), _slope)


@EXACT
def test_an_activation_may_know_its_derivative_backward_only(method):
    cell = nn.SimpleCell(N, activation_fn=squashed, **IN_64)
    rnn, variables, *segment = drawn(cell, method)
    expected = jax.grad(loop(nn.SimpleCell(N, **IN_64)))(variables["params"], *segment)
    assert_close(gradient(rnn, variables, *segment, (1, 3)), expected)


class ReadOut(Odd):
    """Gives out something that its new state says, by way of `output`."""

    output: Callable = jnp.tanh

    @nn.compact
    def __call__(self, carry, x):
        new = jnp.tanh(nn.Dense(N, name="w", **IN_64)(carry) + nn.Dense(N, name="a", **IN_64)(x))
        return new, self.output(new)


class Twice(Odd):
    """Cuts its state and its output from one array, each for itself."""

    @nn.compact
    def __call__(self, carry, x):
        wide = [nn.Dense(2 * N, name=name, **IN_64) for name in "wa"]
        both = jnp.tanh(wide[0](carry) + wide[1](x))
        return both[:, :N], 2.0 * both[:, :N]


READOUTS = {
    "twice": Twice(),
    "tanh": ReadOut(),
    "relu": ReadOut(output=nn.relu),
    "two parts of three": ReadOut(output=lambda h: sum(jnp.split(h, N, -1)[:2])),
    "a fixed matrix": ReadOut(output=lambda h: h @ jnp.arange(6.0).reshape(N, 2)),
    "remat": nn.remat(ReadOut)(output=lambda h: h),
    "jit": nn.jit(ReadOut)(output=jax.jit(lambda h: h)),
    "stack": StackedCell((nn.GRUCell(2, **IN_64), LRUCell(2, **IN_64))),
    "lru": LRUCell(2, **IN_64),
    "rtu": RTUCell(2, activation_fn=nn.tanh, **IN_64),
}


@pytest.mark.parametrize("cell", READOUTS.values(), ids=READOUTS)
def test_an_output_is_any_function_of_the_new_state(cell):
    rnn, variables, *segment = drawn(cell, SnAp(order=9, entries=True))
    expected = jax.grad(loop(cell))(variables["params"], *segment)
    assert_close(gradient(rnn, variables, *segment, (1, 3)), expected)


class Beside(Odd):
    """Gives out something that is not in its state."""

    @nn.compact
    def __call__(self, carry, x):
        new = jnp.tanh(nn.Dense(N, **IN_64)(carry) + nn.Dense(N, **IN_64)(x))
        return new, new + x[:, :1]


class Counting(Odd):
    """Keeps a number in its carry that is no float."""

    @nn.compact
    def __call__(self, carry, x):
        count, h = carry
        new = jnp.tanh(nn.Dense(N, **IN_64)(h) + nn.Dense(N, **IN_64)(x))
        return (count + 1, new), new

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        shape = input_shape[:-1]
        return jnp.zeros((*shape, 1), jnp.int32), jnp.zeros((*shape, N), jnp.float64)


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        (Beside(), "the output of Beside is not a function of its new carry alone"),
        (Counting(), "the carry of Counting holds an array of int32"),
    ],
)
def test_what_has_no_influence_is_refused(cell, sentence):
    for method in (SnAp(), RTRL(), BPTT(tail=SnAp())):
        with pytest.raises(ValueError, match=sentence):
            OnlineRNN(cell, method).initialize_carry(jax.random.key(0), (B, M))
    drawn(cell, BPTT())


def types(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.dtype, tree)


class Narrow(Odd):
    """Parameters in 32 bits, a carry in 64."""

    @nn.compact
    def __call__(self, carry, x):
        new = jnp.tanh(nn.Dense(N)(carry) + nn.Dense(N)(x))
        return new, new


@pytest.mark.parametrize("method", [SnAp(order=9), RTRL(), BPTT(tail=RTRL())], ids=repr)
def test_a_step_may_be_in_longer_types_than_its_parameters(method):
    rnn, variables, *segment = drawn(Narrow(), method)
    expected = jax.grad(loop(Narrow()))(variables["params"], *segment)
    assert types(expected) == types(variables["params"])
    assert_close(gradient(rnn, variables, *segment, (1, 3)), expected, 1e-6)


SHORT = nn.ConvLSTMCell(2, (3,), param_dtype=jnp.bfloat16)


@pytest.mark.parametrize("method", [SnAp(), RTRL(), BPTT(tail=SnAp())])
def test_a_carry_keeps_its_types_where_the_step_is_in_longer_ones(method):
    """And the outputs are flax's own, not rounded as the carry is."""
    rnn = OnlineRNN(SHORT, method)
    carry = rnn.initialize_carry(jax.random.key(0), (B, 4, 1))
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(T, B, 4, 1)), jnp.float32)
    variables = OnlineRNN(SHORT, BPTT()).init(jax.random.key(1), carry._replace(influence=()), xs)
    after, ys = rnn.apply(variables, carry, xs)
    assert types(after) == types(carry)
    _, first = SHORT.apply({"params": variables["params"]["cell"]}, carry.hidden, xs[0])
    assert ys.dtype == first.dtype == jnp.float32
    np.testing.assert_allclose(ys[0], first, rtol=1e-6)


@pytest.mark.parametrize(
    ("cell", "shape"), [(SHORT, (4, 1)), (SparseGRUCell(4, 2, param_dtype=jnp.bfloat16), (M,))]
)
def test_a_step_can_be_looped(cell, shape):
    rnn = OnlineRNN(cell, BPTT())
    carry = rnn.initialize_carry(jax.random.key(0), (B, *shape))
    xs = jnp.ones((T, B, *shape), jnp.float32)
    variables = jax.jit(rnn.init)(jax.random.key(1), carry, xs)
    act = lambda carry, x: rnn.apply(variables, carry, x, method="step")  # noqa: E731
    after, _ = jax.lax.scan(act, carry, xs)
    assert types(after) == types(carry)


class Offset(Odd):
    """Gives out its input and a bias: the gradient counts the steps."""

    @nn.compact
    def __call__(self, carry, x):
        new = self.param("bias", nn.initializers.zeros_init(), (1, N), jnp.bfloat16) + x
        return new, new

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], N), jnp.bfloat16)


def test_a_gradient_in_short_floats_is_summed_in_long_ones():
    """256 + 1 is 256 in bfloat16."""
    steps = 600
    rnn = OnlineRNN(Offset(), SnAp())
    carry = rnn.initialize_carry(jax.random.key(0), (1, N))
    xs = jnp.zeros((steps, 1, N), jnp.bfloat16)
    params = {"cell": {"bias": jnp.zeros((1, N), jnp.bfloat16)}}
    grads = jax.grad(lambda p: rnn.apply({"params": p}, carry, xs)[1].astype(float).sum())(params)
    np.testing.assert_array_equal(grads["cell"]["bias"].astype(float), np.full((1, N), steps))
