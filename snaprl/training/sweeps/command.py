"""`snaprl sweep`: runs what a plan lists, as many side by side as there are cores."""

import fcntl
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snaprl.training import config as configs
from snaprl.training import provenance, runs
from snaprl.training.config import AnyConfig
from snaprl.training.errors import UserError, suggest
from snaprl.training.sweeps import plan as plans
from snaprl.training.sweeps.plan import Job, Plan
from snaprl.training.sweeps.processes import CONFIGS, Workers, left_by_signals

if TYPE_CHECKING:
    from snaprl.training.sweeps.on_ray import RayWorkers

SWEEP = "sweep.toml"  # in a sweep's folder: its file
LOCK = "sweep.lock"  # in a sweep's folder: held by who works in it


def sweep(path: Path, folder: Path, jobs: int, ray_address: str = "", ray_cpus: float = 1) -> bool:
    """Runs what is not done yet.

    Args:
        path: The sweep's file.
        folder: Where the runs lie; those that are there go on, and those that are done stay.
        jobs: How many run side by side on this machine.
        ray_address: Of a Ray cluster that runs them instead, as many as it has room for; its
            machines share the folder.
        ray_cpus: Cores that Ray keeps for a run.

    Returns:
        Whether all of it is done; it is not where a run failed or was stopped.

    Raises:
        UserError: The file is wrong, the folder holds runs of other settings, another sweep
            works in it, or the cluster is not there.
        SystemExit: It was interrupted by Ctrl-C or SIGTERM; its runs left a checkpoint each.
    """
    plan = plans.read(path, folder)
    if folder.exists():
        with alone(folder):  # or it would be said only after seconds of building
            pass
    facts = _check_builds(plan)
    for job in plan.jobs:
        _check_folder(job, facts[job.name])
    with alone(folder):
        _write(folder, path, plan)
        if not ray_address or all(map(is_done, plan.jobs)):
            return _run(plan, lambda: Workers(jobs, folder), f"{jobs} side by side")
        from snaprl.training.sweeps.on_ray import RayWorkers

        where = f"on Ray at {ray_address}"
        return _run(plan, lambda: RayWorkers(ray_address, ray_cpus, folder), where)


def _run(plan: Plan, make: "Callable[[], Workers | RayWorkers]", where: str) -> bool:
    waiting = [job for job in plan.jobs if not is_done(job)]
    done = len(plan.jobs) - len(waiting)
    failed = told = False
    with left_by_signals(), make() as workers:
        _say(f"{plan.title}: {len(plan.jobs)} runs, {done} of them done, {where}")
        try:
            for job, words, ok in workers.run(waiting):
                done += 1
                failed |= not ok
                _say(f"[{done}/{len(plan.jobs)}] {job.name}, seed {job.seed}: {words}")
                if ok and not told:  # what a run reports is known once one has reported
                    told = True
                    _tell_of_metrics(plan, job)
        except SystemExit:
            _say("stopping: the same command goes on")
            raise
    return not failed


def _tell_of_metrics(plan: Plan, job: Job) -> None:
    """Says what the sweep is to be ordered by, and a run does not report."""
    from snaprl.training.sweeps.report import numbers_of

    known = numbers_of(runs.read(job.folder)).keys()
    for name, key in {plan.tune_by: "tune_by", plan.metric: "metric"}.items():
        if name and name not in known:
            _say(f"snaprl: {job.name} reports no {key} = '{name}': {suggest(name, known)}")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other sweeps out of a folder, which is made where it is not there.

    The kernel lets go of the lock when this process ends, in whatever way.

    Raises:
        UserError: Another sweep works there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise _unwritable(folder, error) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another sweep works in {folder}: let it end, or sweep into another --folder"
            ) from None
        except OSError as error:  # a file system without locks
            raise _unwritable(folder, error) from None
        yield


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_done(job: Job) -> bool:
    """Whether a run has made all its steps and was measured then."""
    return runs.read_measured(job.folder).get("step", -1) >= job.config.training.steps


def _check_builds(plan: Plan) -> dict[str, Mapping[str, str]]:
    """Builds every kind of run once, so that what is wrong is said before anything is computed.

    Returns:
        What the checkpoints of each belong to, such as a text.
    """
    from snaprl.training.loops import prepare
    from snaprl.training.supervised.build import SupervisedBuilt
    from snaprl.training.supervised.evaluate import numbers

    facts, measured, agents = {}, set(), False
    for job in {job.name: job for job in plan.jobs}.values():
        try:
            built, loop = prepare(job.config)
        except UserError as error:
            raise UserError(f"run '{job.name}': {error}") from error
        loop.close()
        facts[job.name] = built.facts
        if isinstance(built, SupervisedBuilt):
            measured |= numbers(built.task)
        else:  # of an environment it is known once it has played
            agents = True
    for key, name in {"metric": plan.metric, "tune_by": plan.tune_by}.items():
        if name and name.startswith("eval_") and name not in measured and not agents:
            raise UserError(f"no run measures {key} = '{name}': {suggest(name, measured)}")
    return facts


def _check_folder(job: Job, facts: Mapping[str, str]) -> None:
    """Refuses to go on with a run, or to count one, of other settings or of another text."""
    held = job.folder / "config.toml"
    if not held.exists():
        return
    before, now = (_fixed(c) for c in (configs.load(held), job.config))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{job.folder} holds a run with {key} = {before.get(key)}, not {now.get(key)}: "
                "remove it, or sweep into another --folder"
            )
    provenance.compare(job.folder, facts)


def _fixed(config: AnyConfig) -> dict[str, Any]:
    """What a run must keep when it goes on, by dotted key."""
    from snaprl.training.resume import FREE, flat, scheduled

    # where something follows the number of steps, runs of one table have to share it
    free = FREE - {"training.steps"} if scheduled(config) else FREE
    return {key: value for key, value in flat(config).items() if key not in free}


def _write(folder: Path, path: Path, plan: Plan) -> None:
    """Puts the sweep's file and the runs' configs into its folder."""
    import tomli_w

    try:
        (folder / CONFIGS).mkdir(exist_ok=True)
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
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder} cannot be written ({error.strerror}): give another --folder")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
