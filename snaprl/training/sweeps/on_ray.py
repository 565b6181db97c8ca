"""The runs of a sweep as tasks of a Ray cluster whose machines share the sweep's folder."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from snaprl.training import cluster
from snaprl.training.sweeps.plan import Job
from snaprl.training.sweeps.processes import Workers
from snaprl.training.sweeps.worker import GOODBYE_S


class RayWorkers:
    """As `Workers`, but wherever the cluster has room: a task for each run, one process in it.

    A run whose machine is lost begins again elsewhere, from its last checkpoint.
    """

    def __init__(self, address: str, cpus: float, folder: Path) -> None:
        """Joins the cluster.

        Args:
            address: The cluster's.
            cpus: Cores that Ray keeps for a run.
            folder: The sweep's, by the same path on all machines.

        Raises:
            UserError: Ray is not installed, or nobody answers.
        """
        way_out = "leave it out to use the cores of this machine"
        self._ray = cluster.imported(address, "--ray-address", way_out)
        self._head = cluster.join(self._ray, address, "--ray-address", way_out)
        self._folder = folder.resolve()
        self._task = self._ray.remote(_run).options(num_cpus=cpus)
        self._waiting: dict[Any, Job] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for reference in self._waiting:
            self._ray.cancel(reference)  # Ctrl-C, to a task: its run leaves a checkpoint
        waiting = list(self._waiting)
        if waiting:
            self._ray.wait(waiting, num_returns=len(waiting), timeout=2 * GOODBYE_S)
        self._ray.shutdown()

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, str, bool]]:
        """Runs jobs; as `Workers.run`.

        Raises:
            UserError: The cluster's head is lost.
        """
        for job in jobs:
            there = dataclasses.replace(job, folder=job.folder.resolve())
            self._waiting[self._task.remote(there, self._folder)] = job
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


def _run(job: Job, folder: Path) -> tuple[str, bool]:
    """One run, in a process of its own, since what it needs is settled before jax starts."""
    with Workers(1, folder) as workers:
        ((_, words, done),) = workers.run([job])
        return words, done
