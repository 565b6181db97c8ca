"""Trains configs over several seeds, with memory and without, evaluates each, and prints a table.

A run that is there already goes on where it stood, so the table can be had again at no cost.

    python benchmarks/agents.py cartpole_masked_impala cartpole_masked_ppo --seeds 3 --memoryless
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from snaprl.training.sinks import read_rows

SNAPRL = [sys.executable, "-m", "snaprl.training.cli"]


def one_run(
    config: str, seed: int, memory: bool, folder: Path, episodes: int, cores: int
) -> dict[str, Any]:
    """Trains and evaluates; returns a row of the table."""
    resume = ["--resume"] if (folder / "config.toml").exists() else ["--seed", str(seed)]
    if not (memory or "--resume" in resume):
        resume += ["--agent.memory", "false"]
    flags = os.environ.get("XLA_FLAGS", "")
    if cores == 1:
        flags += " --xla_cpu_multi_thread_eigen=false"
    env = os.environ | {"XLA_FLAGS": flags.strip()}
    train = [*SNAPRL, "train", config, "--run-dir", str(folder), *resume]
    subprocess.run(train, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    evaluate = [*SNAPRL, "evaluate", str(folder), "--episodes", str(episodes)]
    printed = subprocess.run(evaluate, env=env, check=True, capture_output=True, text=True).stdout
    rows = list(read_rows(folder / "metrics.jsonl"))
    return json.loads(printed.splitlines()[-1]) | {
        "config": config,
        "seed": seed,
        "memory": memory,
        "wall_s": rows[-1]["wall_s"],
        "steps_per_s": sorted(float(row["steps_per_s"] or 0) for row in rows)[len(rows) // 2],
    }


def show(row: dict[str, Any]) -> None:
    """Prints a row of a Markdown table."""
    success = f"{row['eval_success']:.2f}" if "eval_success" in row else "-"
    columns = [
        f"`{row['config']}`",
        "yes" if row["memory"] else "no",
        str(row["seed"]),
        f"{row['step'] / 1e6:.1f} M",
        f"{row['eval_episode_return']:.3f}",
        f"{row['eval_greedy_episode_return']:.3f}",
        success,
        f"{row['wall_s']:.0f} s",
        f"{row['steps_per_s'] / 1e3:.1f} k",
    ]
    print(f"| {' | '.join(columns)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--memoryless", action="store_true", help="the same without memory, too")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--runs", type=Path, default=Path("runs/agents"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    chosen = parser.parse_args()
    kinds = (True, False) if chosen.memoryless else (True,)
    wanted = [(c, s, m) for c in chosen.configs for m in kinds for s in range(chosen.seeds)]
    print("| config | memory | seed | steps | return | greedy | success | training | steps/s |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with ThreadPoolExecutor(chosen.jobs) as pool:

        def start(config: str, seed: int, memory: bool) -> dict[str, Any]:
            folder = chosen.runs / f"{config}-{'' if memory else 'memoryless-'}{seed}"
            cores = 1 if chosen.jobs > 1 else os.cpu_count() or 1
            return one_run(config, seed, memory, folder, chosen.episodes, cores)

        for row in pool.map(lambda each: start(*each), wanted):
            show(row)


if __name__ == "__main__":
    main()
