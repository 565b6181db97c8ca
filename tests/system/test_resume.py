"""A run that was stopped, asked to stop, or killed goes on as if nothing had happened."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from snaprl.training import config as configs
from snaprl.training import progress
from snaprl.training.checkpoints import Checkpoints
from snaprl.training.resume import resumed_config
from snaprl.training.run import Run

STEPS_PER_REPORT = {"device": 128, "host": 32}
REPORTS = 16  # with a checkpoint at every fourth
TASK = """
seed = 3
[env]
kwargs = {{ length = 5, timeout = 12 }}
[agent]
features = 8
[optimizer]
learning_rate = 0.01
[training]
loop = "{loop}"
streams = 4
unroll = 4
steps = {steps}
report_every = {report}
checkpoint_every = {checkpoint}
keep_checkpoints = 9
"""
LOOPS = ["device", "host"]


def write_config(folder: Path, loop: str) -> Path:
    each = STEPS_PER_REPORT[loop]
    text = TASK.format(loop=loop, steps=REPORTS * each, report=each, checkpoint=4 * each)
    path = folder / "task.toml"
    path.write_text(text, encoding="utf-8")
    return path


def start(folder: Path, loop: str, *overrides: str) -> dict[str, float]:
    config = configs.load(write_config(folder, loop), overrides)
    return Run(config, folder / "run", name="task").train()


def go_on(folder: Path, *overrides: str) -> dict[str, float]:
    config = resumed_config(folder / "run", list(overrides))
    return Run(config, folder / "run", name="task", resume=True).train()


def arrays(folder: Path, step: int) -> dict[str, np.ndarray]:
    """Every leaf that a checkpoint holds, by its path, read without help of ours."""
    checkpoint = folder / "run" / "checkpoints" / str(step)
    state = ocp.StandardCheckpointer().restore(checkpoint / "state")
    meta = json.loads((checkpoint / "meta" / "metadata").read_text(encoding="utf-8"))
    found, taken = {}, dict.fromkeys(state, 0)
    for path, like in meta["leaves"].items():  # such as float32[3, 4]
        dtype, lengths = like.removesuffix("]").split("[")
        shape = [int(n) for n in lengths.split(",") if n]
        start, size = taken[dtype], math.prod(shape)
        found[path] = np.asarray(state[dtype][start : start + size]).reshape(shape)
        taken[dtype] += size
    assert taken == {dtype: array.size for dtype, array in state.items()}
    return found


def rows(folder: Path) -> list[dict[str, float]]:
    """The reports, without what a clock has put in."""
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    reports = [json.loads(line) for line in lines]
    walls = [report.pop("wall_s") for report in reports]
    assert walls == sorted(walls)
    assert all(report.pop("steps_per_s") > 0 for report in reports)
    return reports


def checkpoint_steps(folder: Path) -> list[int]:
    return Checkpoints(folder / "run" / "checkpoints").steps()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """For each loop, the folder of a run that nothing disturbed."""
    folders = {}

    def trained(loop: str) -> Path:
        if loop not in folders:
            folders[loop] = tmp_path_factory.mktemp(loop)
            report = start(folders[loop], loop)
            assert report["step"] == REPORTS * STEPS_PER_REPORT[loop]
            assert checkpoint_steps(folders[loop]) == [
                k * STEPS_PER_REPORT[loop] for k in (4, 8, 12, 16)
            ]
        return folders[loop]

    return trained


def assert_same(folder: Path, other: Path, step: int) -> None:
    """Both runs were in the same state at `step`, to the bit, and told the same of the way."""
    ours, theirs = arrays(folder, step), arrays(other, step)
    assert ours.keys() == theirs.keys()
    assert any("bank/" in name for name in ours)
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)
        assert leaf.dtype == theirs[name].dtype
    assert rows(folder) == rows(other)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_run_that_is_trained_further_equals_one_trained_at_once(straight, tmp_path, loop):
    full, half = (k * STEPS_PER_REPORT[loop] for k in (REPORTS, REPORTS // 2))
    start(tmp_path, loop, "--steps", str(half))
    assert checkpoint_steps(tmp_path)[-1] == half
    assert go_on(tmp_path, "--steps", str(full))["step"] == full
    assert_same(tmp_path, straight(loop), full)


def interrupt_at(monkeypatch, report: int, number: signal.Signals) -> None:
    """Sends this process a signal while it tells of a report."""
    tell = progress.Progress.report
    told = []

    def tell_and_interrupt(self, values):
        tell(self, values)
        told.append(values)
        if len(told) == report:
            signal.raise_signal(number)

    monkeypatch.setattr(progress.Progress, "report", tell_and_interrupt)


@pytest.mark.parametrize(("loop", "number"), [("device", "SIGINT"), ("host", "SIGTERM")])
def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint(
    straight, tmp_path, monkeypatch, capsys, loop, number
):
    each = STEPS_PER_REPORT[loop]
    before = signal.getsignal(signal.Signals[number])
    with monkeypatch.context() as patch:
        interrupt_at(patch, report=6, number=signal.Signals[number])
        assert start(tmp_path, loop)["step"] == 6 * each
    assert signal.getsignal(signal.Signals[number]) is before
    assert f"snaprl: stopped at step {6 * each}; go on with --resume" in capsys.readouterr().err
    assert checkpoint_steps(tmp_path) == [4 * each, 6 * each]
    assert go_on(tmp_path)["step"] == REPORTS * each
    assert_same(tmp_path, straight(loop), REPORTS * each)


# The program kills itself, for a killer from outside could not know where it stands: between two
# checkpoints, the first of which has been written by then.
KILLED = """
import os, pathlib, signal, sys, time
from snaprl.training import cli, progress
cli._prepare_jax = lambda: None
told = []
def tell(self, values):
    told.append(values)
    if len(told) == 7:
        while not list(pathlib.Path(sys.argv[-1]).glob("checkpoints/*/digests.json")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
progress.Progress.report = tell
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("loop", ["device", pytest.param("host", marks=pytest.mark.slow)])
def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(straight, tmp_path, loop):
    each = STEPS_PER_REPORT[loop]
    config = write_config(tmp_path, loop)
    arguments = ["train", str(config), "--run-dir", str(tmp_path / "run")]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | cache,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(rows(tmp_path)) == 7
    assert checkpoint_steps(tmp_path) == [4 * each]
    # a line that was being written
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')
    assert go_on(tmp_path)["step"] == REPORTS * each
    assert_same(tmp_path, straight(loop), REPORTS * each)


def test_a_run_killed_before_its_first_checkpoint_starts_again(straight, tmp_path, capsys):
    loop, each = "host", STEPS_PER_REPORT["host"]
    start(tmp_path, loop, "--steps", str(2 * each))
    for path in sorted((tmp_path / "run" / "checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    capsys.readouterr()
    go_on(tmp_path, "--steps", str(REPORTS * each))
    assert "there is no checkpoint yet, so the run starts again" in capsys.readouterr().err
    assert_same(tmp_path, straight(loop), REPORTS * each)


def test_a_finished_run_has_nothing_left_to_do(straight):
    folder = straight("device")
    before = rows(folder), (folder / "run" / "metrics.jsonl").read_bytes()
    assert go_on(folder) == {"step": REPORTS * STEPS_PER_REPORT["device"]}
    assert (rows(folder), (folder / "run" / "metrics.jsonl").read_bytes()) == before
