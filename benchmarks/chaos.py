"""Kills actors of a run every few seconds, and says what the run made of it.

python benchmarks/chaos.py RUN                          3 minutes of tmaze_processes
python benchmarks/chaos.py RUN --engine ray             the same on Ray
python benchmarks/chaos.py RUN --engine ray --steps 600000     and on, until it learnt from so many
python benchmarks/chaos.py RUN --minutes 1 --every 2 -- --env.kwargs.length 20
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


def processes() -> dict[int, tuple[int, str]]:
    """All running processes: the session and the command line of each."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            line = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if state != "Z":
            found[int(folder.name)] = int(session), line
    return found


def of_run(session: int, engine: str) -> dict[int, str]:
    """What a run has started; Ray's processes have sessions of their own."""
    ray = ("ray::", "raylet", "gcs_server") if engine == "ray" else ()
    return {
        pid: line
        for pid, (held, line) in processes().items()
        if held == session or any(word in line for word in ray)
    }


def actors_of(session: int, engine: str) -> list[int]:
    """Which of them play."""
    lines = of_run(session, engine)
    if engine == "ray":
        return sorted(pid for pid, line in lines.items() if line.startswith("ray::_Remote"))
    # forked by another process with the same command line, the first
    return sorted(pid for pid, line in lines.items() if "forkserver" in line)[1:]


def open_files(pid: int) -> int:
    """How many file handles a process has."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def shared_bytes() -> int:
    """Shared memory of this machine, of all programs together; a file that has no name counts."""
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(rows["Shmem"].split()[0])


def reports(metrics: Path) -> list[dict]:
    """What the run has said up to now; a line that is being written does not count yet."""
    return [json.loads(line) for line in metrics.read_text().split("\n")[:-1]]


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--engine", choices=["processes", "ray"], default="processes")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=0, help="that there must be before the end")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two kills")
    parser.add_argument("flags", nargs="*", help="of snaprl train tmaze_ENGINE, after --")
    given = parser.parse_args()
    command = [sys.executable, "-m", "snaprl.training.cli", "train"]
    command += [f"tmaze_{given.engine}"]
    command += ["--run-dir", str(given.run), "--steps", "100_000_000", *given.flags]
    shared = [shared_bytes()]
    with subprocess.Popen(command, start_new_session=True) as process:
        metrics, kills, handles = given.run / "metrics.jsonl", 0, []
        while not metrics.exists() or not reports(metrics):
            time.sleep(0.2)
        until_s = time.monotonic() + 60 * given.minutes
        while process.poll() is None:
            if time.monotonic() > until_s and reports(metrics)[-1]["step"] >= given.steps:
                break
            time.sleep(given.every)
            actors = actors_of(process.pid, given.engine)
            if actors:
                os.kill(random.choice(actors), signal.SIGKILL)
                kills += 1
            handles.append(open_files(process.pid))
            shared.append(shared_bytes())
        ended_by_itself = process.poll() is not None
        process.send_signal(signal.SIGINT)
        begin_s = time.monotonic()
        process.wait()
        ended_s = time.monotonic() - begin_s
    time.sleep(1.0)
    shared.append(shared_bytes())
    last = reports(metrics)[-1]
    told = {name: last.get(name) for name in ("step", "success", "restarts", "steps_per_s")}
    print(
        json.dumps(
            told
            | {
                "kills": kills,
                "gave up": ended_by_itself,
                "ended within s": round(ended_s, 1),
                "handles, first and last": (handles[0], handles[-1]),
                "shared memory before, first, last, after, MiB": [
                    round(shared[k] / 2**20, 1) for k in (0, 1, -2, -1)
                ],
                "processes left": len(of_run(process.pid, given.engine)),
            }
        )
    )


if __name__ == "__main__":
    main()
