"""`snaprl bench core`: what a gradient costs, as ratios against a peer in the same run.

Two machines never agree on digits, nor does one machine with itself an hour later. So candidates
take turns, and what is reported is the median over rounds of the ratio within a round.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from snaprl.cores import BPTT, CoreState, OnlineRNN, SnAp, compiler_options

PyTree = Any
INPUTS = 64


def core(rounds: int = 30) -> list[dict[str, Any]]:
    """Measures the segment form and the step form of SnAp-1 on flax's GRU, with 64 inputs.

    Args:
      rounds: how often the candidates take turns.

    Returns:
      One row per size: what was measured, microseconds per candidate, and the ratio of SnAp-1 to
      the fastest of its peers (segment) or to the step written out by hand.
    """
    rows = [_segment_row(streams, rounds) for streams in (1, 4, 16)]
    return rows + [_step_row(units, rounds) for units in (64, 128, 256)]


def race(candidates: Mapping[str, Callable[[], PyTree]], rounds: int) -> dict[str, np.ndarray]:
    """Times candidates in turn: seconds `[rounds]` each, compilation and a warm-up left out."""
    repeats = {}
    for name, run in candidates.items():
        jax.block_until_ready(run())
        start = time.perf_counter()
        jax.block_until_ready(run())
        repeats[name] = max(1, int(0.01 / (time.perf_counter() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            out = None
            for _ in range(repeats[name]):
                out = run()
            jax.block_until_ready(out)
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return {name: np.array(times) for name, times in seconds.items()}


def _segment_row(streams: int, rounds: int, units: int = 128, steps: int = 128) -> dict[str, Any]:
    """A gradient, with the influence after the segment, beside truncated backpropagation's."""
    x_key, w_key, key = jax.random.split(jax.random.key(0), 3)
    xs = jax.random.normal(x_key, (steps, streams, INPUTS))
    weights = jax.random.normal(w_key, (steps, streams, units))
    cell = nn.GRUCell(units)
    plain = nn.RNN(cell, time_major=True)
    params = plain.init(key, xs)
    plain_apply: Callable[..., Any] = plain.apply

    def online(method: Any) -> Callable[[], PyTree]:
        rnn = OnlineRNN(cell, method)
        apply: Callable[..., Any] = rnn.apply

        def loss(params: PyTree, carry: CoreState) -> tuple[jax.Array, CoreState]:
            carry, ys = apply(params, carry, xs)
            return jnp.vdot(ys, weights), carry

        grad = jax.value_and_grad(loss, has_aux=True)
        step = jax.jit(grad, donate_argnums=1, compiler_options=compiler_options())
        state = {"carry": rnn.initialize_carry(key, (streams, INPUTS))}

        def run() -> PyTree:
            (_, state["carry"]), grads = step(params, state["carry"])
            return grads, state["carry"]

        return run

    plain_grad = jax.jit(
        jax.value_and_grad(lambda params: jnp.vdot(plain_apply(params, xs), weights)),
        compiler_options=compiler_options(),
    )
    candidates = {
        "snap1": online(SnAp(order=1)),
        "bptt": online(BPTT()),
        "nn.RNN": lambda: plain_grad(params),
    }
    seconds = race(candidates, rounds)
    peer = np.minimum(seconds["bptt"], seconds["nn.RNN"])
    return _row(f"segment GRU-{units} T={steps} B={streams}", seconds, seconds["snap1"] / peer)


def _step_row(units: int, rounds: int) -> dict[str, Any]:
    """One step of one stream, beside (10) written out for the GRU, and beside the forward step.

    A step is too short to be timed from Python: all run as a loop of many steps in one program,
    each followed by a step of SGD, as a stream is learnt from online.
    """
    x_key, w_key, key = jax.random.split(jax.random.key(0), 3)
    xs = jax.random.normal(x_key, (256, INPUTS))
    weights = jax.random.normal(w_key, (units,))
    rnn = OnlineRNN(nn.GRUCell(units), SnAp(order=1))
    carry = rnn.initialize_carry(key, (1, INPUTS))
    params = rnn.init(key, carry, xs[:1, None])["params"]
    apply: Callable[..., Any] = rnn.apply

    def online(params: PyTree, carry: CoreState, x: jax.Array) -> tuple[PyTree, CoreState]:
        def loss(params: PyTree) -> tuple[jax.Array, CoreState]:
            after, ys = apply({"params": params}, carry, x[None, None])
            return jnp.vdot(ys, weights), after

        return jax.grad(loss, has_aux=True)(params)

    def forward(params: PyTree, carry: CoreState, x: jax.Array) -> tuple[None, CoreState]:
        return None, rnn.apply({"params": params}, carry, x[None], method="step")[0]

    def by_hand(params: PyTree, carry: tuple, x: jax.Array) -> tuple[PyTree, tuple]:
        grads, carry = written_out_gru(params["cell"], carry, x, weights)
        return {"cell": grads}, carry

    def many(step: Callable, carry: PyTree) -> Callable[[], PyTree]:
        def body(state: tuple, x: jax.Array) -> tuple[tuple, None]:
            params, carry = state
            grads, carry = step(params, carry, x)
            if grads is not None:
                params = jax.tree.map(lambda p, g: p - 1e-6 * g, params, grads)
            return (params, carry), None

        loop = jax.jit(
            lambda params, carry: jax.lax.scan(body, (params, carry), xs)[0],
            compiler_options=compiler_options(),
        )
        return lambda: loop(params, carry)

    zeros = jax.tree.map(jnp.zeros_like, params["cell"])
    seconds = race(
        {
            "snap1": many(online, carry),
            "written out": many(by_hand, (jnp.zeros(units), zeros)),
            "forward": many(forward, carry._replace(influence=())),
        },
        rounds,
    )
    seconds = {name: times / len(xs) for name, times in seconds.items()}
    return _row(f"step GRU-{units} B=1", seconds, seconds["snap1"] / seconds["written out"])


def written_out_gru(
    params: PyTree, carry: tuple[jax.Array, PyTree], x: jax.Array, weights: jax.Array
) -> tuple[PyTree, tuple[jax.Array, PyTree]]:
    """One step of SnAp-1 on a GRU, (10) and (3) as one would write them for this cell alone.

    Args:
      params: of flax's GRUCell.
      carry: `(h_tm1 [N], E_tm1)`, the influence shaped like `params`.
      x: `[M]`.
      weights: `[N]`, the derivative of the loss with respect to h.

    Returns:
      `(gradient, (h, E))`.
    """
    h_tm1, E_tm1 = carry
    s = {g: h_tm1 @ params["h" + g]["kernel"] for g in "rzn"}
    a = {g: x @ params["i" + g]["kernel"] + params["i" + g]["bias"] for g in "rzn"}
    s["n"] += params["hn"]["bias"]
    r, z = jax.nn.sigmoid(a["r"] + s["r"]), jax.nn.sigmoid(a["z"] + s["z"])
    n = jnp.tanh(a["n"] + r * s["n"])
    h = (1 - z) * n + z * h_tm1
    to_n = (1 - z) * (1 - n * n)
    to = {"r": to_n * s["n"] * r * (1 - r), "z": (h_tm1 - n) * z * (1 - z), "n": to_n * r}
    d = z + sum(to[g] * jnp.diagonal(params["h" + g]["kernel"]) for g in "rzn")
    to_input = {**to, "n": to_n}
    E = {}
    for g in "rzn":
        E["h" + g] = {"kernel": d * E_tm1["h" + g]["kernel"] + h_tm1[:, None] * to[g]}
        E["i" + g] = {"kernel": d * E_tm1["i" + g]["kernel"] + x[:, None] * to_input[g]}
        E["i" + g]["bias"] = d * E_tm1["i" + g]["bias"] + to_input[g]
    E["hn"]["bias"] = d * E_tm1["hn"]["bias"] + to["n"]
    return jax.tree.map(lambda e: e * weights, E), (h, E)


def _row(what: str, seconds: Mapping[str, np.ndarray], ratio: np.ndarray) -> dict[str, Any]:
    row: dict[str, Any] = {"what": what}
    row |= {f"{name} us": float(np.median(times) * 1e6) for name, times in seconds.items()}
    return row | {
        "ratio": float(np.median(ratio)),
        "ratio spread": np.percentile(ratio, [10, 90]).round(2).tolist(),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Prints rows as a table, the ratio last, and what they were measured on."""
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")
    for row in rows:
        times = "  ".join(f"{name} {row[name]:.1f}" for name in row if name.endswith(" us"))
        low, high = row["ratio spread"]
        print(f"{row['what']:28s} {times}  ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f})")
