"""Tokens per second while learning characters: the whole training loop, candidates in turn.

    python benchmarks/tokens.py

GRU-128, 16 streams, the text that comes along; input, readout, loss and optimiser included.
Ratios are to BPTT with an update every 128 steps, within a round.
"""

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np

from snaprl.training import config as configs
from snaprl.training.loops import prepare

# method, steps between updates
CANDIDATES = [("bptt", 128), ("snap1", 128), ("bptt", 1), ("snap1", 1), ("rflo", 128)]
TOKENS = 65_536  # of a turn, at T = 128
TURN = {1: TOKENS // 4}


def candidate(method: str, unroll: int) -> Callable[[], float]:
    """A training that goes on at every call and returns its tokens per second."""
    tokens = TURN.get(unroll, TOKENS)
    # a chunk of the loop is a report
    flags = {
        "--model.method": method,
        "--training.unroll": unroll,
        "--training.steps": 10**9,
        "--training.report-every": tokens,
    }
    config = configs.load("charlm", [str(word) for pair in flags.items() for word in pair])
    built, loop = prepare(config)
    state = {"now": loop.init(jax.random.key(0))}
    updates = tokens // built.steps_per_update

    def turn() -> float:
        start_s = time.perf_counter()
        state["now"], chunk = loop.run(state["now"], updates)
        jax.block_until_ready(state["now"])
        return chunk.updates * built.steps_per_update / (time.perf_counter() - start_s)

    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    turns = {(m, T): candidate(m, T) for m, T in CANDIDATES}
    for turn in turns.values():
        turn()  # compiles
    speeds = {name: [] for name in turns}
    for _ in range(arguments.rounds):
        for name, turn in turns.items():
            speeds[name].append(turn())
    print("| method | T | tokens/s | to BPTT, T = 128 |\n|---|---|---|---|")
    for (method, T), found in speeds.items():
        low, middle, high = np.percentile(
            np.array(found) / np.array(speeds[CANDIDATES[0]]), [10, 50, 90]
        )
        print(
            f"| `{method}` | {T} | {np.median(found) / 1e3:.1f} k | "
            f"{middle:.2f} ({low:.2f} to {high:.2f}) |"
        )


if __name__ == "__main__":
    main()
