"""Watches the resident memory of a long run: it has to be flat after the first minute.

python benchmarks/memory.py tmaze --steps 60000000
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def resident_mib(pid: int) -> float:
    """Resident size of a process, MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", nargs="?", default="tmaze")
    parser.add_argument("--steps", type=int, default=60_000_000)
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two looks")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "snaprl.training.cli", "train", args.config]
        command += ["--run-dir", f"{folder}/run", "--steps", str(args.steps)]
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begin, sizes = time.monotonic(), []
        while run.poll() is None:
            sizes.append((time.monotonic() - begin, resident_mib(run.pid)))
            print(f"{sizes[-1][0]:6.0f} s  {sizes[-1][1]:7.1f} MiB", flush=True)
            time.sleep(args.every)
    later = [size for seconds, size in sizes if seconds > 60 and size]
    if later:
        print(f"after the first minute: {min(later):.1f} to {max(later):.1f} MiB")


if __name__ == "__main__":
    main()
