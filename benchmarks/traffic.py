"""What actors send and what a learner keeps, in bytes: from shapes alone, nothing is computed.

python benchmarks/traffic.py            the tables of docs/actors.md
python benchmarks/traffic.py --check    beside them, what is really sent, and really resident
"""

import argparse
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from gymnasium import spaces

from snaprl.agents import ActorCriticLoss, Agent, NetworkConfig, make_agent
from snaprl.cores import sparsity
from snaprl.envs import make_vec
from snaprl.training.actors import Actor, played_like
from snaprl.training.actors.layout import Layout
from snaprl.training.host_envs import HostEnvs
from snaprl.training.parts import make_method

METHODS = ("bptt", "snap1", "bptt+snap1", "uoro", "rtrl")
OBSERVATIONS = {
    "8 numbers": spaces.Box(-1, 1, (8,), np.float32),
    "image 64 x 64 x 3": spaces.Box(0, 255, (64, 64, 3), np.uint8),
}


def agent(
    units: int, method: str, observed: spaces.Space, pattern: sparsity.Pattern | None = None
) -> Agent:
    """An agent with a GRU, and two actions."""
    network = NetworkConfig(features=units, method=make_method(method), pattern=pattern)
    return make_agent(observed, spaces.Discrete(2), network, ActorCriticLoss())


def nbytes(tree: object) -> int:
    """Bytes of all arrays of a tree, or of shapes."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def kept(agent: Agent, streams: int) -> int:
    """Bytes that a learner keeps of so many streams."""
    return nbytes(jax.eval_shape(lambda k: agent.initial_state(k, streams), jax.random.key(0)))


def sent(agent: Agent, observed: spaces.Space, streams: int, unroll: int) -> int:
    """Bytes of one message of an actor."""
    return Layout(played_like(agent, observed, streams=streams, unroll=unroll)).nbytes


def parameters(agent: Agent) -> int:
    """Bytes of all parameters as they reach an actor."""
    return Layout(jax.eval_shape(lambda k: agent.init(k, 1), jax.random.key(0))).nbytes


def told(n: float) -> str:
    """Bytes in words."""
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.3g} {unit}"
        n /= 1024
    return f"{n:,.3g} GiB" if n < 1024 else f"{n / 1024:,.3g} TiB"


def lines() -> Iterator[str]:
    """The tables, in Markdown."""
    yield "| GRU, reading 8 numbers | parameters | kept of a stream, " + " | ".join(METHODS) + " |"
    yield "|---|---|" + "---|" * len(METHODS)
    observed = OBSERVATIONS["8 numbers"]
    for units in (64, 128, 256):
        cells = [told(kept(agent(units, m, observed), 1)) for m in METHODS]
        size = told(parameters(agent(units, "bptt", observed)))
        yield f"| {units} units | {size} | " + " | ".join(cells) + " |"
    yield ""
    yield "| an actor's message, 32 streams, GRU-64 | T = 8 | T = 32 | T = 128 |"
    yield "|---|---|---|---|"
    for name, space in OBSERVATIONS.items():
        cells = [told(sent(agent(64, "snap1", space), space, 32, t)) for t in (8, 32, 128)]
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""
    yield "| GRU-256, as many weights a unit | kept of a stream, snap1 | snap2 | snap3 |"
    yield "|---|---|---|---|"
    for fan_in in (4, 16):
        pattern = sparsity.fixed_fan_in(fan_in, diagonal=True)
        orders = [agent(256, f"snap{n}", observed, pattern) for n in (1, 2, 3)]
        yield f"| {fan_in} | " + " | ".join(told(kept(one, 1)) for one in orders) + " |"
    yield ""
    yield (
        "| streams | actors of 40 | kept by the learner, bptt | snap1 | "
        "one round of segments, T = 32 | parameters to all actors of a machine | on Ray, at most |"
    )
    yield "|---|---|---|---|---|---|---|"
    size = parameters(agent(64, "bptt", observed))
    for actors in (1, 16, 64, 256):
        streams = 40 * actors
        cells = [told(kept(agent(64, m, observed), streams)) for m in ("bptt", "snap1")]
        around = told(actors * sent(agent(64, "bptt", observed), observed, 40, 32))
        cells += [around, told(size), told(actors * size)]
        yield f"| {streams:,} | {actors} | " + " | ".join(cells) + " |"


def checks() -> Iterator[str]:
    """Forecasts beside what an actor sends and what this process grows by."""
    observed = OBSERVATIONS["8 numbers"]
    for units, streams, method in ((64, 4, "snap1"), (64, 16, "bptt"), (16, 3, "rtrl")):
        one = agent(units, method, observed)
        made = one.initial_state(jax.random.key(0), streams)
        took = sum(x.on_device_size_in_bytes() for x in jax.tree.leaves(made))
        yield f"GRU-{units}, {streams} streams, {method}: {kept(one, streams)} B, made {took} B"
    envs = make_vec("CartPole-v1", 4)
    one = agent(64, "snap1", envs.single_observation_space)
    actor = Actor(one, HostEnvs(envs), unroll=16, discount=0.99)
    variables = one.init(jax.random.key(0), 4)
    _, played = actor.play(variables, actor.start(0))
    forecast = sent(one, envs.single_observation_space, 4, 16)
    arrays = sum(np.asarray(x).nbytes for x in jax.tree.leaves(played))
    yield f"a segment of CartPole, 4 streams, T = 16: {forecast} B, its arrays {arrays} B"
    arrays = sum(x.nbytes for x in jax.tree.leaves(variables))
    yield f"its parameters: {parameters(one)} B, their arrays {arrays} B"
    streams, one = 2048, agent(64, "snap1", observed)
    jax.block_until_ready(one.initial_state(jax.random.key(0), 1))  # what compiling needs
    before = psutil.Process().memory_info().rss
    shapes = jax.eval_shape(lambda key: one.initial_state(key, streams), jax.random.key(0))
    bank = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)  # zeros may be no memory yet
    jax.block_until_ready(bank)
    grown = psutil.Process().memory_info().rss - before
    yield f"a bank of {streams} streams: {told(kept(one, streams))}, resident {told(grown)}"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="What actors send and what a learner keeps.")
    parser.add_argument("--check", action="store_true", help="make some of it, and compare")
    print("\n".join(lines()))
    if parser.parse_args().check:
        print("\n".join(["", *checks()]))


if __name__ == "__main__":
    main()
