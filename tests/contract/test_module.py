"""`OnlineRNN` as a flax module: nn.RNN's parameters in nn.RNN's place, static under jit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import probe
from contract.registry import CELLS, METHODS, B, M, N

from snaprl.cores import BPTT, RTRL, OnlineRNN, SnAp

T = 3
CELL = pytest.mark.parametrize("cell", CELLS)


class FlaxParent(nn.Module):
    """A network around flax's layer."""

    cell: nn.RNNCellBase

    def setup(self):
        self.encoder = nn.Dense(M, param_dtype=jnp.float64)
        self.rnn = nn.RNN(self.cell.clone(), time_major=True)
        self.head = nn.Dense(1, param_dtype=jnp.float64)

    def __call__(self, carry, xs):
        del carry
        return self.head(self.rnn(self.encoder(xs)))


class OnlineParent(nn.Module):
    """The same network around ours."""

    cell: nn.RNNCellBase

    def setup(self):
        self.encoder = nn.Dense(M, param_dtype=jnp.float64)
        self.rnn = OnlineRNN(self.cell.clone())
        self.head = nn.Dense(1, param_dtype=jnp.float64)

    def __call__(self, carry, xs):
        _, ys = self.rnn(carry, self.encoder(xs))
        return self.head(ys)


def described(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@CELL
def test_parameters_are_those_of_flax(cell, x64):
    """Same names, shapes and types, so that trained parameters move either way."""
    xs = jnp.ones((T, B, M))
    ours = OnlineRNN(CELLS[cell])
    carry = ours.initialize_carry(jax.random.key(0), (B, M))
    flax_rnn = nn.RNN(CELLS[cell], time_major=True)
    found = jax.eval_shape(ours.init, jax.random.key(1), carry, xs)
    assert described(found) == described(jax.eval_shape(flax_rnn.init, jax.random.key(1), xs))
    for_acting = jax.eval_shape(
        lambda key: ours.init(key, carry, xs[0], method="step"), jax.random.key(1)
    )
    assert described(for_acting) == described(found)


@CELL
def test_parameters_are_those_of_flax_inside_a_parent(cell, x64):
    xs = jnp.ones((T, B, M))
    carry = OnlineRNN(CELLS[cell]).initialize_carry(jax.random.key(0), (B, M))
    ours, flaxs = OnlineParent(CELLS[cell]), FlaxParent(CELLS[cell])
    found, expected = (
        jax.eval_shape(parent.init, jax.random.key(1), carry, xs) for parent in (ours, flaxs)
    )
    assert described(found) == described(expected)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_parameters_move_either_way(cell, x64):
    xs = jnp.asarray(probe.draw_segment(41, T).xs)
    carry = OnlineRNN(CELLS[cell]).initialize_carry(jax.random.key(0), (B, M))
    ours, flaxs = OnlineParent(CELLS[cell]), FlaxParent(CELLS[cell])
    for source in (ours, flaxs):
        variables = jax.jit(source.init)(jax.random.key(1), carry, xs)
        found, expected = (jax.jit(m.apply)(variables, carry, xs) for m in (ours, flaxs))
        probe.assert_close(found, expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_module_is_equal_to_its_like_and_static_under_jit(method, x64):
    """A module that is built anew on every call compiles once."""
    row, mask = METHODS[method], probe.draw_mask("gru", 42, 0.5)

    def make(mask=mask):
        return OnlineRNN(CELLS["gru"].clone(), row.method, mask=mask)

    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != make(mask=None)
    assert make() != make(mask=probe.draw_mask("gru", 43, 0.5))

    traced = []

    def run(rnn, variables, carry, xs):
        traced.append(rnn)
        return rnn.apply(variables, carry, xs)

    run = jax.jit(run, static_argnums=0)
    carry = make().initialize_carry(jax.random.key(0), (B, M))
    xs = jnp.ones((T, B, M))
    variables = jax.jit(make().init)(jax.random.key(1), carry, xs)
    for _ in range(3):
        run(make(), variables, carry, xs)
    assert len(traced) == 1


def test_methods_are_values():
    assert SnAp(order=1) == SnAp() != RTRL()
    assert BPTT(tail=SnAp()) == BPTT(tail=SnAp(1)) != BPTT()
    assert len({BPTT(), BPTT(tail=None), BPTT(tail=RTRL()), RTRL(), SnAp(), SnAp(1)}) == 4


def test_a_step_may_be_scanned():
    """An actor's loop is one program."""
    rnn = OnlineRNN(nn.GRUCell(N))
    carry = rnn.initialize_carry(jax.random.key(0), (B, M))
    xs = jnp.asarray(np.random.default_rng(44).normal(size=(T, B, M)), jnp.float32)
    variables = jax.jit(rnn.init)(jax.random.key(1), carry, xs)
    after, ys = jax.lax.scan(
        lambda carry, x: rnn.apply(variables, carry, x, method="step"), carry, xs
    )
    expected, expected_ys = jax.jit(rnn.apply)(variables, carry, xs)
    probe.assert_close(ys, expected_ys, 1e-6)
    probe.assert_close(after.hidden, expected.hidden, 1e-6)


def test_a_lower_layer_is_given_what_the_upper_one_gives_its_inputs(x64):
    """Two layers, each with its own method: one loss, one gradient."""
    segment, key = probe.draw_segment(45, T), jax.random.key(2)
    lower = OnlineRNN(nn.GRUCell(M, param_dtype=jnp.float64), SnAp())
    upper = OnlineRNN(CELLS["gru"], BPTT())
    carries = [rnn.initialize_carry(key, (B, M)) for rnn in (lower, upper)]
    params = [
        jax.jit(rnn.init)(key, carry, segment.xs)
        for rnn, carry in zip((lower, upper), carries, strict=True)
    ]

    def below(params):
        return lower.apply(params, carries[0], segment.xs)[1]

    def above(ys):
        return jnp.vdot(segment.weights, upper.apply(params[1], carries[1], ys)[1])

    @jax.jit
    def both_ways(params):
        given = jax.grad(above)(below(params))
        return (
            jax.grad(lambda p: above(below(p)))(params),
            jax.grad(lambda p: jnp.vdot(given, below(p)))(params),
        )

    probe.assert_close(*both_ways(params[0]))
