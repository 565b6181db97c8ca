"""How long a run takes to end once it is asked to, and what it leaves behind.

python benchmarks/shutdown.py FOLDER                       every engine, every cause
python benchmarks/shutdown.py FOLDER --engines processes   some of them
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from chaos import of_run, reports

CAUSES = ("Ctrl-C", "SIGTERM", "raising environment", "Ctrl-C, slow sink")
# the command, with a sink that takes its time
SLOW = """
import sys, time
from snaprl.training import cli, sinks
plain = sinks.JsonlSink.write
def write(sink, report):
    plain(sink, report)
    time.sleep(1)
sinks.JsonlSink.write = write
sys.exit(cli.main(sys.argv[1:]))
"""
# where actors of any engine find it
WRAPPER = '''
import time
import gymnasium


class Raises(gymnasium.Wrapper):
    """Raises from some moment on."""

    def step(self, action):
        if time.time() > {moment}:
            raise KeyError("the door is gone")
        return self.env.step(action)
'''


def command(engine: str, cause: str, folder: Path) -> list[str]:
    """What is run."""
    start = ["-c", SLOW] if "slow" in cause else ["-m", "snaprl.training.cli"]
    words = [sys.executable, *start, "train", "cartpole_masked_impala", "--run-dir", str(folder)]
    words += ["--engine", engine, "--steps", "100_000_000", "--training.streams", "8"]
    words += ["--training.report-every", "640", "--training.checkpoint-every", "100_000_000"]
    if engine != "local":
        words += ["--actors.count", "2", "--actors.per-update", "1", "--actors.restarts", "0"]
        words += ["--actors.ray-cpus", "0.5"]
    if "raising" in cause:
        words += ["--env.wrappers", "raising:Raises"]
    return words


def ended(engine: str, cause: str, folder: Path) -> dict:
    """Runs one for a while and has it end."""
    run = folder / f"{engine}-{CAUSES.index(cause)}"
    moment = time.time() + 60
    (folder / "raising.py").write_text(WRAPPER.format(moment=moment))
    with subprocess.Popen(
        command(engine, cause, run),
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(folder.resolve())},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        metrics = run / "metrics.jsonl"
        while not metrics.exists() or len(reports(metrics)) < 3:
            time.sleep(0.1)
            if process.poll() is not None:
                raise SystemExit(f"it did not start: {process.communicate()[1]}")
        if "raising" in cause:
            time.sleep(max(0.0, moment - time.time()))
        elif "Ctrl-C" in cause:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGTERM)
        begin_s = time.monotonic()
        said = process.communicate()[1].strip().splitlines()
        took_s = time.monotonic() - begin_s
    time.sleep(1.0)
    (folder / "raising.py").write_text(WRAPPER.format(moment=time.time() + 1e6))
    kept = [int(path.name) for path in (run / "checkpoints").iterdir()]
    whole = subprocess.run(
        [sys.executable, "-m", "snaprl.training.cli", "evaluate", str(run), "--episodes", "8"],
        env=os.environ | {"PYTHONPATH": str(folder.resolve())},
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "ended within s": round(took_s, 1),
        "code": process.returncode,
        "said": said[-1] if said else "",
        "checkpoint": max(kept, default=None),
        "last report": reports(metrics)[-1]["step"],
        "can be evaluated": whole.returncode == 0,
        "processes left": len(of_run(process.pid, engine)),
    }


def main() -> None:
    """Runs all of them."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the runs go")
    parser.add_argument("--engines", nargs="+", default=["local", "processes", "ray"])
    parser.add_argument("--causes", nargs="+", default=CAUSES)
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    for engine in given.engines:
        for cause in given.causes:
            print(engine, cause, json.dumps(ended(engine, cause, given.folder)), flush=True)


if __name__ == "__main__":
    main()
