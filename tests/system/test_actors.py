"""The command with actors in processes: it learns, ends when asked to, leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def rows(folder: Path) -> list[dict]:
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
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


def test_a_run_goes_on_and_says_what_it_cannot_keep(tmp_path):
    folder = tmp_path / "run"
    for flags in (("--steps", "1280"), ("--steps", "2560", "--resume")):
        done = subprocess.run(command(folder, *flags), capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
    assert "what actors play on their own cannot be saved, so episodes start anew" in done.stderr
    found = rows(folder)
    assert [row["step"] for row in found] == [640, 1280, 1920, 2560]
    # the streams began anew, and that is counted
    assert [row["gaps"] for row in found] == [0, 0, 8, 0]
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
