"""Gradients and end states in short floats are those of float64, up to the rounding of the type."""

from functools import lru_cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snaprl.cores import BPTT, RFLO, RTRL, GradientMethod, OnlineRNN, SnAp
from snaprl.cores.sparsity import fixed_fan_in

N, M, B, T = 6, 3, 2, 8  # units, inputs, streams, steps of a segment
SEGMENTS = 2  # the second one starts from an influence
FAN_IN, DENSITY = 2, 0.3

# The largest error of a part of the outcome, over that part's largest magnitude. float32 keeps 24
# bits of a number and bfloat16 8, so one rounding is off by up to 6e-8 and 4e-3; over a few of them
# 4e-7 and 1.4e-2 were seen, in all rows and with six seeds. These are about three times that.
TOLERANCE = {jnp.float32: 1e-6, jnp.bfloat16: 0.04}

CELLS: dict[str, nn.RNNCellBase] = {"gru": nn.GRUCell(N), "lstm": nn.LSTMCell(N)}
METHODS: dict[str, tuple[GradientMethod, str]] = {
    "snap1": (SnAp(order=1), "dense"),
    "snap2-fan-in": (SnAp(order=2), "fan-in"),
    "snap2-mask": (SnAp(order=2), "any"),
    "rtrl": (RTRL(), "dense"),
    "tail-snap1": (BPTT(tail=SnAp(order=1)), "dense"),
    "rflo": (RFLO(), "dense"),
}
QUICK = {(method, "gru") for method in METHODS} | {("snap1", "lstm")}
PAIRS = pytest.mark.parametrize(
    ("method", "cell"),
    [
        pytest.param(method, cell, marks=() if (method, cell) in QUICK else pytest.mark.slow)
        for method in METHODS
        for cell in CELLS
    ],
)


class Numbers(NamedTuple):
    """What a run is given."""

    params: Any
    xs: Any  # [SEGMENTS, T, B, M]
    weights: Any  # [SEGMENTS, T, B, N]  dL/dys: the loss is linear


class Outcome(NamedTuple):
    """What a run gives."""

    params: Any  # gradients, segment by segment
    xs: Any
    hidden: Any  # at the end
    influence: Any


@lru_cache
def shapes(cell: str) -> Any:
    """The parameters of `cell` as shapes."""
    carry = CELLS[cell].initialize_carry(jax.random.key(0), (B, M))
    return jax.eval_shape(CELLS[cell].init, jax.random.key(0), carry, jnp.zeros((B, M)))["params"]


def drawn_mask(cell: str, kind: str) -> Any:
    """None, one fan-in for all gates, or any mask at all: of input weights and biases too."""
    if kind == "dense":
        return None
    if kind == "any":
        rng = np.random.default_rng(1)
        return jax.tree.map(lambda p: rng.random(p.shape) < DENSITY, shapes(cell))
    pattern = fixed_fan_in(FAN_IN)((N, N), 1)
    return {name: {"kernel": pattern} for name in shapes(cell) if name.startswith("h")}


def drawn(cell: str, dtype: Any, seed: int) -> Numbers:
    """Numbers that `dtype` holds exactly, so that runs differ in their arithmetic only."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: rng.normal(0, 0.5, p.shape), shapes(cell))
    xs, weights = (rng.normal(size=(SEGMENTS, T, B, size)) for size in (M, N))
    rounded = jax.tree.map(lambda x: x.astype(dtype), (params, xs, weights))
    return Numbers(*rounded)


@lru_cache
def programs(method: str, cell: str, dtype: Any) -> Any:
    """A fresh carry; and the gradients of a segment, with the carry after it."""
    kind, mask = METHODS[method]
    rnn = OnlineRNN(CELLS[cell].clone(param_dtype=dtype), kind, mask=drawn_mask(cell, mask))

    apply: Any = rnn.apply

    def loss(params: Any, xs: Any, carry: Any, weights: Any) -> Any:
        after, ys = apply({"params": {"cell": params}}, carry, xs)
        return jnp.vdot(weights, ys), after

    return (
        rnn.initialize_carry(jax.random.key(0), (B, M)),
        jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True)),
    )


def run(method: str, cell: str, dtype: Any, numbers: Numbers) -> Outcome:
    carry, gradient = programs(method, cell, dtype)
    params, xs, weights = jax.tree.map(lambda x: jnp.asarray(x, dtype), numbers)
    grads = []
    for x, w in zip(xs, weights, strict=True):
        grad, carry = gradient(params, x, carry, w)
        grads.append(grad)
    return Outcome(*zip(*grads, strict=True), *carry)


def types(outcome: Outcome) -> list[Any]:
    """The types of each part."""
    return [{leaf.dtype for leaf in jax.tree.leaves(part)} for part in outcome]


def error(found: Any, expected: Any) -> float:
    """The largest difference of two trees, over the largest magnitude of what is expected."""
    found, expected = (
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (found, expected)
    )
    return np.abs(found - expected).max() / np.abs(expected).max()


@PAIRS
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_short_floats_stay_close_to_float64(method, cell, dtype):
    """Gradients and states have the parameters' type; the influence is float32 at least."""
    numbers = drawn(cell, dtype, seed=91)
    found = run(method, cell, dtype, numbers)
    with jax.enable_x64(True):
        exact = run(method, cell, jnp.float64, numbers)
    assert types(found) == [{np.dtype(dtype)}] * 3 + [{np.dtype(np.float32)}]
    assert types(exact) == [{np.dtype(np.float64)}] * 4
    for part in Outcome._fields:
        assert error(getattr(found, part), getattr(exact, part)) < TOLERANCE[dtype], part
