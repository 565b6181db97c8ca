"""What the core's gradients cost, over sizes: ratios against a peer in the same run.

    python benchmarks/core.py segment short step sparse cost compile memory

- segment: SnAp-1's gradient of T steps, with the influence after them, against the faster of
  `BPTT()` and `jax.grad` of `nn.RNN`; T = 128.
- short: the same, T = 8.
- step: SnAp-1's gradient of one step, against reading and writing its influence once.
- sparse: SnAp-n on a sparse core, against `BPTT()` of the same masked cell, per step.
- cost: what every method takes per step, by segments of 32 and by single steps, against `BPTT()` at
  T = 32, and what it carries; GRU-64, 4 streams, dense and with a fan-in of 4.
- compile: seconds until the first result of every method, GRU-128, T = 128.
- memory: bytes that the influence takes, and a program's own, over T.
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from snaprl.cores import (
    BPTT,
    KFRTRL,
    OKRTRL,
    RFLO,
    RTRL,
    UORO,
    EProp,
    Frozen,
    GradientMethod,
    OnlineRNN,
    SnAp,
    compiler_options,
    sparsity,
)
from snaprl.training.bench import race

INPUTS = 64
LARGEST = 2**30  # bytes of influence


def gradient(
    method: GradientMethod, units: int, steps: int, streams: int, mask: Any = None
) -> Callable[[], Any]:
    """One gradient after the other, each from where the last one ended; the carry is donated."""
    x_key, w_key, key = jax.random.split(jax.random.key(0), 3)
    xs = jax.random.normal(x_key, (steps, streams, INPUTS))
    weights = jax.random.normal(w_key, (steps, streams, units))
    rnn = OnlineRNN(nn.GRUCell(units), method, mask)
    apply: Callable[..., Any] = rnn.apply
    carry = rnn.initialize_carry(key, (streams, INPUTS))
    variables = rnn.init(key, carry, xs[:1])

    def run(variables: Any, carry: Any, xs: jax.Array, weights: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            after, ys = apply({**variables, "params": params}, carry, xs)
            return jnp.vdot(ys, weights), after

        return jax.grad(loss, has_aux=True)(variables["params"])

    compiled = jax.jit(run, donate_argnums=1, compiler_options=compiler_options())
    state = {"carry": carry}

    def call() -> Any:
        grads, state["carry"] = compiled(variables, state["carry"], xs, weights)
        return grads, state["carry"]

    call.influence = sum(x.nbytes for x in jax.tree.leaves(carry.influence))  # type: ignore
    call.lower = lambda: compiled.lower(variables, state["carry"], xs, weights)  # type: ignore
    return call


def plain(units: int, steps: int, streams: int) -> Callable[[], Any]:
    """`jax.grad` of `nn.RNN`."""
    x_key, w_key, key = jax.random.split(jax.random.key(0), 3)
    xs = jax.random.normal(x_key, (steps, streams, INPUTS))
    weights = jax.random.normal(w_key, (steps, streams, units))
    rnn = nn.RNN(nn.GRUCell(units), time_major=True)
    params = rnn.init(key, xs)
    apply: Callable[..., Any] = rnn.apply
    loss: Any = lambda params, xs, w: jnp.vdot(apply(params, xs), w)  # noqa: E731
    compiled = jax.jit(jax.grad(loss), compiler_options=compiler_options())
    return lambda: compiled(params, xs, weights)


def segment(rounds: int, steps: int = 128) -> Iterator[str]:
    """SnAp-1 by segment."""
    sizes = [(n, b) for n in (64, 128, 256, 512, 1024) for b in (1, 4, 16, 64, 256)]
    peak = _matmul_rate(rounds)
    yield f"one product of 2048 x 2048 matrices: {peak / 1e9:.0f} GFLOP/s, the peak below"
    yield f"segment, T = {steps}: SnAp-1 / faster of BPTT() and nn.RNN (10 % to 90 %)"
    small = []
    for units, streams in sizes:
        influence = 3 * units * (units + INPUTS) * 4 * streams
        work = steps * streams * units * units
        if influence > LARGEST or work > 128 * 16 * 512 * 512:
            continue
        seconds = race(
            {
                "snap1": gradient(SnAp(), units, steps, streams),
                "bptt": gradient(BPTT(), units, steps, streams),
                "nn.RNN": plain(units, steps, streams),
            },
            rounds,
        )
        ratio = seconds["snap1"] / np.minimum(seconds["bptt"], seconds["nn.RNN"])
        against = np.median(seconds["snap1"] / seconds["nn.RNN"])
        low, high = np.percentile(ratio, [10, 90])
        rate = 2 * 3 * steps * streams * 3 * units * (units + INPUTS)
        rate /= np.median(seconds["snap1"])
        if units <= 128 and streams <= 16:
            small.append(np.median(ratio))
        yield (
            f"  N {units:4d}  B {streams:3d}  snap1 {np.median(seconds['snap1']) * 1e3:8.2f} ms"
            f"  ratio {np.median(ratio):.2f} ({low:.2f} to {high:.2f})"
            f"  to nn.RNN {against:.2f}  {rate / 1e9:.0f} GFLOP/s, {rate / peak:.0%}"
        )
    yield f"  N <= 128, B <= 16: median ratio {np.median(small):.2f}"


def _matmul_rate(rounds: int) -> float:
    """Operations per second of one large matrix product."""
    size = 2048
    square = jnp.ones((size, size))
    product = jax.jit(lambda x: x @ x)
    return (
        2
        * size**3
        / float(np.median(race({"product": lambda: product(square)}, rounds)["product"]))
    )


def step(rounds: int) -> Iterator[str]:
    """SnAp-1 by steps, against the bandwidth."""
    yield "step: SnAp-1, one step with its gradient / reading and writing the influence once"
    touch = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0.9 + 0.1, tree), donate_argnums=0)
    for streams in (1, 16):
        for units in (64, 128, 256, 512):
            rnn = OnlineRNN(nn.GRUCell(units))
            carry = rnn.initialize_carry(jax.random.key(0), (streams, INPUTS))
            state = {"influence": carry.influence}

            def pass_over(state: dict[str, Any] = state) -> Any:
                state["influence"] = touch(state["influence"])
                return state["influence"]

            size = sum(x.nbytes for x in jax.tree.leaves(carry.influence))
            seconds = race(
                {"snap1": gradient(SnAp(), units, 1, streams), "pass": pass_over}, rounds
            )
            ratio = seconds["snap1"] / seconds["pass"]
            yield (
                f"  N {units:3d}  B {streams:2d}  snap1 {np.median(seconds['snap1']) * 1e6:8.0f} us"
                f"  pass {np.median(seconds['pass']) * 1e6:7.0f} us"
                f"  ratio {np.median(ratio):.2f}  bandwidth"
                f" {2 * size / np.median(seconds['pass']) / 1e9:.1f} GB/s"
            )


def sparse(rounds: int) -> Iterator[str]:
    """SnAp-2 and 3 on sparse cores."""
    yield "sparse: SnAp-n / BPTT() of the same masked cell at T = 128, per step"
    for units, fan_in, order, streams in [
        (256, 16, 2, 16),
        (512, 8, 2, 16),
        (512, 8, 3, 4),
    ]:
        mask = sparsity.mask(nn.GRUCell(units), INPUTS, sparsity.fixed_fan_in(fan_in))
        runs = {
            "bptt": gradient(BPTT(), units, 128, streams, mask),
            "segment": gradient(SnAp(order), units, 128, streams, mask),
            "step": gradient(SnAp(order), units, 1, streams, mask),
        }
        seconds = race(runs, rounds)
        bptt = seconds["bptt"] / 128
        implied = _implied(mask, units, order) * streams * 4
        influence: int = runs["step"].influence  # type: ignore
        yield (
            f"  SnAp-{order}  N {units}  fan-in {fan_in}  B {streams}"
            f"  BPTT {np.median(bptt) * 1e6:.0f} us"
            f"  segment {np.median(seconds['segment'] / 128 / bptt):.1f} x"
            f"  step {np.median(seconds['step'] / bptt):.1f} x"
            f"  influence {influence / 2**20:.0f} MiB, {influence / implied:.3f} of the mask's"
        )


def _implied(mask: Any, units: int, order: int) -> int:
    """The entries of S_n (4) for a GRU whose gates share one mask, biases included."""
    reads = mask["hr"]["kernel"].T | np.eye(units, dtype=bool)
    reached = np.eye(units, dtype=bool)
    for _ in range(order - 1):
        reached = reached | (reads.astype(np.float32) @ reached.astype(np.float32) > 0)
    into = 3 * (mask["hr"]["kernel"].sum(0) + INPUTS) + 4
    return int((reached * into).sum())


def cost(rounds: int) -> Iterator[str]:
    """Every method, in turn within a round."""
    units, streams = 64, 4
    dense = [SnAp(0), SnAp(1), BPTT(tail=SnAp()), RFLO(), EProp(), UORO(), KFRTRL()]
    dense += [OKRTRL(rank=2), Frozen(), RTRL()]
    mask = sparsity.mask(nn.GRUCell(units), INPUTS, sparsity.fixed_fan_in(4))
    for title, methods, chosen in (
        ("dense", dense, None),
        ("fan-in 4", [SnAp(1), SnAp(2), SnAp(3), RTRL()], mask),
    ):
        yield f"cost: GRU-{units}, {streams} streams, {title}: per step, to BPTT() at T = 32"
        runs = {"BPTT": gradient(BPTT(), units, 32, streams, chosen)}
        carried = {}
        for method in methods:
            runs[f"{method!r} 32"] = gradient(method, units, 32, streams, chosen)
            runs[f"{method!r} 1"] = single = gradient(method, units, 1, streams, chosen)
            carried[method] = single.influence / streams / 2**10  # type: ignore
        seconds = race(runs, rounds)
        yield f"  BPTT() {np.median(seconds['BPTT']) / 32 * 1e6:.1f} us"
        for method in methods:
            long = np.median(seconds[f"{method!r} 32"] / seconds["BPTT"])
            short = np.median(seconds[f"{method!r} 1"] * 32 / seconds["BPTT"])
            yield (
                f"  {method!r:44s} segment {long:7.2f} x  step {short:7.1f} x"
                f"  carried {carried[method]:8.1f} KiB a stream"
            )


def compiling(rounds: int) -> Iterator[str]:
    """Seconds to the first result."""
    del rounds
    yield "compile: seconds to the first gradient, GRU-128, T = 128, B = 4"
    mask = sparsity.mask(nn.GRUCell(128), INPUTS, sparsity.fixed_fan_in(8))
    methods = [SnAp(0), SnAp(1), BPTT(), BPTT(tail=SnAp()), BPTT(pieces=8), RFLO(), EProp()]
    methods += [UORO(), KFRTRL(), OKRTRL(rank=2), Frozen(), RTRL()]
    methods += [BPTT(tail=tail) for tail in (RFLO(), UORO(), KFRTRL(), RTRL())]
    cases: list[Any] = [(method, None) for method in methods]
    cases += [(method, mask) for method in (SnAp(2), SnAp(3), RTRL(), BPTT(tail=SnAp(2)))]
    jax.config.update("jax_enable_compilation_cache", False)
    for method, chosen in cases:
        start = time.perf_counter()
        run = gradient(method, 128, 128, 4, chosen)
        made = time.perf_counter()
        run.lower().compile()  # type: ignore
        yield (
            f"  {method!r:48s} {time.perf_counter() - made:5.1f} s,"
            f" and {made - start:.1f} s to make it"
        )


def memory(rounds: int) -> Iterator[str]:
    """What is kept."""
    del rounds
    yield "memory: GRU-128, B = 16: MiB of the influence, and of the program's own arrays, over T"
    for method in (SnAp(), BPTT(), BPTT(pieces=16)):
        parts = []
        for steps in (32, 128, 512):
            run = gradient(method, 128, steps, 16)
            own = run.lower().compile().memory_analysis().temp_size_in_bytes  # type: ignore
            parts.append(f"T {steps}: {run.influence / 2**20:.1f}, {own / 2**20:.1f}")  # type: ignore
        yield f"  {method!r:24s} " + "   ".join(parts)


PARTS = {
    "segment": segment,
    "short": functools.partial(segment, steps=8),
    "step": step,
    "sparse": sparse,
    "cost": cost,
    "compile": compiling,
    "memory": memory,
}


def main() -> None:
    """Runs the parts that are named."""
    parser = argparse.ArgumentParser(description="What the core's gradients cost.")
    parser.add_argument("parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")
    for part in arguments.parts:
        for line in PARTS[part](arguments.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
