"""Trains configs over several seeds, evaluates each, prints a table, and draws the curves.

Seeds run side by side, one core each. A run that is there already goes on where it stood, so the
table can be had again at no cost.

    python benchmarks/learning.py tmaze tmaze_bptt --seeds 5 --figure docs/tmaze --chance 0.5
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from snaprl.training.plot import plot
from snaprl.training.sinks import read_rows

SNAPRL = [sys.executable, "-m", "snaprl.training.cli"]


def one_run(config: str, seed: int, folder: Path, episodes: int) -> dict[str, Any]:
    """Trains and evaluates; returns a row of the table."""
    resume = ["--resume"] if (folder / "config.toml").exists() else ["--seed", str(seed)]
    # a small program gains nothing from a second core, and seeds that share cores lose
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    env = os.environ | {"XLA_FLAGS": flags.strip()}
    train = [*SNAPRL, "train", config, "--run-dir", str(folder), *resume]
    subprocess.run(train, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    evaluate = [*SNAPRL, "evaluate", str(folder), "--episodes", str(episodes)]
    printed = subprocess.run(evaluate, env=env, check=True, capture_output=True, text=True).stdout
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row.get("success") is not None]
    solved = next((row["step"] for row in rows if float(row["success"] or 0) >= 0.98), None)
    return json.loads(printed.splitlines()[-1]) | {
        "config": config,
        "seed": seed,
        "last report": rows[-1]["success"],
        "step at .98": solved,
        "wall_s": rows[-1]["wall_s"],
        "steps_per_s": sorted(float(row["steps_per_s"] or 0) for row in rows)[len(rows) // 2],
    }


def show(row: dict[str, Any]) -> None:
    """Prints a row."""
    solved = f"{row['step at .98'] / 1e6:.1f} M" if row["step at .98"] else "-"
    columns = [
        f"{row['config']:14s} {row['seed']:4d} {row['step'] / 1e6:6.1f} M",
        f"{row['eval_success']:.4f}   {row['eval_greedy_success']:.4f}   {row['last report']:.4f}",
        f"{solved:>7s}  {row['wall_s']:6.0f} s  {row['steps_per_s'] / 1e3:6.0f} k",
    ]
    print("  ".join(columns), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--chance", type=float)
    args = parser.parse_args()

    jobs = [
        (c, s, args.runs / f"{Path(c).stem}-{s}") for c in args.configs for s in range(args.seeds)
    ]
    print("config         seed   steps  success  greedy  last report  at .98  training  steps/s")
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = [pool.submit(one_run, *job, episodes=args.episodes) for job in jobs]
        for row in rows:
            show(row.result())
    if args.figure:
        plot([folder for _, _, folder in jobs], args.figure, "success", chance=args.chance)


if __name__ == "__main__":
    main()
