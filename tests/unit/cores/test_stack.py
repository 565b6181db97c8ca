"""Stacks: layers that learn by themselves, and layers as one cell."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from snaprl.cores import BPTT, RTRL, OnlineRNN, SnAp, forecast
from snaprl.cores.stack import OnlineStack, StackedCell

pytestmark = pytest.mark.usefixtures("x64")

IN_64 = {"param_dtype": jnp.float64}
CELLS = (nn.GRUCell(3, **IN_64), nn.LSTMCell(2, **IN_64))
B, M, T = 2, 2, 5


def drawn(seed=0, steps=T):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(steps, B, M)),
        rng.random((steps, B)) < 0.2,
        rng.normal(size=(steps, B, 2)),
    )


def gradient(module, variables, carry, xs, resets, weights, split=(T,)):
    total, start = 0, 0
    for length in split:
        cut = slice(start, start + length)

        def loss(params, carry=carry, cut=cut):
            after, ys = module.apply({"params": params}, carry, xs[cut], resets[cut])
            return jnp.vdot(weights[cut], ys), after

        found, carry = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        total, start = ravel_pytree(found)[0] + total, start + length
    return total


def stacked_loop(variables, xs, resets, weights):
    """The loss of the two cells called in turn."""
    initial = tuple(c.initialize_carry(jax.random.key(0), (B, M)) for c in CELLS)
    carries, total = initial, 0.0
    for x, reset, weight in zip(xs, resets, weights, strict=True):
        carries = jax.tree.map(lambda i, c, r=reset: jnp.where(r[:, None], i, c), initial, carries)
        after = []
        for k, (cell, carry) in enumerate(zip(CELLS, carries, strict=True)):
            params = variables["params"][f"layers_{k}"]["cell"]
            carry, x = cell.apply({"params": params}, carry, x)
            after.append(carry)
        carries = tuple(after)
        total += jnp.vdot(weight, x)
    return total


def test_inside_one_segment_backpropagation_is_exact_across_layers():
    stack = OnlineStack(CELLS, BPTT())
    carry = stack.initialize_carry(jax.random.key(0), (B, M))
    xs, resets, weights = drawn()
    variables = stack.init(jax.random.key(1), carry, xs)
    exact = jax.grad(lambda p: stacked_loop({"params": p}, xs, resets, weights))
    expected = ravel_pytree(exact(variables["params"]))[0]
    found = gradient(stack, variables, carry, xs, resets, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    # what an upper layer remembers of earlier segments is not followed down
    layered = OnlineStack(CELLS, RTRL())
    carry = layered.initialize_carry(jax.random.key(0), (B, M))
    pieces = gradient(layered, variables, carry, xs, resets, weights, (2, 3))
    lower = ravel_pytree(variables["params"]["layers_0"])[0].size
    np.testing.assert_allclose(pieces[lower:], expected[lower:], rtol=1e-12, atol=1e-13)
    assert np.abs(pieces[:lower] - expected[:lower]).max() > 1e-3


def test_each_layer_learns_as_it_would_alone():
    """The upper layer's gradient is that of the layer on the lower one's outputs."""
    stack = OnlineStack(CELLS, SnAp())
    carry = stack.initialize_carry(jax.random.key(0), (B, M))
    xs, resets, weights = drawn()
    variables = stack.init(jax.random.key(1), carry, xs)
    lower, upper = OnlineRNN(CELLS[0]), OnlineRNN(CELLS[1])
    params = variables["params"]
    _, middle = lower.apply({"params": params["layers_0"]}, carry[0], xs, resets)
    alone = gradient(upper, {"params": params["layers_1"]}, carry[1], middle, resets, weights)
    together = gradient(stack, variables, carry, xs, resets, weights)
    np.testing.assert_allclose(together[-alone.size :], alone, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("split", [(2, 3), pytest.param((1, 1, 1, 1, 1), marks=pytest.mark.slow)])
def test_the_stack_as_one_cell_is_exact(split):
    rnn = OnlineRNN(StackedCell(CELLS), RTRL())
    carry = rnn.initialize_carry(jax.random.key(0), (B, M))
    xs, resets, weights = drawn()
    variables = rnn.init(jax.random.key(1), carry, xs)
    whole = OnlineRNN(StackedCell(CELLS), BPTT())
    expected = gradient(whole, variables, carry._replace(influence=()), xs, resets, weights)
    found = gradient(rnn, variables, carry, xs, resets, weights, split)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_acting_is_a_segment_of_one_step():
    stack = OnlineStack(CELLS)
    carry = stack.initialize_carry(jax.random.key(0), (B, M))
    xs, resets, _ = drawn()
    variables = stack.init(jax.random.key(1), carry, xs)
    after, ys = stack.apply(variables, carry, xs[:1], resets[:1])
    acted, y = stack.apply(variables, carry, xs[0], resets[0], method="step")
    np.testing.assert_allclose(y, ys[0], rtol=1e-12)
    for one, other in zip(acted, after, strict=True):
        np.testing.assert_allclose(ravel_pytree(one.hidden)[0], ravel_pytree(other.hidden)[0])


def test_each_layer_has_its_own_mask():
    cells = nn.SimpleCell(3), nn.SimpleCell(4)
    masks = {"h": {"kernel": np.eye(3)}}, None
    stack = OnlineStack(cells, SnAp(order=1), masks=masks)
    carry = stack.initialize_carry(jax.random.key(0), (2, 5))
    xs = jax.random.normal(jax.random.key(1), (6, 2, 5))
    variables = stack.init(jax.random.key(2), carry, xs)
    kernel = variables["params"]["layers_0"]["cell"]["h"]["kernel"]
    assert np.abs(kernel - np.diag(np.diag(kernel))).max() > 0.1  # what is masked is there
    _, ys = stack.apply(variables, carry, xs)
    diagonal = jax.tree.map(lambda x: x, variables["params"])
    diagonal["layers_0"]["cell"]["h"]["kernel"] = jnp.diag(jnp.diag(kernel))
    _, plain = OnlineStack(cells).apply({"params": diagonal}, carry, xs)
    np.testing.assert_allclose(ys, plain, atol=1e-6)
    with pytest.raises(ValueError, match="2 cells need as many masks, not 1"):
        OnlineStack(cells, masks=(None,))


class Scaled(nn.RNNCellBase):
    """A cell of one's own, that does not call its width `features`."""

    width: int

    @nn.compact
    def __call__(self, carry, x):
        h = jnp.tanh(nn.Dense(self.width, **IN_64)(x) + 0.5 * carry)
        return h, h

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], self.width))

    @property
    def num_feature_axes(self):
        return 1


def test_a_stack_is_of_any_cells_and_of_stacks():
    """Stacks in a stack are the cells in a row."""
    cells = Scaled(3), nn.GRUCell(4, **IN_64), Scaled(2)
    flat, nested = StackedCell(cells), StackedCell((StackedCell(cells[:2]), cells[2]))
    xs, _, _ = drawn()
    found = []
    for cell in (flat, nested):
        carry = cell.initialize_carry(jax.random.key(0), (B, M))
        shapes = [leaf.shape for leaf in jax.tree.leaves(carry)]
        assert shapes == [(B, 3), (B, 4), (B, 2)]
        params = cell.init(jax.random.key(1), carry, xs[0])["params"]
        theta, unravel = ravel_pytree(params)
        drawn_params = unravel(np.random.default_rng(3).normal(size=theta.shape))
        found.append(cell.apply({"params": drawn_params}, carry, xs[0])[1])
    np.testing.assert_array_equal(found[0], found[1])


def test_a_carry_of_other_cells_is_refused():
    sentence = "carry has 1 parts for 2 cells; initialize_carry makes one for each, from the bottom"
    xs, _, _ = drawn()
    for stack, x, methods in (
        (StackedCell(CELLS), xs[0], [None]),
        (OnlineStack(CELLS), xs, [None, "step"]),
    ):
        carry = stack.initialize_carry(jax.random.key(0), (B, M))
        variables = stack.init(jax.random.key(1), carry, x)
        for method in methods:
            with pytest.raises(ValueError, match=sentence):
                stack.apply(variables, carry[:1], x, method=method)


@pytest.mark.parametrize("kind", [OnlineStack, StackedCell])
@pytest.mark.parametrize("cells", [nn.GRUCell(3), (), None])
def test_what_is_no_tuple_of_cells_is_refused(kind, cells):
    with pytest.raises(TypeError, match=r"^cells must be a tuple of recurrent cells"):
        kind(cells)


@pytest.mark.parametrize("kind", [OnlineStack, StackedCell])
def test_what_is_no_cell_is_refused(kind):
    with pytest.raises(TypeError, match=r"^cell is the class GRUCell; it must be an instance"):
        kind((nn.GRUCell(3), nn.GRUCell))


def test_a_carry_that_is_none_is_refused():
    stack, (xs, *_) = OnlineStack(CELLS), drawn()
    with pytest.raises(TypeError, match=r"^carry is of type NoneType; it must be the tuple that"):
        stack.init(jax.random.key(0), None, xs)


def test_influences_that_do_not_fit_together(monkeypatch):
    """Each of the two does."""
    stack = OnlineStack((nn.GRUCell(4), nn.GRUCell(4)))
    carry = stack.initialize_carry(jax.random.key(0), (B, M))
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(state.influence)) for state in carry]
    monkeypatch.setattr(forecast, "_memory", lambda: sum(sizes) - 1)
    wanted = r"^the influences of 2 layers take .* GiB for 2 streams, of .* 1 stream would fit$"
    with pytest.raises(ValueError, match=wanted):
        stack.initialize_carry(jax.random.key(0), (B, M))
    monkeypatch.setattr(forecast, "_memory", lambda: sum(sizes))
    stack.initialize_carry(jax.random.key(0), (B, M))
