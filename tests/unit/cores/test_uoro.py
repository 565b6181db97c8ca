"""UORO through a segment is UORO step by step: Tallec and Ollivier's (7) to (9) as they stand."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snaprl.cores import BPTT, UORO, IndRNNCell, OnlineRNN, segment
from snaprl.cores.unitwise import plain_total
from snaprl.cores.uoro import RankOne, _contract, _init, dynamics
from snaprl.cores.walk import Walk, Walking, by_steps

B, M, N = 3, 4, 5
CELLS = {
    "simple": nn.SimpleCell,
    "gru": nn.GRUCell,
    "lstm": nn.OptimizedLSTMCell,
    "indrnn": IndRNNCell,  # weights of a unit's own
}


@dataclasses.dataclass(frozen=True)
class StepByStep(Walking):
    def walk(self) -> Walk:
        return by_steps(_init, _step, _contract)


def _step(cell, params, key, now, factors):
    moved = dynamics(cell, params, now, factors.state)
    shape = (cell.states, cell.features)
    signs = jax.vmap(lambda k: jax.random.rademacher(k, shape, moved[0].dtype))(key)
    v = tuple(signs[:, u] for u in range(cell.states))
    one_step = jax.vmap(lambda now, v: segment.outer_products(cell, params, now, v), in_axes=(1, 1))
    now = now._replace(resets=None)
    immediate = one_step(*jax.tree.map(lambda x: x[None, :, None], (now, v)))
    r0, r1 = ratio(factors.params, moved), ratio(immediate, v)
    return RankOne(
        tuple(times(r0, s) + times(r1, x) for s, x in zip(moved, v, strict=True)),
        jax.tree.map(lambda w, i: times(1 / r0, w) + times(1 / r1, i), factors.params, immediate),
    )


def norm(tree):
    return jnp.sqrt(plain_total((x * x).reshape(len(x), -1).sum(-1) for x in jax.tree.leaves(tree)))


def ratio(above, below):
    return jnp.sqrt((norm(above) + 1e-7) / (norm(below) + 1e-7))


def times(factor, x):
    return factor.reshape(factor.shape + (1,) * (x.ndim - 1)) * x


def drawn(cell, steps, resets, seed=0):
    """Inputs, a carry with an estimate in it, parameters, and what the outputs are weighted by."""
    keys = jax.random.split(jax.random.key(seed), 6)
    xs = jax.random.normal(keys[0], (steps, B, M))
    reset = jax.random.bernoulli(keys[1], 0.1, (steps, B)) if resets else None
    core = OnlineRNN(cell(N, param_dtype=jnp.float64), UORO())
    carry = core.initialize_carry(keys[2], (B, M))
    before = jax.random.normal(keys[4], (4, B, M))
    variables = jax.jit(core.init)(keys[3], carry, before)
    carry, ys = jax.jit(core.apply)(variables, carry, before)
    weights = jax.random.normal(keys[5], (steps, *ys.shape[1:]))
    return xs, reset, carry, variables, weights


def learn(cell, method, xs, reset, carry, variables, weights):
    core = OnlineRNN(cell(N, param_dtype=jnp.float64), method)

    def loss(variables):
        after, ys = core.apply(variables, carry, xs, reset)
        return jnp.vdot(weights, ys), after

    return jax.jit(jax.grad(loss, has_aux=True))(variables)


@pytest.mark.parametrize(
    ("name", "steps", "resets"),
    [
        ("gru", 1, True),
        ("gru", 7, False),
        ("gru", 64, False),
        *((name, 75, True) for name in CELLS),
    ],
)
def test_a_segment_is_its_steps(name, steps, resets, x64):
    problem = drawn(CELLS[name], steps, resets)
    grads, after = learn(CELLS[name], UORO(), *problem)
    expected, expected_after = learn(CELLS[name], StepByStep(), *problem)
    same(grads, expected)
    same(after, expected_after)


def test_as_a_tail(x64):
    xs, reset, carry, variables, weights = drawn(nn.GRUCell, 40, True)
    problem = (xs, reset, carry, variables, weights)
    grads, after = learn(nn.GRUCell, BPTT(tail=UORO()), *problem)
    expected, expected_after = learn(nn.GRUCell, BPTT(tail=StepByStep()), *problem)
    same(grads, expected)
    same(after, expected_after)


def test_a_reset_forgets_what_is_no_number(x64):
    """An estimate that is none, and a step that is none: after a reset nothing of them is left."""
    xs, _, carry, variables, weights = drawn(nn.GRUCell, 42, False)
    reset = jnp.zeros((42, B), bool).at[2].set(True)
    broken = jax.tree.map(
        lambda x: jnp.full_like(x, jnp.nan) if x.dtype == jnp.float64 else x, carry
    )
    _, after = learn(nn.GRUCell, UORO(), xs.at[1].set(jnp.nan), reset, broken, variables, weights)
    _, expected = learn(nn.GRUCell, UORO(), xs, reset, carry, variables, weights)
    same(after, expected)
    at_once = reset[2:]
    grads, after = learn(nn.GRUCell, UORO(), xs[2:], at_once, broken, variables, weights[2:])
    expected_grads, expected = learn(
        nn.GRUCell, UORO(), xs[2:], at_once, carry, variables, weights[2:]
    )
    same(after, expected)
    same(grads, expected_grads)


def same(tree, expected):
    def leaf(x, y):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12 * max(1.0, np.abs(y).max()))

    jax.tree.map(leaf, tree, expected)
