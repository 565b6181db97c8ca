"""Weak scaling of the learner: what a device computes and sends as there are more of them.

python benchmarks/scaling.py

Read off the compiled program of one update, each device having the same streams: floating-point
operations, and bytes of gradients that go round. The devices are parts of this machine's processor,
so nothing is timed. A sum over n devices by a ring sends 2 (n - 1) / n of its bytes from each.
"""

import re

import jax
import numpy as np
from gymnasium import spaces

from snaprl.agents import ActorCriticLoss, NetworkConfig, make_agent
from snaprl.training.actors import played_like
from snaprl.training.learner import make_learner
from snaprl.training.mesh import spread
from snaprl.training.optimizers import optimizer
from snaprl.training.schema import OptimizerConfig

DEVICES = (1, 2, 4, 8)
STREAMS, STEPS, UNITS = 32, 16, 64  # of a device
KINDS = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "f16": 2, "bf16": 2}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def bytes_of(program: str, operation: str) -> int:
    """Bytes of the results of a collective operation, over a compiled program's text."""
    total = 0
    for results in re.findall(rf"= (.*?) {operation}(?:-start)?\(", program):
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", results):
            total += KINDS.get(kind, 8) * int(np.prod([int(n) for n in shape.split(",") if n]))
    return total


def compiled(devices: int) -> tuple[float, str, int]:
    """Operations of one device in an update, the program, and the bytes of all parameters."""
    streams = STREAMS * devices
    observed = spaces.Box(-1, 1, (8,), np.float32)
    agent = make_agent(
        observed, spaces.Discrete(4), NetworkConfig(features=UNITS), ActorCriticLoss()
    )
    mesh = spread(devices, streams)
    learner = mesh.learner(
        make_learner(agent.loss, optimizer(OptimizerConfig(), 1000), whole_bank=True)
    )
    key = jax.random.key(0)
    state = mesh.keep(learner.init(agent.init(key, streams), agent.initial_state(key, streams)))
    like = played_like(agent, observed, streams=streams, unroll=STEPS).segment
    segment = mesh.put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like))
    program = jax.jit(learner.update, donate_argnums=0).lower(state, segment).compile()
    cost = program.cost_analysis()
    assert cost is not None
    size = sum(x.nbytes for x in jax.tree.leaves(state.variables["params"]))
    return cost["flops"], program.as_text() or "", size


def main() -> None:
    """Prints the table, in Markdown."""
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    print(f"GRU-{UNITS}, SnAp-1, {STREAMS} streams of each device, segments of {STEPS} steps\n")
    print("| devices | streams | flops of a device | to one device | summed | sent by a device |")
    print("|---|---|---|---|---|---|")
    first = None
    for devices in DEVICES:
        flops, program, size = compiled(devices)
        first = first or flops
        sums = bytes_of(program, "all-reduce")
        others = {name: bytes_of(program, name) for name in COLLECTIVES[1:]}
        more = "".join(f", {name} {n:,} B" for name, n in others.items() if n)
        sent = 2 * (devices - 1) / devices * sums
        print(
            f"| {devices} | {STREAMS * devices} | {flops / 1e6:.1f} M | {flops / first:.3f} | "
            f"{sums / size:.2f} x the parameters ({sums:,} B){more} | {sent / 1024:.0f} KiB |"
        )


if __name__ == "__main__":
    main()
