"""The closed forms of every cell: phi's derivatives against jax's and against differences."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snaprl.cores import (
    ELSTMCell,
    IndRNNCell,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LRUCell,
    RTUCell,
)
from snaprl.cores.cells import Activation, is_unitwise, unitwise

pytestmark = pytest.mark.usefixtures("x64")

N = 5
ODD = {"gate_fn": nn.softplus, "activation_fn": nn.swish}  # no slope of these is known here
CELLS = {
    "simple": nn.SimpleCell(N),
    "residual": nn.SimpleCell(N, residual=True),
    "gelu": nn.SimpleCell(N, activation_fn=nn.gelu, residual=True),
    "gru": nn.GRUCell(N),
    "gru, odd": nn.GRUCell(N, **ODD),
    "mgu": nn.MGUCell(N),
    "mgu, odd": nn.MGUCell(N, **ODD),
    "mgu without reset": nn.MGUCell(N, reset_gate=False),
    "mgu without reset, odd": nn.MGUCell(N, reset_gate=False, **ODD),
    "lstm": nn.LSTMCell(N),
    "lstm, odd": nn.LSTMCell(N, **ODD),
    "optimized lstm": nn.OptimizedLSTMCell(N),
    "indrnn": IndRNNCell(N),
    "indrnn, odd": IndRNNCell(N, activation_fn=nn.swish),
    "elstm": ELSTMCell(N),
    "elstm, odd": ELSTMCell(N, **ODD),
    "elstm without output gate": ELSTMCell(N, output_gate=False),
    "lru": LRUCell(N),
    "rtu": RTUCell(N),
    "nonlinear rtu": RTUCell(N, nonlinear=True, activation_fn=nn.tanh),
    "nonlinear rtu, odd": RTUCell(N, nonlinear=True, activation_fn=nn.swish),
}
# Their phi holds the statistics over the units constant, which differences do not.
NORMALISED = {
    "layer-norm gru": LayerNormGRUCell(N),
    "layer-norm gru, odd": LayerNormGRUCell(N, epsilon=0.3, **ODD),
    "layer-norm lstm": LayerNormLSTMCell(N),
    "layer-norm lstm, odd": LayerNormLSTMCell(N, epsilon=0.3, **ODD),
}
ALL_CELLS = CELLS | NORMALISED
CELL = pytest.mark.parametrize("cell", ALL_CELLS.values(), ids=ALL_CELLS)
SMOOTH_CELL = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


def drawn(view):
    """`(a, s, h, w)`: gates, state variables and local parameters, `[N]` each."""
    rng = np.random.default_rng(3)
    sizes = len(view.inputs), len(view.recurrent), view.states, len(view.local)
    return tuple(tuple(jnp.asarray(rng.normal(size=N)) for _ in range(n)) for n in sizes)


def stacked(block):
    """A block `[..., rows, columns]`, its structural zeros written out."""
    if not block:
        return np.zeros((0,))
    return np.array([[np.zeros(N) if x is None else x for x in row] for row in block])


def found_derivatives(view, arguments):
    _, saved = view.phi(*arguments)
    return [stacked(block) for block in view.derivatives(saved, *arguments[2:])]


@CELL
def test_derivatives_are_those_of_jax(cell):
    """Unit by unit: jax's Jacobians are diagonal in units, and the diagonals are the blocks."""
    view = unitwise(cell)
    arguments = drawn(view)
    jacobians = jax.jacobian(lambda *args: view.phi(*args)[0], argnums=(0, 1, 2, 3))(*arguments)
    for k, found in enumerate(found_derivatives(view, arguments)):
        if not arguments[k]:
            continue
        whole = np.array([row[k] for row in jacobians])
        np.testing.assert_allclose(
            found, np.diagonal(whole, axis1=2, axis2=3), rtol=1e-12, atol=1e-13
        )
        assert not (whole * (1 - np.eye(N))).any()


@SMOOTH_CELL
def test_derivatives_are_those_of_differences(cell):
    view, step = unitwise(cell), 1e-6
    arguments = drawn(view)
    for k, found in enumerate(found_derivatives(view, arguments)):
        for column in range(len(arguments[k])):
            moved = [
                np.stack(view.phi(*nudged(arguments, k, column, sign * step))[0])
                for sign in (1, -1)
            ]
            expected = (moved[0] - moved[1]) / (2 * step)
            np.testing.assert_allclose(found[:, column], expected, atol=1e-8)


def nudged(arguments, k, column, amount):
    changed = [list(vector) for vector in arguments]
    changed[k][column] = changed[k][column] + amount
    return [tuple(vector) for vector in changed]


@CELL
def test_what_is_left_out_is_zero_by_structure(cell):
    """None says zero for every input; an entry that is there is not always zero."""
    view = unitwise(cell)
    arguments = drawn(view)
    _, saved = view.phi(*arguments)
    for block in view.derivatives(saved, *arguments[2:]):
        for row in block:
            assert all(entry is None or jnp.abs(entry).max() > 0 for entry in row)


@CELL
def test_the_view_names_the_layers_of_the_cell(cell):
    carry = cell.initialize_carry(jax.random.key(0), (1, 2))
    params = cell.init(jax.random.key(0), carry, jnp.zeros((1, 2)))["params"]
    view = unitwise(cell)
    assert {*view.inputs, *view.recurrent, *view.local} == set(params)
    assert {params[name]["kernel"].shape for name in view.inputs} == {(2, N)}
    assert all(params[name]["kernel"].shape == (N, N) for name in view.recurrent)
    assert all(params[name].shape == (N,) for name in view.local)
    assert view.states == len(jax.tree.leaves(carry))
    assert view.features == N


@pytest.mark.parametrize(
    "function", [nn.sigmoid, jax.nn.sigmoid, nn.tanh, jnp.tanh, nn.relu, nn.gelu, jnp.sin]
)
def test_an_activation_knows_its_slope(function):
    x = jnp.linspace(-3, 3, 40)
    activation = Activation(function)
    y, saved = activation(x)
    np.testing.assert_array_equal(y, function(x))
    expected = jax.vmap(jax.grad(function))(x)
    np.testing.assert_allclose(activation.slope(y, saved), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("function", "elementwise"),
    [
        (nn.sigmoid, True),
        (nn.softplus, True),
        (nn.swish, True),
        (nn.relu, True),
        (nn.gelu, True),
        (nn.soft_sign, True),
        (lambda x: nn.leaky_relu(x, 0.3), True),
        (lambda x: jnp.tanh(x) * jnp.arange(N)[None], True),
        (nn.softmax, False),
        (nn.log_softmax, False),
        (lambda x: x[..., ::-1], False),
        (lambda x: jnp.cumsum(x, axis=-1), False),
    ],
)
def test_an_activation_is_elementwise_or_the_cell_is_not_unit_wise(function, elementwise):
    for cell in (nn.SimpleCell(N, activation_fn=function), nn.GRUCell(N, gate_fn=function)):
        assert is_unitwise(cell) is elementwise


def test_a_known_slope_costs_nothing_forward():
    """The derivative of tanh and of sigmoid is had from the value: nothing is kept for it."""
    for function in (nn.sigmoid, nn.tanh, jnp.tanh):
        assert Activation(function)(jnp.ones(2))[1] is None
