"""The processes of a sweep: each trains on cores of its own, and none outlives the sweep."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from snaprl.training.sweeps.plan import Job
from snaprl.training.sweeps.worker import STOPPED

WORKER = [sys.executable, "-m", "snaprl.training.sweeps.worker"]
CONFIGS = "configs"  # in a sweep's folder: what its runs are made of
LOG = "log.txt"  # in a run's folder: what it said


class Workers:
    """Processes that train, a few at a time.

    They end with the block that they are started in, and at once where this process is killed. Each
    reads a pipe: a byte asks it to leave a checkpoint and end, and the pipe's own end says that
    nobody waits for it any more.
    """

    def __init__(self, count: int, folder: Path, *, bound: bool = True) -> None:
        """Starts nothing yet.

        Args:
            count: How many there are at a time.
            folder: The sweep's.
            bound: Whether each keeps to cores of its own.
        """
        self._count, self._folder = count, folder
        self._cores: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        for share in _shares(count) if bound else [[]] * count:
            self._cores.put(share)
        self._theirs, self._ours = os.pipe()
        self._pool = ThreadPoolExecutor(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        os.write(self._ours, b"." * self._count)
        self._pool.shutdown()
        os.close(self._ours)
        os.close(self._theirs)

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, str, bool]]:
        """Runs jobs; of each that ends: what came of it, in words, and whether it is done."""
        futures = {self._pool.submit(self._run, job): job for job in jobs}
        while futures:
            # with a limit: Ray's cancel is an interrupt that an endless wait would not hear
            for future in wait(futures, timeout=1.0, return_when=FIRST_COMPLETED).done:
                yield futures.pop(future), *future.result()

    def _run(self, job: Job) -> tuple[str, bool]:
        mine = self._cores.get()
        begin_s = time.monotonic()
        command = [*WORKER, str(self._folder / CONFIGS / f"{job.name}.toml")]
        command += ["--run-dir", str(job.folder), "--seed", str(job.seed)]
        command += ["--pipe", str(self._theirs)]
        command += ["--cores", *map(str, mine)] if mine else []
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            with (job.folder / LOG).open("a", encoding="utf-8") as log:
                code = subprocess.run(
                    command, stdout=log, stderr=log, check=False, pass_fds=[self._theirs]
                ).returncode
        except OSError as error:
            return f"failed, {job.folder} cannot be written ({error.strerror or error})", False
        finally:
            self._cores.put(mine)
        if code == STOPPED:
            return "stopped", False
        if code:
            said = (job.folder / LOG).read_text(encoding="utf-8").strip().splitlines() or [""]
            return f"failed, {said[-1]} ({job.folder / LOG})", False
        return f"done in {time.monotonic() - begin_s:.0f} s", True


@contextmanager
def left_by_signals() -> Iterator[None]:
    """Makes of the first Ctrl-C or SIGTERM an exit, with the code that a shell has for it."""
    before, code = {}, None

    def leave(number: int, frame: Any) -> None:
        nonlocal code
        del frame
        code = 128 + number
        for each in before:  # to leave takes a moment, which must not be broken off
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(code)

    with contextlib.suppress(ValueError):  # not in the main thread: whoever runs us handles signals
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, leave)
    try:
        yield
    except SystemExit as end:  # Ray, where it is waited for, puts 1 in our code's place
        raise SystemExit(end.code if code is None else code) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _shares(count: int) -> list[list[int]]:
    """The cores that this process may use, shared out evenly; a share may be empty."""
    # no such thing on macOS: there nobody is bound to a core
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    each = len(mine) // count
    return [mine[k * each : (k + 1) * each] for k in range(count)]
