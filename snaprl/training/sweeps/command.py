"""`snaprl sweep`: runs what a plan lists, as many side by side as there are cores."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from snaprl.training import config as configs
from snaprl.training.errors import UserError
from snaprl.training.sweeps import plan as plans
from snaprl.training.sweeps.plan import Job, Plan
from snaprl.training.sweeps.worker import MEASURED, STOPPED

SWEEP = "sweep.toml"  # in a sweep's folder: its file
CONFIGS = "configs"  # in a sweep's folder: what its runs are made of
LOG = "log.txt"  # in a run's folder: what it said


def sweep(path: Path, folder: Path, jobs: int) -> bool:
    """Runs what is not done yet.

    Args:
        path: The sweep's file.
        folder: Where the runs lie; those that are there go on, and those that are done stay.
        jobs: How many run side by side.

    Returns:
        Whether all of it is done; it is not where it was interrupted, or where a run failed.

    Raises:
        UserError: The file is wrong, or the folder holds runs of other settings.
    """
    plan = plans.read(path, folder)
    _check_builds(plan)
    for job in plan.jobs:
        _check_folder(job)
    _write(folder, path, plan)
    waiting = [job for job in plan.jobs if not _is_done(job)]
    done = len(plan.jobs) - len(waiting)
    _say(f"{plan.title}: {len(plan.jobs)} runs, {done} of them done, {jobs} side by side")
    stop = threading.Event()
    cores = _Cores(jobs)
    failed = False
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_run, job, folder, cores, stop): job for job in waiting}
        try:
            for future in as_completed(futures):
                done += 1
                words, ok = future.result()
                failed |= not ok
                job = futures[future]
                _say(f"[{done}/{len(plan.jobs)}] {job.name}, seed {job.seed}: {words}")
        except KeyboardInterrupt:  # the workers got it, too, and leave a checkpoint each
            stop.set()
            _say("stopping: the same command goes on")
            raise
    return not failed


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Cores:
    """Lends each of the workers cores of its own."""

    def __init__(self, workers: int) -> None:
        # no such thing on macOS: there nobody is bound to a core
        mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        share = len(mine) // workers
        self._free = [mine[k * share : (k + 1) * share] for k in range(workers)]
        self._lock = threading.Lock()

    def take(self) -> list[int]:
        with self._lock:
            return self._free.pop()

    def give(self, cores: list[int]) -> None:
        with self._lock:
            self._free.append(cores)


def _run(job: Job, folder: Path, cores: _Cores, stop: threading.Event) -> tuple[str, bool]:
    """Runs a job in a process of its own; says what came of it, and whether it is done."""
    if stop.is_set():
        return "not begun", False
    mine = cores.take()
    begin_s = time.monotonic()
    command = [sys.executable, "-m", "snaprl.training.sweeps.worker"]
    command += [str(folder / CONFIGS / f"{job.name}.toml")]
    command += ["--run-dir", str(job.folder), "--seed", str(job.seed)]
    command += ["--cores", *map(str, mine)] if mine else []
    job.folder.mkdir(parents=True, exist_ok=True)
    try:
        with (job.folder / LOG).open("a", encoding="utf-8") as log:
            code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    finally:
        cores.give(mine)
    if code == STOPPED:
        return "stopped", False
    if code:
        said = (job.folder / LOG).read_text(encoding="utf-8").strip().splitlines() or [""]
        return f"failed, {said[-1]} ({job.folder / LOG})", False
    return f"done in {time.monotonic() - begin_s:.0f} s", True


def _is_done(job: Job) -> bool:
    try:
        measured = json.loads((job.folder / MEASURED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return measured["step"] >= job.config.training.steps


def _check_builds(plan: Plan) -> None:
    """Builds every kind of run once, so that what is wrong is said before anything is computed."""
    from snaprl.training.loops import prepare

    for job in {job.name: job for job in plan.jobs}.values():
        try:
            _, loop = prepare(job.config)
        except UserError as error:
            raise UserError(f"run '{job.name}': {error}") from error
        loop.close()


def _check_folder(job: Job) -> None:
    """Refuses to go on with a run of other settings."""
    held = job.folder / "config.toml"
    if not held.exists():
        return
    before, now = (_fixed(asdict(c)) for c in (configs.load(held), job.config))
    if before != now:
        raise UserError(
            f"{job.folder} holds a run of other settings: remove it, or sweep into another --folder"
        )


def _fixed(tables: dict) -> dict:
    """What a run must keep when it goes on."""
    from snaprl.training.run import FREE

    return {
        f"{table}.{key}": value
        for table, values in tables.items()
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
        if f"{table}.{key}" not in FREE
    }


def _write(folder: Path, path: Path, plan: Plan) -> None:
    """Puts the sweep's file and the runs' configs into its folder."""
    import tomli_w

    try:
        (folder / CONFIGS).mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        tables = configs.read_toml(path)
        base = plans.base_of(tables, path)
        if base not in configs.shipped().values():  # or it would not be found from here
            text = tomli_w.dumps(tables | {"config": str(base.resolve())})
        (folder / SWEEP).write_text(text, encoding="utf-8")
        for job in plan.jobs:
            file = folder / CONFIGS / f"{job.name}.toml"
            file.write_text(configs.dumps(job.config), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): give another --folder"
        ) from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
