"""SnAp-1 and SnAp-2 of a GRU beside peers that compute the same, as ratios within one run.

A step is: forward, influence, gradient and a step of SGD, for all streams at once, as a loop in one
program. Before anything is timed, each peer's gradient over 16 steps of a small core is compared
with ours and with exact RTRL. Every candidate lives in a process of its own, so that one which
compiles for ever or fills the memory can be stopped; alive, they take turns.

    pip install -e ".[peers]"
    python benchmarks/peers.py --json peers.json
"""

import argparse
import dataclasses
import functools
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from snaprl.cores import RTRL, OnlineRNN, SnAp, compiler_options
from snaprl.training import bench

PyTree = Any
Step = Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, PyTree]]
OURS = "snaprl"
LIMIT_S, LIMIT_MIB, ROUNDS = 60.0, 8192.0, 12


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured; `fan_in` is how many units a unit listens to, None for all of them."""

    order: int
    units: int
    streams: int
    inputs: int = 64
    fan_in: int | None = None

    @property
    def kind(self) -> str:
        return f"SnAp-{self.order}" + (", sparse" if self.fan_in else "")

    def __str__(self) -> str:
        streams = "1 stream" if self.streams == 1 else f"{self.streams} streams"
        return f"{self.kind}, GRU-{self.units}, {self.inputs} inputs, {streams}"


CASES = [
    *(Case(1, units, streams) for streams in (1, 16) for units in (32, 64, 128, 256)),
    *(Case(1, 128, streams, inputs=16) for streams in (1, 16)),
    *(Case(2, n, streams, fan_in=n // 8) for streams in (1, 16) for n in (32, 64, 128, 256)),
    *(Case(2, units, streams) for streams in (1, 16) for units in (32, 64, 128)),
]


class Problem(NamedTuple):
    """What all candidates are given, made anew from the same seeds in each process."""

    params: PyTree  # of flax's GRUCell, masked
    mask: PyTree  # like params, of 0 and 1
    sparse: PyTree  # the leaves of mask that are not all 1
    xs: jax.Array  # [64, B, M]
    weights: jax.Array  # [N]  dL_t/dh_t, the same for every stream


def problem(case: Case) -> Problem:
    x_key, w_key, key = jax.random.split(jax.random.key(0), 3)
    xs = jax.random.normal(x_key, (64, case.streams, case.inputs))
    params = nn.GRUCell(case.units).init(key, jnp.zeros((1, case.units)), xs[0, :1])["params"]
    sparse = {}
    if case.fan_in:
        # one mask for the three gates: column i holds the units that unit i listens to
        rows = np.random.default_rng(0).permuted(
            np.tile(np.arange(case.units)[:, None], case.units), axis=0
        )
        kernel = (rows < case.fan_in).astype(np.float32)
        sparse = {gate: {"kernel": kernel} for gate in ("hr", "hz", "hn")}
    mask = jax.tree.map(jnp.ones_like, params)
    mask = {name: mask[name] | sparse.get(name, {}) for name in mask}
    params = jax.tree.map(jnp.multiply, params, mask)
    return Problem(params, mask, sparse, xs, jax.random.normal(w_key, (case.units,)))


# ---- candidates: each returns a step and what it carries ----------------------------------------


def snaprl_core(case: Case, given: Problem, method: Any = None) -> tuple[Step, PyTree]:
    """Ours, as a user writes it."""
    rnn = OnlineRNN(
        nn.GRUCell(case.units), method or SnAp(order=case.order), mask=given.sparse or None
    )
    carry = rnn.initialize_carry(jax.random.key(0), given.xs.shape[1:])
    fixed = dict(rnn.init(jax.random.key(0), carry, given.xs[:1]))
    apply: Callable[..., Any] = rnn.apply

    def step(params: PyTree, carry: PyTree, x: jax.Array) -> tuple[PyTree, PyTree]:
        def loss(params: PyTree) -> tuple[jax.Array, PyTree]:
            after, ys = apply(fixed | {"params": {"cell": params}}, carry, x[None])
            return jnp.sum(ys @ given.weights), after

        return jax.grad(loss, has_aux=True)(params)

    return step, carry


def closed_form(case: Case, given: Problem) -> tuple[Step, PyTree]:
    """(10) written out for the GRU, a stream at a time, the streams by vmap."""
    if case.order != 1:
        raise NotImplementedError("(10) is SnAp-1")
    one = jax.vmap(bench.written_out_gru, in_axes=(None, 0, 0, None))

    def step(params: PyTree, carry: PyTree, x: jax.Array) -> tuple[PyTree, PyTree]:
        grads, carry = one(params, carry, x, given.weights)
        return jax.tree.map(lambda g: g.sum(0), grads), carry

    h = jnp.zeros((case.streams, case.units))
    E = jax.tree.map(lambda p: jnp.zeros((case.streams, *p.shape)), given.params)
    return step, (h, E)


def dense_masked(case: Case, given: Problem) -> tuple[Step, PyTree]:
    """(5) to the letter: Jacobians by jax, the influence of every weight on every unit, masked."""
    cell = nn.GRUCell(case.units)
    _, unravel = ravel_pytree(given.params)
    unit = jax.tree.map(lambda p: jnp.broadcast_to(jnp.arange(case.units), p.shape), given.params)
    # (4): a weight reaches its own unit first, then the units which listen to those it has reached
    S = ravel_pytree(unit)[0] == jnp.arange(case.units)[:, None]
    listens = given.mask["hn"]["kernel"].T
    for _ in range(case.order - 1):
        S = S | (listens @ S > 0)
    S = S & (ravel_pytree(given.mask)[0] != 0)

    def f(theta: jax.Array, h: jax.Array, x: jax.Array) -> jax.Array:
        out: Any = cell.apply({"params": unravel(theta)}, h, x)
        return out[0]

    def one(theta: jax.Array, h_tm1: jax.Array, J_tm1: jax.Array, S: jax.Array, x: jax.Array):
        I_t, D_t = jax.jacrev(f, argnums=(0, 1))(theta, h_tm1, x)
        J_t = jnp.where(S, I_t + D_t @ J_tm1, 0)  # (5)
        return given.weights @ J_t, f(theta, h_tm1, x), J_t  # (3)

    def step(params: PyTree, carry: PyTree, x: jax.Array) -> tuple[PyTree, PyTree]:
        h, J, S = carry
        grads, h, J = jax.vmap(one, in_axes=(None, 0, 0, None, 0))(
            ravel_pytree(params)[0], h, J, S, x
        )
        return unravel(grads.sum(0)), (h, J, S)

    # S goes along as an argument: a constant of this size would burden the compiler
    return step, (
        jnp.zeros((case.streams, case.units)),
        jnp.zeros((case.streams, *S.shape)),
        S,
    )


def braintrace_core(
    case: Case, given: Problem, streams: str = "batch", rule: str = "SnAp", **options: Any
) -> tuple[Step, PyTree]:
    """braintrace on flax's GRU (its own GRUCell is another cell), its state handed in and out.

    Weights that a mask takes away are 0 and are kept there: to tell braintrace of the mask, by
    `weight_fn`, gives up its fast path.
    """
    import brainstate  # pyright: ignore[reportMissingImports]
    import braintrace  # pyright: ignore[reportMissingImports]

    class GRU(brainstate.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = {name: brainstate.ParamState(p) for name, p in given.params.items()}

        def init_state(self, batch_size: int | None = None) -> None:
            batch = () if batch_size is None else (batch_size,)
            self.h = brainstate.HiddenState(jnp.zeros((*batch, case.units)))

        def update(self, x: jax.Array) -> jax.Array:
            h = self.h.value
            out = {}
            for name, p in self.p.items():
                v = h if name[0] == "h" else x
                out[name] = braintrace.matmul(v, p.value["kernel"], p.value.get("bias"))
            r = jax.nn.sigmoid(out["ir"] + out["hr"])
            z = jax.nn.sigmoid(out["iz"] + out["hz"])
            n = jnp.tanh(out["in"] + r * out["hn"])
            self.h.value = (1 - z) * n + z * h
            return self.h.value

    if rule == "SnAp":
        options["n"] = case.order
    model, alone = GRU(), case.streams == 1
    if not alone:
        options |= {"batch_size": case.streams, "vmap": streams == "vmap"}
    x = given.xs[0, 0] if alone else given.xs[0]
    learner: Any = braintrace.compile(model, getattr(braintrace, rule), x, **options)
    grad = brainstate.transform.grad(lambda x: jnp.sum(learner(x) @ given.weights), model.p)
    pure = brainstate.transform.StatefulFunction(grad, return_only_write=False)
    pure.make_jaxpr(x)
    states = pure.get_states(x)
    name_of = {id(state): name for name, state in model.p.items()}
    names = [name_of.get(id(state)) for state in states]

    def step(params: PyTree, carry: PyTree, x: jax.Array) -> tuple[PyTree, PyTree]:
        values = [c if name is None else params[name] for name, c in zip(names, carry, strict=True)]
        after, grads = pure.jaxpr_call(values, x[0] if alone else x)
        if given.sparse:
            grads = jax.tree.map(jnp.multiply, grads, given.mask)
        return grads, [() if name else value for name, value in zip(names, after, strict=True)]

    return step, [() if name else s.value for name, s in zip(names, states, strict=True)]


PEERS: dict[str, Callable[[Case, Problem], tuple[Step, PyTree]]] = {
    OURS: snaprl_core,
    "closed form": closed_form,
    "dense, masked": dense_masked,
    "braintrace": braintrace_core,
    "braintrace, vmap": functools.partial(braintrace_core, streams="vmap"),
}
# other rules of braintrace, which are compared and not timed
RULES = {
    "braintrace D_RTRL": functools.partial(braintrace_core, rule="D_RTRL"),
    "braintrace pp_prop": functools.partial(braintrace_core, rule="pp_prop", decay_or_rank=0.9),
}


def candidates(case: Case) -> list[str]:
    names = [OURS, "closed form"] if case.order == 1 else [OURS]
    names += ["dense, masked", "braintrace"]
    return names + ["braintrace, vmap"] * (case.streams > 1)


# ---- one candidate, in its own process ----------------------------------------------------------


def program(step: Step, given: Problem) -> Callable[[PyTree, PyTree, Any], PyTree]:
    """The loop: as many steps as it is told, so that one compilation serves any number."""

    def body(t: Any, state: tuple) -> tuple:
        params, carry = state
        grads, carry = step(params, carry, given.xs[t % len(given.xs)])
        return jax.tree.map(lambda p, g: p - 1e-6 * g, params, grads), carry

    return lambda params, carry, steps: jax.lax.fori_loop(0, steps, body, (params, carry))


def serve(pipe: Connection, name: str, case: Case) -> None:
    """Compiles when told to, reports, and then runs whenever it is asked to."""
    try:
        if name.startswith("braintrace"):
            importlib.import_module("braintrace")
        given = problem(case)
        pipe.send({})
        pipe.recv()
        start = time.perf_counter()
        step, carry = PEERS[name](case, given)
        lowered = jax.jit(program(step, given)).lower(given.params, carry, 1)
        loop = lowered.compile(compiler_options())
        compile_s, steps, seconds = time.perf_counter() - start, 1, 0.0
        jax.block_until_ready(loop(given.params, carry, steps))
        while seconds < 0.03:
            start = time.perf_counter()
            jax.block_until_ready(loop(given.params, carry, steps))
            seconds = time.perf_counter() - start
            steps *= 1 if seconds >= 0.03 else 4
        pipe.send({"compile s": compile_s, "steps": steps, "seconds": seconds})
        while pipe.recv():
            jax.block_until_ready(loop(given.params, carry, steps))
            pipe.send({})
    except EOFError:  # the other end has seen enough
        pass
    except Exception as error:
        pipe.send({"failed": f"{type(error).__name__}: {error}"})


def differ(pipe: Connection, name: str, case: Case) -> None:
    """Compares gradients over 16 steps with ours and with exact RTRL's, relative to the largest.

    `name` is that of the one candidate, or of several with a semicolon between them.
    """
    given = problem(case)

    def gradient(core: tuple[Step, PyTree]) -> np.ndarray:
        step, carry = core

        def body(carry: PyTree, x: jax.Array) -> tuple[PyTree, PyTree]:
            grads, carry = step(given.params, carry, x)
            return carry, grads

        many = jax.jit(lambda carry, xs: jax.lax.scan(body, carry, xs)[1])
        return np.array(
            ravel_pytree(jax.tree.map(lambda g: g.sum(0), many(carry, given.xs[:16])))[0]
        )

    against = {"from ours": None, "from RTRL": RTRL()}
    truth = {what: gradient(snaprl_core(case, given, m)) for what, m in against.items()}
    pipe.send({})
    pipe.recv()
    for one in name.split(";"):
        try:
            found = gradient((PEERS | RULES)[one](case, given))
            off = {w: np.abs(found - g).max() / np.abs(g).max() for w, g in truth.items()}
            pipe.send({"candidate": one} | {what: float(size) for what, size in off.items()})
        except Exception as error:
            pipe.send({"candidate": one, "said": f"{type(error).__name__}: {error}"})


# ---- the one who asks ---------------------------------------------------------------------------


class Stopped(Exception):
    """A candidate failed, with what it said, or went over a limit."""


class Candidate:
    """A process that can be asked, and stopped."""

    def __init__(self, target: Callable, name: str, case: Case) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, name, case), daemon=True)
        self._process.start()
        theirs.close()
        self.said: dict[str, Any] = {}

    def begin(self) -> None:
        """Waits for its imports and its inputs, which count for nothing, and lets it begin."""
        self._listen()
        self._pipe.send(True)

    def report(self) -> dict[str, Any]:
        self.said = self._listen()
        return self.said

    def run(self) -> None:
        self._pipe.send(True)
        self._listen()

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _listen(self) -> dict[str, Any]:
        looks = 0  # rather than a clock, which runs on while all of this is suspended
        try:
            while not self._pipe.poll(0.2):
                looks += 1
                if looks * 0.2 > LIMIT_S:
                    raise TimeoutError(f"over {LIMIT_S:.0f} s")
                if resident_mib(self._process.pid) > LIMIT_MIB:
                    raise MemoryError(f"over {LIMIT_MIB / 1024:.0f} GiB")
            said = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(5)
            raise Stopped(f"died, exit code {self._process.exitcode}") from error
        except (TimeoutError, MemoryError) as error:
            raise Stopped(str(error)) from error
        if "failed" in said:
            raise Stopped(said["failed"])
        return said


def resident_mib(pid: int | None) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return sum(int(s.split()[1]) / 1024 for s in status.splitlines() if s.startswith("VmRSS:"))


def compare(names: Sequence[str], case: Case) -> list[dict[str, Any]]:
    """Rows of the table of differences, from a core small enough to compile at once."""
    fan_in = case.fan_in and 3
    small = dataclasses.replace(
        case, units=16, inputs=8, streams=min(case.streams, 2), fan_in=fan_in
    )
    about = {"kind": case.kind, "streams": small.streams}
    candidate, rows = Candidate(differ, ";".join(names), small), []
    try:
        candidate.begin()
        for _ in names:
            rows.append(about | candidate.report())
    except Stopped as stopped:
        rows += [about | {"candidate": name, "said": str(stopped)} for name in names[len(rows) :]]
    finally:
        candidate.stop()
    return rows


def measure(case: Case, names: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Rows of one case: those who can run take turns."""
    rows: dict[str, dict[str, Any]] = {
        name: {"case": str(case), "candidate": name} for name in names
    }
    alive = {name: Candidate(serve, name, case) for name in names}
    for name in names:
        try:
            alive[name].begin()
            said = alive[name].report()
            if said["seconds"] * rounds > LIMIT_S:
                each = said["seconds"] / said["steps"]
                raise Stopped(f"over {LIMIT_S:.0f} s: {each:.1f} s a step, {rounds} rounds")
            rows[name]["compile s"] = round(said["compile s"], 2)
        except Stopped as stopped:
            rows[name]["said"] = str(stopped)
            alive.pop(name).stop()
    try:
        seconds = bench.race({name: peer.run for name, peer in alive.items()}, rounds)
    except Stopped as stopped:
        seconds = {}
        for name in alive:
            rows[name]["said"] = f"the turns were broken off: {stopped}"
    finally:
        for peer in alive.values():
            peer.stop()
    for name, times in seconds.items():
        times /= alive[name].said["steps"]
        rows[name]["us"] = float(np.median(times) * 1e6)
        if OURS in seconds and name != OURS:
            ratio = times / seconds[OURS]
            rows[name]["ratio"] = float(np.median(ratio))
            rows[name]["ratio spread"] = np.percentile(ratio, [10, 90]).tolist()
    return list(rows.values())


def quote(row: dict[str, Any]) -> str:
    """The first sentence of a message, for a table; the JSON file has all of it."""
    first = " ".join(row["said"].split()).split(". ")[0]
    return f'"{first[:300]}"'.replace("|", "\\|")


def show_differences(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """One table: who computes what we compute."""
    print("| gradient of 16 steps | streams | candidate | from ours | from RTRL |")
    print("|---|---|---|---|---|")
    rows = []
    for case in {(case.kind, case.streams): case for case in cases}.values():
        others = list(RULES) if case.order == 1 and case.streams == 1 else []
        for row in compare(candidates(case) + others, case):
            off = f"{quote(row)} |" if "said" in row else ""
            off = off or f"{row['from ours']:.0e} | {row['from RTRL']:.0e}"
            print(f"| {row['kind']} | {row['streams']} | {row['candidate']} | {off} |", flush=True)
            rows.append(row)
    return rows


def show_times(cases: Sequence[Case], rounds: int) -> list[dict[str, Any]]:
    """The other table; who went over a limit is not asked for the larger sizes."""
    print("| case | candidate | us a step, all streams | compile s | times ours |")
    print("|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    gave_up: dict[tuple[Case, str], str] = {}
    for case in cases:
        family = dataclasses.replace(case, units=0, fan_in=case.fan_in and 1)
        left_out = {n: gave_up[family, n] for n in candidates(case) if (family, n) in gave_up}
        found = measure(case, [n for n in candidates(case) if n not in left_out], rounds)
        for row in found:
            if row.get("said", "").startswith(("over ", "died")):
                gave_up[family, row["candidate"]] = f"{row['said']} at GRU-{case.units}"
        found += [
            {"case": str(case), "candidate": name, "said": f"not tried: {why}"}
            for name, why in left_out.items()
        ]
        for row in found:
            print(f"| {case} | {row['candidate']} | {cells(row)} |", flush=True)
        rows += found
    return rows


def cells(row: dict[str, Any]) -> str:
    if "said" in row:
        return f"{quote(row)} | |"
    times = f"{row['us']:.1f} | {row['compile s']}"
    if "ratio" not in row:
        return f"{times} | 1"
    low, high = row["ratio spread"]
    return f"{times} | {row['ratio']:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="a pattern: 'SnAp-1, GRU-(32|64),'")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cases = [case for case in CASES if re.search(args.only, str(case))]
    installed = {found.name: found.version for found in importlib.metadata.distributions()}
    names = ("jax", "flax", "braintrace")
    versions = [f"{name} {installed.get(name, 'is not installed')}" for name in names]
    about = f"Python {platform.python_version()}, {', '.join(versions)}"
    print(f"{about}; load {os.getloadavg()[0]:.1f}\n")
    differences = show_differences(cases)
    print()
    rows = show_times(cases, args.rounds)
    print(f"\nload {os.getloadavg()[0]:.1f}")
    if args.json:
        report = {"about": about, "differences": differences, "rows": rows}
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
