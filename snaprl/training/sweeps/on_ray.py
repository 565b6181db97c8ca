"""The runs of a sweep as tasks of a Ray cluster whose machines share the sweep's folder."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from snaprl.training import cluster
from snaprl.training.errors import UserError
from snaprl.training.sweeps.plan import Job
from snaprl.training.sweeps.processes import Workers
from snaprl.training.sweeps.worker import GOODBYE_S

RETRIES = 3  # of a run whose machine was lost
LOST_S = 2.0  # in which a cluster lets go that has lost its head
PASSED_ON = ("JAX_PLATFORMS", "XLA_FLAGS", "PYTHONPATH")  # settings that runs share with this shell


class RayWorkers:
    """As `Workers`, but wherever the cluster has room: a task for each run, one process in it.

    A run whose machine is lost begins again elsewhere, from its last checkpoint, a few times.
    """

    def __init__(self, address: str, cpus: float, folder: Path) -> None:
        """Joins the cluster.

        Args:
            address: The cluster's.
            cpus: Cores that Ray keeps for a run.
            folder: The sweep's, by the same path on all machines.

        Raises:
            UserError: Ray is not installed, nobody answers, or no machine is that large.
        """
        way_out = "leave it out to use the cores of this machine"
        self._ray = cluster.import_ray(address, "--ray-address", way_out)
        self._head = cluster.join(self._ray, address, "--ray-address", way_out)
        try:
            self._check_room(cpus)
        except UserError:
            self._ray.shutdown()
            raise
        self._folder, self._here = folder.resolve(), Path.cwd()
        settings = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._task = self._ray.remote(_run).options(
            num_cpus=cpus, max_retries=RETRIES, runtime_env={"env_vars": settings}
        )
        self._waiting: dict[Any, Job] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        waiting = list(self._waiting)

        def end() -> None:
            with contextlib.suppress(Exception):
                for reference in waiting:
                    self._ray.cancel(reference)  # Ctrl-C, to a task: its run leaves a checkpoint
                if waiting:
                    self._ray.wait(waiting, num_returns=len(waiting), timeout=2 * GOODBYE_S)
            with contextlib.suppress(Exception):
                self._ray.shutdown()

        # where the head is lost nobody may be there to tell
        with contextlib.suppress(TimeoutError):
            cluster.within(LOST_S if self._head.lost else 3 * GOODBYE_S, end)

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, str, bool]]:
        """Runs jobs; as `Workers.run`.

        Raises:
            UserError: The cluster's head is lost.
        """
        for job in jobs:
            there = dataclasses.replace(job, folder=job.folder.resolve())
            self._waiting[self._task.remote(there, self._folder, self._here)] = job
        while self._waiting:
            self._head.check()
            ready, _ = self._ray.wait(list(self._waiting), timeout=1.0)
            for reference in ready:
                job = self._waiting.pop(reference)
                try:
                    words, done = self._ray.get(reference)
                except self._ray.exceptions.RayError as error:
                    words, done = f"failed on the cluster, {cluster.why(error)}", False
                yield job, words, done

    def _check_room(self, cpus: float) -> None:
        """Refuses what would wait for ever."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        most = max((have.get("CPU", 0.0) for have in nodes), default=0.0)
        if cpus > most:
            raise UserError(
                f"--ray-cpus is {cpus:g}, and the largest machine of the cluster has {most:g} "
                "cores: lower it"
            )


def _run(job: Job, folder: Path, here: Path) -> tuple[str, bool]:
    """One run, in a process of its own, since what it needs is settled before jax starts."""
    os.chdir(here)  # what a config names may lie there
    with Workers(1, folder, bound=False) as workers:
        ((_, words, done),) = workers.run([job])
        return words, done
