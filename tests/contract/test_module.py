"""`OnlineRNN` as a flax module: nn.RNN's parameters in nn.RNN's place, static under jit."""

import functools

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


class ScannedRNN(nn.Module):
    """What programs write that restart a cell inside their own scan."""

    @functools.partial(nn.scan, variable_broadcast="params", split_rngs={"params": False})
    @nn.compact
    def __call__(self, carry, inputs):
        x, first = inputs
        cell = nn.GRUCell(N, param_dtype=jnp.float64)
        return cell(jnp.where(first[:, None], 0.0, carry), x)


class CompactParent(nn.Module):
    """One compact method, with a scanned cell or with ours."""

    online: bool

    @nn.compact
    def __call__(self, carry, xs, first):
        if self.online:
            return OnlineRNN(nn.GRUCell(N, param_dtype=jnp.float64))(carry, xs, first)
        return ScannedRNN()(carry, (xs, first))


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


def test_a_scanned_cell_in_a_compact_method_becomes_ours(x64):
    """Its weights go up by one level; acting is reading, one step at a time."""
    segment = probe.draw_segment(46, 2 * T, reset_rate=0.3)
    xs, first = (jnp.asarray(x) for x in (segment.xs, segment.resets))
    scanned, ours = CompactParent(online=False), CompactParent(online=True)
    hidden = jnp.zeros((B, N), jnp.float64)
    params = scanned.init(jax.random.key(1), hidden, xs, first)["params"]
    moved = {"params": {"GRUCell_0": params["ScannedRNN_0"]["GRUCell_0"]}}
    start = OnlineRNN(CELLS["gru"]).initialize_carry(jax.random.key(0), (B, M))
    assert described(moved) == described(ours.init(jax.random.key(1), start, xs, first))
    end, ys = ours.apply(moved, start, xs, first)
    probe.assert_close((end.hidden, ys), scanned.apply({"params": params}, hidden, xs, first))
    carry = start
    for t in range(2 * T):
        carry, _ = ours.apply(moved, carry, xs[t : t + 1], first[t : t + 1])
    probe.assert_close(carry, end)


def test_a_bare_cell_s_weights_become_those_of_the_layer_s_cell(x64):
    cell, xs = CELLS["gru"], jnp.asarray(probe.draw_segment(47, T).xs)
    rnn = OnlineRNN(cell)
    carry = rnn.initialize_carry(jax.random.key(0), (B, M))
    bare = cell.init(jax.random.key(1), carry.hidden, xs[0])["params"]
    _, y = rnn.apply({"params": {"cell": bare}}, carry, xs[0], method="step")
    probe.assert_close(y, cell.apply({"params": bare}, carry.hidden, xs[0])[1])


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
