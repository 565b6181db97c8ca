"""Actors in processes of their own on this machine; segments and parameters share memory."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import connection, reduction
from typing import Any, NamedTuple

import jax
import numpy as np

from snaprl.training.actors.engine import MakeActor, Message
from snaprl.training.actors.layout import ALIGNMENT, Layout
from snaprl.training.actors.shared import Memory, Newest, attach
from snaprl.training.actors.supervisor import Supervisor

PyTree = Any
STARTUP_S = 300.0  # in which a process builds, compiles, and plays its first segment, under load
GOODBYE_S = 2.0  # in which it ends when told to
LOOK_EVERY_S = 0.2  # how often we look for processes that died or hang
# An actor's programs are small: threads of their own would only take cores from the others.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# A server that has imported what actors need, and nothing else, forks them: imports take seconds,
# which every actor and every replacement would have to wait for.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__, "snaprl.training.build"])


class _Work(NamedTuple):
    """What a process is told to do."""

    make: MakeActor
    actor: int
    seed: int
    played: Layout
    variables: Layout


class _Worker:
    """A process, and how it is talked to."""

    def __init__(self, work: _Work, life: int, slots: int, parameters: Memory):
        self.life, self.error, self.hung_up, self.has_played = life, "", False, False
        memory = Memory(ALIGNMENT + slots * work.played.nbytes)
        self._block = memory.buffer
        self._beat = np.frombuffer(self._block, np.float64, 1)
        self._started_s = time.monotonic()
        self.pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_main, args=(theirs, work), daemon=True)
        with _environment(), _no_interrupts():
            self.process.start()
        theirs.close()
        with contextlib.suppress(OSError):  # it died at once: that is found out later
            for descriptor in (memory.descriptor, parameters.descriptor):
                reduction.send_handle(self.pipe, descriptor, self.process.pid)
        memory.close()
        self._views = [
            work.played.views(memoryview(self._block)[_offset(work.played, slot) :])
            for slot in range(slots)
        ]
        for slot in range(slots):
            self.free(slot)

    def free(self, slot: int) -> None:
        """Lets the process write a segment there."""
        with contextlib.suppress(OSError):  # it died: that is found out elsewhere
            self.pipe.send(slot)

    def view(self, slot: int) -> PyTree:
        """What the process wrote there."""
        return self._views[slot]

    def why_lost(self, patience_s: float) -> str:
        """Why it has to be replaced; empty where it does not."""
        if self.error:
            return f"failed ({self.error})"
        if self.hung_up:  # and all that it had sent has been read
            self.process.join(GOODBYE_S)
            if self.process.is_alive():
                self.process.kill()
                self.process.join()
                return "closed its pipe and did not end"
            return f"died (exit code {self.process.exitcode})"
        last_s = max(float(self._beat[0]), self._started_s)
        limit_s = patience_s if self.has_played else max(patience_s, STARTUP_S)
        silent_s = time.monotonic() - last_s
        return f"gave no sign of life for {silent_s:.0f} s" if silent_s > limit_s else ""

    def end(self, wait_s: float) -> None:
        """Ends the process, kindly if it does within `wait_s`."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self.process.join(wait_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()
        self.process.close()


class ProcessEngine:
    """Actors in processes, replaced when they die, hang or fail."""

    exact = False
    ahead = True

    def __init__(
        self,
        make: MakeActor,
        actors: int,
        *,
        played: PyTree,
        variables: PyTree,
        ahead: int,
        patience_s: float,
        supervisor: Supervisor,
    ):
        """Starts nothing yet.

        Args:
          make: `(index, *, alive) -> Actor`; runs in the processes, so it must pickle.
          actors: how many.
          played: shapes and types of what an actor plays.
          variables: those of the parameters.
          ahead: segments that an actor may be ahead of the learner.
          patience_s: seconds without a step after which an actor is replaced.
          supervisor: counts replacements.
        """
        self._make, self._count, self._slots = make, actors, ahead
        self._patience_s, self._supervisor = patience_s, supervisor
        self._played, self._variables = Layout(played), Layout(variables)
        self._pack = jax.jit(self._variables.pack)
        self._memory = Memory(Newest.size(self._variables.nbytes))
        self._newest = Newest(self._memory.buffer, self._variables.nbytes)
        self._seeds: Iterator[int] = iter(())
        self._workers: list[_Worker] = []
        self._inbox: deque[Message] = deque()

    def start(self, seed: int) -> None:
        """Says where randomness comes from; the processes start when a segment is asked for."""
        sequence = np.random.SeedSequence(seed)
        self._seeds = (int(sequence.spawn(1)[0].generate_state(1)[0]) for _ in iter(int, 1))

    def publish(self, variables: PyTree, version: int) -> None:
        """Copies parameters to where all actors see them."""
        self._newest.write(np.asarray(self._pack(variables)), version)

    def receive(self, timeout_s: float) -> Message | None:
        """The next segment of any actor.

        Raises:
          UserError: actors had to be replaced too often.
        """
        until_s = time.monotonic() + timeout_s
        if not self._workers:
            self._workers = [self._worker(k, 0) for k in range(self._count)]
        while not self._inbox:
            left_s = until_s - time.monotonic()
            self._listen(max(0.0, min(left_s, LOOK_EVERY_S)))
            self._replace_lost()
            if left_s <= 0 and not self._inbox:
                return None
        return self._inbox.popleft()

    def waiting(self) -> int:
        """How many segments have come that `receive` has not given yet."""
        self._listen(0.0)
        return len(self._inbox)

    def numbers(self) -> list[int]:
        """The number of the segment that each actor sends next: streams start anew."""
        return [0] * self._count

    def snapshot(self) -> PyTree:
        """Nothing: who plays on meanwhile cannot be saved."""
        return ()

    def restore(self, snapshot: PyTree) -> None:
        """Actors start anew."""
        del snapshot

    def report(self) -> dict[str, float]:
        """How many actors there are and how many were replaced."""
        return {"actors": float(self._count), "restarts": float(self._supervisor.restarts)}

    def processes(self) -> list[int]:
        """Process ids of the actors."""
        return [w.process.pid or 0 for w in self._workers]

    def close(self) -> None:
        """Ends all processes."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
        until_s = time.monotonic() + GOODBYE_S
        for worker in self._workers:
            worker.end(max(0.0, until_s - time.monotonic()))
        self._workers = []
        self._inbox.clear()
        self._memory.close()

    def _worker(self, actor: int, life: int) -> _Worker:
        work = _Work(self._make, actor, next(self._seeds), self._played, self._variables)
        return _Worker(work, life, self._slots, self._memory)

    def _listen(self, wait_s: float) -> None:
        """Takes in what has been sent, waiting for it where nothing has."""
        of = {worker.pipe: (k, worker) for k, worker in enumerate(self._workers)}
        for pipe in connection.wait(list(of), wait_s):
            actor, worker = of[pipe]  # pyright: ignore[reportArgumentType]
            try:
                sent = worker.pipe.recv()
            except (EOFError, OSError):
                worker.hung_up = True
                continue
            if isinstance(sent, str):
                worker.error = sent
                continue
            slot, version = sent
            worker.has_played = True
            release = lambda w=worker, s=slot: w.free(s)  # noqa: E731
            self._inbox.append(Message(worker.view(slot), actor, worker.life, version, release))

    def _replace_lost(self) -> None:
        for actor, worker in enumerate(self._workers):
            why = worker.why_lost(self._patience_s)
            if why:
                self._supervisor.replace(actor, why)
                worker.end(0.0)
                self._workers[actor] = self._worker(actor, worker.life + 1)


def _offset(layout: Layout, slot: int) -> int:
    return ALIGNMENT + slot * layout.nbytes


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """What a process that starts inside finds in its environment."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    flags = f"{before['XLA_FLAGS'] or ''} {ENVIRONMENT['XLA_FLAGS']}".strip()
    os.environ.update(ENVIRONMENT | {"XLA_FLAGS": flags})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """No Ctrl-C for those that start inside, which would not know yet what to do with it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- what runs in the process ----------------------------------------------------------------


def _main(pipe: connection.Connection, work: _Work) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the learner ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(ENVIRONMENT)  # the server may have been started by others
    jax.config.update("jax_platforms", "cpu")
    try:
        _play(pipe, work)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # nobody listens any more
    except Exception as error:
        with contextlib.suppress(OSError):
            pipe.send(f"{type(error).__name__}: {error}")


def _play(pipe: connection.Connection, work: _Work) -> None:
    block = attach(reduction.recv_handle(pipe))
    newest = Newest(attach(reduction.recv_handle(pipe)), work.variables.nbytes)
    beat = np.frombuffer(block, np.float64, 1)

    def alive() -> None:
        beat[0] = time.monotonic()

    actor = work.make(work.actor, alive=alive)
    state = actor.start(work.seed)
    seen, version, variables = 0, 0, None
    while (slot := _next_slot(pipe, alive)) is not None:
        if seen != newest.version:
            seen, version, data = newest.read()
            variables = jax.device_put(work.variables.views(data))
        state, played = actor.play(variables, state)
        work.played.write(played, memoryview(block)[_offset(work.played, slot) :])
        pipe.send((slot, version))
    actor.close()


def _next_slot(pipe: connection.Connection, alive: Callable[[], None]) -> int | None:
    while not pipe.poll(0.5):
        alive()
    return pipe.recv()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
