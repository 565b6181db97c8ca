"""Kills a run again and again, and compares what it becomes with a run that was never killed.

python benchmarks/kills.py FOLDER                     20 kills of the T-maze on the host, `local`
python benchmarks/kills.py FOLDER --loop device       the same on the device
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from snaprl.training.run import read
from snaprl.training.sinks import read_rows

FLAGS = {
    # as many reports and checkpoints in a second, so that a kill may meet any of them
    "host": ["--steps", "300000", "--training.streams", "16"],
    "device": ["--steps", "3000000", "--training.streams", "32"],
}
EVERY = {"host": 5000, "device": 60000}  # steps between two checkpoints


def command(folder: Path, loop: str, resume: bool) -> list[str]:
    """Trains the T-maze with a short corridor."""
    every = str(EVERY[loop])
    flags = ["--training.report-every", every, "--training.checkpoint-every", every]
    flags += ["--training.loop", loop, "--env.kwargs.length", "10", *FLAGS[loop]]
    flags += ["--resume"] if resume else []
    program = [sys.executable, "-m", "snaprl.training.cli", "train", "tmaze"]
    return [*program, "--run-dir", str(folder), *flags]


def killed(folder: Path, loop: str, most_s: float) -> bool:
    """Trains on and kills within `most_s` of the first report; whether it came to that."""
    metrics, resume = folder / "metrics.jsonl", (folder / "config.toml").exists()
    before = metrics.stat().st_mtime_ns if metrics.exists() else None
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command(folder, loop, resume), stdout=quiet, stderr=quiet) as process:
        while process.poll() is None and (
            not metrics.exists() or metrics.stat().st_mtime_ns == before
        ):
            time.sleep(0.01)
        try:
            process.wait(random.uniform(0.0, most_s))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            return True
        if process.returncode:
            sys.exit(f"a run ended with code {process.returncode}: {process.args}")
        return False


def leaves(folder: Path) -> dict[str, np.ndarray]:
    """Every number of the last checkpoint."""

    def plain(x: jax.Array) -> np.ndarray:
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    found = jax.tree.leaves_with_path(read(folder).state)
    return {jax.tree_util.keystr(path): plain(leaf) for path, leaf in found}


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the two runs go")
    parser.add_argument("--loop", choices=sorted(FLAGS), default="host")
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    straight, broken = given.folder / "straight", given.folder / "killed"
    subprocess.run(command(straight, given.loop, resume=False), check=True, capture_output=True)
    # each time it comes a little further, so that it is killed all along the way
    most_s = 2 * float(read_rows(straight / "metrics.jsonl")[-1]["wall_s"]) / given.kills
    kills = 0
    while kills < given.kills and killed(broken, given.loop, most_s):
        kills += 1
    subprocess.run(
        command(broken, given.loop, resume=(broken / "config.toml").exists()),
        check=True,
        capture_output=True,
    )
    one, other = leaves(straight), leaves(broken)
    differ = [name for name in one if one[name].tobytes() != other[name].tobytes()]
    print(json.dumps({"kills": kills, "leaves": len(one), "differ": differ}))
    sys.exit(bool(differ) or one.keys() != other.keys())


if __name__ == "__main__":
    main()
