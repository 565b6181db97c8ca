"""One run of a sweep, in a process of its own: trained or gone on with, and then measured."""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from snaprl.training.errors import UserError

STOPPED = 130  # exit code of a run that was asked to stop
GOODBYE_S = 10.0  # in which it leaves a checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains and measures one run; its exit codes are those of the command."""
    parser = argparse.ArgumentParser(prog="snaprl sweep's worker")
    parser.add_argument("config", type=Path)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--cores", type=int, nargs="*", help="the only ones to use")
    parser.add_argument("--pipe", type=int, help="that ends with the sweep; a byte asks to stop")
    known = parser.parse_args(arguments)
    if known.pipe is not None:
        threading.Thread(target=heed, args=(known.pipe,), daemon=True).start()
    if known.cores:  # before anything asks how many there are
        os.sched_setaffinity(0, known.cores)
    try:
        return _work(known.config, known.run_dir, known.seed)
    except UserError as error:
        print(f"snaprl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before there was anything to save, or for the second time
        return STOPPED


def heed(pipe: int) -> None:
    """Ends this process when its sweep asks it to by a byte, and at once when there is no sweep."""
    if os.read(pipe, 1):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GOODBYE_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _work(path: Path, folder: Path, seed: int) -> int:
    from snaprl.training import cli, config
    from snaprl.training.plot import plot
    from snaprl.training.run import Run, evaluate
    from snaprl.training.runs import write_measured

    cli._prepare_jax()
    base = config.load(path)
    loaded = config.replace(base, {"seed": seed})
    resume = (folder / "config.toml").exists()
    report = Run(loaded, folder, name=path.stem, resume=resume, base=base).train()
    if report["step"] < loaded.training.steps:
        return STOPPED
    result = evaluate(folder)
    plot([folder])
    write_measured(folder, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
