"""The command with actors in processes: it learns, ends when asked to, leaves nothing behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from snaprl.training.checkpoints import Checkpoints

SMALL = [
    *("--env.kwargs.length", "3", "--agent.features", "8", "--training.streams", "8"),
    *("--training.report_every", "640", "--training.checkpoint_every", "1_000_000"),
]


def command(folder: Path, *flags: str) -> list[str]:
    start = [sys.executable, "-m", "snaprl.training.cli", "train", "tmaze_processes"]
    return [*start, "--run-dir", str(folder), *SMALL, *flags]


def of_session(session: int) -> list[int]:
    """Processes that belong to a session, ended ones that nobody has asked about left out."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = status.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(sid) == session and state != "Z":
            found.append(int(status.parent.name))
    return found


def wait_for(holds: Callable[[], bool], seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.1)


def kept(folder: Path) -> list[int]:
    """The steps of whole checkpoints."""
    return Checkpoints(folder / "checkpoints").steps()


def rows(folder: Path) -> list[dict]:
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
    ids=lambda n: n.name,
)
def test_it_ends_in_five_seconds_with_a_checkpoint_and_nobody_left(tmp_path, number):
    folder = tmp_path / "run"
    flags = ("--steps", "100_000_000")
    with subprocess.Popen(
        command(folder, *flags), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while len(rows(folder)) < 3 and process.poll() is None:
            time.sleep(0.1)
        assert len(of_session(process.pid)) >= 3  # itself and two actors at least
        if number == signal.SIGINT:  # as a terminal does, to all of them
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        begin_s = time.monotonic()
        _, stderr = process.communicate(timeout=60)
        elapsed_s = time.monotonic() - begin_s
    assert process.returncode == 0, stderr
    assert "stopped at step" in stderr
    assert "Traceback" not in stderr
    assert elapsed_s < 10  # five on a machine that does nothing else
    assert len(list((folder / "checkpoints").iterdir())) == 1
    assert not (folder / "curve.png").exists()  # drawing takes seconds
    until_s = time.monotonic() + 5
    while of_session(process.pid) and time.monotonic() < until_s:
        time.sleep(0.1)
    assert of_session(process.pid) == []


SLOW_SINK = """
import sys, time
from snaprl.training import cli, sinks
plain = sinks.JsonlSink.write
def write(sink, report):
    plain(sink, report)
    time.sleep(2)
sinks.JsonlSink.write = write
sys.exit(cli.main(sys.argv[1:]))
"""


def test_it_ends_while_a_slow_sink_holds_up_a_full_queue(tmp_path):
    """The actors, ahead by all they may be, wait for room."""
    folder = tmp_path / "run"
    flags = ["--steps", "100_000_000", "--training.report_every", "64", "--actors.ahead", "2"]
    program = [sys.executable, "-c", SLOW_SINK, *command(folder)[3:], *flags]
    with subprocess.Popen(
        program, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while len(rows(folder)) < 3 and process.poll() is None:
            time.sleep(0.1)
        begin_s = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        elapsed_s = time.monotonic() - begin_s
    assert process.returncode == 0, stderr
    assert elapsed_s < 10  # five on a machine that does nothing else
    assert len(list((folder / "checkpoints").iterdir())) == 1


def test_actors_that_fail_too_often_end_the_run_with_all_that_was_learnt(tmp_path):
    folder = tmp_path / "run"
    flags = ("--steps", "100_000_000", "--actors.restarts", "0")
    with subprocess.Popen(
        command(folder, *flags), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while len(rows(folder)) < 3 and process.poll() is None:
            time.sleep(0.1)
        played = rows(folder)[-1]["step"]
        os.kill(max(of_session(process.pid)), signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2, stderr
    said = re.search(r"training stopped, for actor \d .*; the checkpoint of step (\d+)", stderr)
    assert said, stderr
    assert int(said[1]) >= played
    assert [int(p.name) for p in (folder / "checkpoints").iterdir()] == [int(said[1])]


def test_what_several_devices_trained_is_looked_at_on_one(tmp_path):
    folder = tmp_path / "run"
    flags = os.environ.get("XLA_FLAGS", "")
    several = {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=2"}
    alone = ("--training.devices", "1")
    flags = ("--training.devices", "2", "--training.shard-parameters", "true", "--steps", "1280")
    for environment, words in (
        (several, command(folder, *flags)),
        (several, command(folder, "--resume", "--steps", "1920", *alone)),
        ({}, [*command(folder)[:3], "evaluate", str(folder), "--episodes", "4"]),
    ):
        done = subprocess.run(
            words, env=os.environ | environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 1920
    # nor does looking at a run need the cluster that it was trained on
    config = folder / "config.toml"
    text = config.read_text().replace('engine = "processes"', 'engine = "ray"')
    config.write_text(text.replace('ray_address = ""', 'ray_address = "127.0.0.1:1"'))
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert (done.returncode, json.loads(done.stdout)["step"]) == (0, 1920), done.stderr


def test_a_run_goes_on_and_says_what_it_cannot_keep(tmp_path):
    folder = tmp_path / "run"
    often = ("--training.checkpoint-every", "640")
    begun = command(folder, "--steps", "100_000_000", *often)
    with subprocess.Popen(begun, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        wait_for(lambda: len(rows(folder)) > 2 and any(kept(folder)), 200)
        process.kill()
    # nobody told the actors: they find out
    wait_for(lambda: not of_session(process.pid), 30)
    at = max(kept(folder))
    flags = ("--steps", str(at + 1280), "--resume", *often)
    done = subprocess.run(command(folder, *flags), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "what actors play on their own cannot be saved, so episodes start anew" in done.stderr
    found = rows(folder)
    assert [row["step"] for row in found] == list(range(640, at + 1281, 640))
    # the streams began anew, and that is counted
    assert [row["gaps"] for row in found] == [0] * (at // 640) + [8, 0]
    assert all(row["restarts"] == 0 for row in found)
    for row in found:
        assert 0 < row["slowest_actor_steps_per_s"] <= row["fastest_actor_steps_per_s"]
        assert 0 < row["influence_age"] <= row["step"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--actors.count", "3"), "training.streams = 8 cannot be shared by actors.count = 3"),
        (("--actors.per_update", "5"), "actors.per_update = 5"),
        (("--training.loop", "device"), "training.loop = 'device' has no actors"),
        (("--training.devices", "2"), "training.devices = 2, but jax finds 1"),
        (
            ("--training.devices", "2", "--engine", "local"),
            "training.devices = 2 is for environments on the host",
        ),
        (("--engine", "threads"), "engine"),
        (("--engine", "ray", "--actors.ray-address", "127.0.0.1:1"), "no Ray cluster answers"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, flags, sentence):
    done = subprocess.run(
        command(tmp_path / "run", *flags), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
