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

from snaprl.cores import BPTT, RFLO, RTRL, OnlineRNN, SnAp

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


@jax.custom_jvp
def spike(v):
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _(primals, tangents):
    (v,), (dv,) = primals, tangents
    return spike(v), dv / (1 + jnp.abs(v)) ** 2


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
