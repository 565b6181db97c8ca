"""Watches a long run: resident memory and throughput have to be flat after the first minute.

python benchmarks/memory.py tmaze --steps 60000000
python benchmarks/memory.py tmaze_processes --steps 60000000 --actors.count 1
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def resident_mib(pid: int) -> float:
    """Resident size of a process and of all below it, MiB; a page that two share counts twice."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # it ended in between
        return 0.0
    own = [int(line.split()[1]) / 1024 for line in status.splitlines() if line[:6] == "VmRSS:"]
    return sum(own) + sum(resident_mib(int(child)) for child in children)


def fifths(values: list[float]) -> str:
    """The medians of the five parts of a series, in order."""
    cuts = [round(k * len(values) / 5) for k in range(6)]
    parts = [values[a:b] for a, b in zip(cuts, cuts[1:], strict=False) if a < b]
    return ", ".join(f"{statistics.median(part):,.1f}" for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", nargs="?", default="tmaze")
    parser.add_argument("--steps", type=int, default=60_000_000)
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two looks")
    args, settings = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "snaprl.training.cli", "train", args.config]
        command += ["--run-dir", f"{folder}/run", "--steps", str(args.steps), *settings]
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begin, sizes = time.monotonic(), []
        while run.poll() is None:
            sizes.append((time.monotonic() - begin, resident_mib(run.pid)))
            print(f"{sizes[-1][0]:6.0f} s  {sizes[-1][1]:7.1f} MiB", flush=True)
            time.sleep(args.every)
        told = Path(folder, "run", "metrics.jsonl")
        metrics = told.read_text().splitlines() if told.exists() else []
    speeds = [row["steps_per_s"] for row in map(json.loads, metrics) if "steps_per_s" in row]
    later = [size for seconds, size in sizes if seconds > 60 and size]
    print(f"exit status {run.returncode}")
    if later:
        print(f"after the first minute: {min(later):.1f} to {max(later):.1f} MiB")
        print(f"medians of its five parts: {fifths(later)} MiB")
    print(f"steps/s, medians of the run's five parts: {fifths(speeds[1:])}")


if __name__ == "__main__":
    main()
