"""Actors in processes: what they send, and what happens when they fail."""

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from unit.training.actors.scripted import arguments

from snaprl.training.actors import Message, ProcessEngine
from snaprl.training.errors import UserError

WAIT_S = 60.0


@contextlib.contextmanager
def running(faults: dict[int, str], actors: int, **changed: Any) -> Iterator[ProcessEngine]:
    positional, named = arguments(faults, actors, **changed)
    engine = ProcessEngine(*positional, **named)
    engine.start(0)
    engine.publish(weights(1.0), 0)
    try:
        yield engine
    finally:
        engine.close()


def weights(value: float) -> Any:
    return {"params": {"w": jnp.full((2, 3), value)}}


def receive(engine: ProcessEngine) -> Message:
    message = engine.receive(WAIT_S)
    assert message is not None
    return message


def comes_to(engine: ProcessEngine, count: int) -> bool:
    """Whether so many segments come to wait, and no more."""
    until_s = time.monotonic() + WAIT_S
    while engine.waiting() < count and time.monotonic() < until_s:
        time.sleep(0.01)
    time.sleep(0.2)
    return engine.waiting() == count


def gone(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


def test_what_has_come_and_waits_is_counted():
    with running({}, 2) as engine:  # each may be two segments ahead
        assert engine.waiting() == 0
        message = receive(engine)
        assert comes_to(engine, 3)
        message.release()
        assert comes_to(engine, 4)


def test_segments_come_in_order_with_the_newest_parameters():
    with running({}, 2) as engine:
        numbers = {0: [], 1: []}
        while min(len(n) for n in numbers.values()) < 5:
            message = receive(engine)
            numbers[message.actor].append(message.number)
            assert (message.segment.reward == 1).all()
            assert (message.version, message.life) == (0, 0)
            message.release()
        for found in numbers.values():
            assert found == list(range(len(found)))
        engine.publish(weights(7.0), 30)
        rewards = []
        for _ in range(12):  # those that were ahead are played with the old ones
            message = receive(engine)
            rewards.append((message.version, float(message.segment.reward[0, 0])))
            message.release()
        assert set(rewards) <= {(0, 1.0), (30, 7.0)}
        assert rewards[-1] == (30, 7.0)


def test_an_actor_waits_for_a_learner_that_does_not_keep_up():
    with running({}, 1) as engine:
        first = [receive(engine) for _ in range(2)]
        assert engine.receive(0.7) is None
        before = first[0].segment.reward.copy()
        engine.publish(weights(5.0), 1)
        assert engine.receive(0.3) is None
        # not overwritten while it is ours
        np.testing.assert_array_equal(first[0].segment.reward, before)
        first[0].release()
        message = receive(engine)
        assert (message.number, message.version) == (2, 1)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("raises", "ValueError: the floor is lava"),
        ("is killed", "died (exit code -9)"),
        ("hangs", "no sign of life"),
        ("other shape", "reward is float32[2, 4] where float32[2, 3] is expected"),
    ],
)
def test_an_actor_that_fails_is_replaced_and_the_other_goes_on(fault, told, monkeypatch):
    lines = []
    patience_s = 3.0 if fault == "hangs" else 60.0
    with running({1: fault}, 2, patience_s=patience_s) as engine:
        monkeypatch.setattr(engine._supervisor, "_tell", lines.append)
        seen: dict[tuple[int, int], list[int]] = {}
        seeds = set()
        while (1, 1) not in seen or len(seen[1, 1]) < 2:
            message = receive(engine)
            seen.setdefault((message.actor, message.life), []).append(message.number)
            seeds.add((message.actor, message.life, float(message.played.episodes[3])))
            message.release()
        assert seen[1, 0] == seen[1, 1] == [0, 1]
        assert seen[0, 0] == list(range(len(seen[0, 0])))
        assert len({seed for _, _, seed in seeds}) == 3  # it does not play the same again
        assert engine.report() == {"actors": 2.0, "restarts": 1.0}
    assert told in lines[0]
    assert lines[0].startswith("snaprl: actor 1 ")


def test_too_many_failures_end_the_run_with_the_last_reason():
    with (
        running({0: "raises"}, 1, restarts=1) as engine,
        pytest.raises(UserError, match=r"actor 0 failed \(ValueError: the floor.*restarts = 1"),
    ):
        while True:
            message = engine.receive(WAIT_S)
            if message is not None:
                message.release()


def test_nothing_is_left_behind():
    open_before = len(os.listdir("/proc/self/fd"))
    with running({1: "is killed"}, 2) as engine:
        pids = set()
        while engine.report()["restarts"] < 2:
            pids |= set(engine.processes())
            message = engine.receive(WAIT_S)
            if message is not None:
                message.release()
        pids |= set(engine.processes())
        begin_s = time.monotonic()
    assert time.monotonic() - begin_s < 5
    assert len(pids) == 4
    assert all(gone(pid) for pid in pids)
    del message
    assert len(os.listdir("/proc/self/fd")) <= open_before + 1  # the tracker of multiprocessing


def test_actors_end_with_a_learner_that_is_killed():
    program = """
        import os, signal
        from unit.training.actors.scripted import VARIABLES, arguments
        from snaprl.training.actors import ProcessEngine

        if __name__ == "__main__":
            positional, named = arguments({1: "hangs"}, 2)
            engine = ProcessEngine(*positional, **named)
            engine.start(0)
            engine.publish(VARIABLES, 0)
            for _ in range(4):
                engine.receive(60)
            print(*engine.processes(), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    tests = os.path.dirname(os.path.abspath(__file__)).rsplit("/unit/", 1)[0]
    environment = os.environ | {"PYTHONPATH": tests}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    pids = [int(pid) for pid in result.stdout.split()]
    assert len(pids) == 2, result.stderr
    until_s = time.monotonic() + 5
    while not all(gone(pid) for pid in pids) and time.monotonic() < until_s:
        time.sleep(0.05)
    assert all(gone(pid) for pid in pids)
