"""nnx's cells, each beside the linen cell that computes the same, and what runs them."""

import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import probe
from contract.registry import METHODS, B, M, N
from flax import nnx

from snaprl.cores import CoreState
from snaprl.cores.nnx import OnlineRNN

# Under the names of the linen cells that compute the same.
CELLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "simple": (nnx.SimpleCell, {}),
    "residual": (nnx.SimpleCell, {"residual": True}),
    "relu": (nnx.SimpleCell, {"activation_fn": nnx.relu}),
    "gru": (nnx.GRUCell, {}),
    "gru-custom": (
        nnx.GRUCell,
        {
            "gate_fn": nnx.softplus,
            "activation_fn": nnx.soft_sign,
            "carry_init": nnx.initializers.constant(0.3),
        },
    ),
    "lstm": (nnx.LSTMCell, {}),
    "lstm-custom": (nnx.LSTMCell, {"gate_fn": nnx.softplus, "activation_fn": nnx.swish}),
    "optimized-lstm": (nnx.OptimizedLSTMCell, {}),
}
CELL = pytest.mark.parametrize("cell", CELLS)
# Each kind of cell once, and each kind of gradient once.
QUICK = {("snap1", cell) for cell in ("residual", "gru-custom", "lstm", "optimized-lstm")}
QUICK |= {(method, "gru") for method in ("snap1", "bptt", "rtrl", "tail-snap1", "uoro")}


def pairs(methods: Iterable[str] = METHODS) -> pytest.MarkDecorator:
    """Parametrizes over `method` and `cell`: a sample in the fast suite, the product in all."""
    return pytest.mark.parametrize(
        ("method", "cell"),
        [
            pytest.param(m, c, marks=() if (m, c) in QUICK else pytest.mark.slow)
            for m in methods
            for c in CELLS
        ],
    )


def make_cell(cell: str, **changes: Any) -> Any:
    kind, options = CELLS[cell]
    options = {"param_dtype": jnp.float64, "dtype": None} | options | changes
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="carry_init is provided")
        return kind(M, N, rngs=nnx.Rngs(0), **options)


def shapes(cell: str) -> dict[str, Any]:
    """nnx's parameters as shapes."""
    state = nnx.eval_shape(lambda: nnx.state(make_cell(cell), nnx.Param))
    return nnx.to_pure_dict(state)


def draw(cell: str, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: rng.normal(0, 0.8, p.shape), shapes(cell))


def draw_mask(cell: str, seed: int, density: float) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: rng.random(p.shape) < density, shapes(cell))


def as_linen(cell: str, tree: dict[str, Any]) -> dict[str, Any]:
    """A tree in nnx's layout in linen's; the bias that nnx's GRU has not is 0."""

    def columns(layer: str, gate: int) -> dict[str, Any]:
        return {k: np.asarray(v)[..., gate * N :][..., :N] for k, v in tree[layer].items()}

    kind = CELLS[cell][0]
    if kind is nnx.SimpleCell:
        return {"i": columns("dense_i", 0), "h": columns("dense_h", 0)}
    if kind is nnx.LSTMCell:
        return {name.rstrip("_"): columns(name, 0) for name in tree}
    gates = "rzn" if kind is nnx.GRUCell else "ifgo"
    linen = {f"i{g}": columns("dense_i", k) for k, g in enumerate(gates)}
    linen |= {f"h{g}": columns("dense_h", k) for k, g in enumerate(gates)}
    if kind is nnx.GRUCell:
        linen["hn"]["bias"] = np.zeros(N, linen["hn"]["kernel"].dtype)
    return linen


def module(method: str, cell: str, seed: int, density: float = 1.0) -> OnlineRNN:
    """A module with drawn parameters. The mask has every leaf, so that one program serves all."""
    mask = draw_mask(cell, seed + 1, density)
    rnn = OnlineRNN(make_cell(cell), METHODS[method].method, mask=jax.tree.map(np.ones_like, mask))
    nnx.update(rnn.cell, draw(cell, seed))
    rnn.rewire(mask)
    return rnn


TRACED: list[OnlineRNN] = []


@nnx.jit
def run(rnn: OnlineRNN, carry: CoreState, segment: probe.Segment) -> probe.Outcome:
    TRACED.append(rnn)

    def loss(rnn: OnlineRNN, carry: CoreState, xs: jax.Array) -> tuple[jax.Array, tuple]:
        carry, ys = rnn(carry, xs, segment.resets)
        return jnp.vdot(segment.weights, ys), (carry, ys)

    # keys are in the carry of some methods: their gradient is none
    gradient = nnx.grad(loss, argnums=(0, 1, 2), has_aux=True, allow_int=True)
    (params, old_carry, xs), (end, ys) = gradient(rnn, carry, segment.xs)
    return probe.Outcome(end, ys, nnx.to_pure_dict(params)["cell"], xs, old_carry)


@nnx.jit
def run_nnx(rnn: nnx.RNN, segment: probe.Segment) -> probe.Outcome:
    """The same from a fresh carry, by nnx itself."""

    def loss(rnn: nnx.RNN, xs: jax.Array) -> tuple[jax.Array, tuple]:
        carry, ys = rnn(xs, return_carry=True, time_major=True)
        return jnp.vdot(segment.weights, ys), (carry, ys)

    gradient = nnx.grad(loss, argnums=(0, 1), has_aux=True)
    (params, xs), (end, ys) = gradient(rnn, jnp.asarray(segment.xs))
    return probe.Outcome(CoreState(end, ()), ys, nnx.to_pure_dict(params)["cell"], xs, None)


forward = nnx.jit(OnlineRNN.__call__)
act = nnx.jit(OnlineRNN.step)


def fresh(rnn: OnlineRNN, streams: int = B) -> CoreState:
    return rnn.initialize_carry((streams, M), jax.random.key(0))
