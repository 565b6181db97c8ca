"""Supervised runs from the command: trained, measured, stopped, killed, and what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from system.test_resume import KILLED, arrays, checkpoint_steps

from snaprl.training import cli, config, sinks
from snaprl.training.resume import resumed_config
from snaprl.training.run import Run
from snaprl.training.supervised.schema import SupervisedConfig

COPY = """
[task]
name = "copy"
kwargs = { window = 8 }
[model]
features = 8
readout = [8]
[optimizer]
learning_rate = 0.01
gradient_noise = 0.01
[training]
streams = 4
unroll = 3
steps = 1920
report_every = 120
checkpoint_every = 480
keep_checkpoints = 9
[evaluation]
steps = 1000
"""
EACH, FULL = 120, 1920
PART = 1440  # by then the curriculum has moved, and strings are under way
TEXT = "".join(f"{k} green bottles, standing on a wall; " for k in range(400))
CHARLM = """
[task]
name = "characters"
kwargs = {{ path = "{path}" }}
[model]
features = 8
[optimizer]
learning_rate = 0.02
[training]
streams = 4
unroll = 5
steps = {steps}
report_every = {each}
"""
KINDS = {  # of runs that must go on exactly: the task, and flags
    "copy": ("copy", ()),
    "snap1": ("characters", ()),
    "stack": ("characters", ("--model.cell", "simple", "--model.layers", "2")),
    "uoro": ("characters", ("--model.cell", "simple", "--method", "uoro")),
}


@pytest.fixture(scope="module", autouse=True)
def jax_settings_stay():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_prepare_jax", lambda: None)
        yield


@pytest.fixture
def snaprl(capsys):
    def command(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(a) for a in arguments])
        return (code, *capsys.readouterr())

    return command


def written(folder: Path, text: str) -> Path:
    path = folder / "task.toml"
    path.write_text(text, encoding="utf-8")
    return path


def start(folder: Path, *overrides: str, task: str = "copy") -> dict[str, float]:
    text = folder / "wall.txt"
    text.write_text(TEXT)
    characters = CHARLM.format(path=text, steps=FULL, each=EACH)
    loaded = config.load(written(folder, COPY if task == "copy" else characters), overrides)
    assert isinstance(loaded, SupervisedConfig)
    return Run(loaded, folder / "run", name="task").train()


def go_on(folder: Path, *overrides: str) -> dict[str, float]:
    loaded = resumed_config(folder / "run", list(overrides))
    return Run(loaded, folder / "run", name="task", resume=True).train()


def rows(folder: Path) -> list[dict[str, float]]:
    """The reports, without what a clock has put in."""
    reports = sinks.read_rows(folder / "run" / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in ("wall_s", "steps_per_s")} for r in reports]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Callable[[str], Path]:
    """For each kind, the folder of a run that nothing disturbed."""
    folders: dict[str, Path] = {}

    def trained(kind: str) -> Path:
        if kind not in folders:
            task, flags = KINDS[kind]
            folders[kind] = tmp_path_factory.mktemp(kind)
            assert start(folders[kind], *flags, task=task)["step"] == FULL
        return folders[kind]

    return trained


@pytest.fixture(scope="module")
def straight(undisturbed) -> Path:
    """A run of the copy task that nothing disturbed."""
    return undisturbed("copy")


def assert_same(folder: Path, other: Path) -> None:
    ours, theirs = (arrays(f, FULL) for f in (folder, other))
    assert ours.keys() == theirs.keys()
    for part in ("bank/hidden", "bank/influence", "streams", "optimizer"):
        assert any(part in name for name in ours), part
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)
    assert rows(folder) == rows(other)


def test_a_run_reports_what_is_promised(straight):
    reports = rows(straight)
    assert [r["step"] for r in reports] == list(range(EACH, FULL + 1, EACH))
    for report in reports:
        assert report.keys() >= {"loss", "bits_per_char", "accuracy", "level", "grad_norm"}
        np.testing.assert_allclose(report["bits_per_char"], report["loss"] / np.log(2))
    assert reports[0]["level"] == 1
    assert reports[-1]["level"] > 1  # the curriculum moved, so that resuming must keep it
    made = json.loads((straight / "run" / "versions.json").read_text())
    assert made["config"] == "task"
    assert made["command"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_trained_further_equals_one_trained_at_once(undisturbed, tmp_path, kind):
    task, flags = KINDS[kind]
    start(tmp_path, *flags, "--steps", str(PART), task=task)
    assert checkpoint_steps(tmp_path)[-1] == PART
    go_on(tmp_path, "--steps", str(FULL))
    assert_same(tmp_path, undisturbed(kind))
    assert ("shared" in " ".join(arrays(tmp_path, FULL))) == (kind == "copy")


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(straight, tmp_path):
    arguments = ["train", str(written(tmp_path, COPY)), "--run-dir", str(tmp_path / "run")]
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
    assert checkpoint_steps(tmp_path) == [480]
    assert go_on(tmp_path)["step"] == FULL
    assert_same(tmp_path, straight)


def test_copy_is_measured_at_the_level_it_reached(straight, snaprl):
    code, out, _ = snaprl("evaluate", straight / "run")
    assert code == 0
    found = json.loads(out.splitlines()[-1])
    assert found["step"] == FULL
    assert found["level"] == rows(straight)[-1]["level"]
    assert found["reference_chance.bits_per_char"] == 1.0
    assert 0 < found["eval_bits_per_char"] < 2
    # input kernels [4, 8] and biases, recurrent kernels [8, 8] with one bias, readout 8 and 2
    assert found["parameters"] == 3 * (4 * 8 + 8 + 8 * 8) + 8 + (8 * 8 + 8) + (8 * 2 + 2)
    assert snaprl("evaluate", straight / "run")[1] == out


def test_characters_are_learnt_and_measured_on_whole_splits(tmp_path, snaprl, monkeypatch):
    text = tmp_path / "wall.txt"
    text.write_text(TEXT)
    task = written(tmp_path, CHARLM.format(path=text, steps=40_000, each=2000))
    code, out, _ = snaprl("train", task, "--run-dir", tmp_path / "run")
    assert (code, "curve in" in out) == (0, True)
    assert (tmp_path / "run" / "curve.png").is_file()
    found = json.loads(snaprl("evaluate", tmp_path / "run")[1].splitlines()[-1])
    assert found["eval_test_bits_per_char"] < found["reference_bigram.bits_per_char"]
    assert found["eval_valid_bits_per_char"] < found["reference_unigram.bits_per_char"] - 1

    # on, by what was typed: a path that is told from here is the same one, in a file or as a flag
    monkeypatch.chdir(tmp_path)
    here = written(tmp_path, CHARLM.format(path=text.name, steps=40_000, each=2000))
    told = ("train", here, "--run-dir", "run", "--resume", "--task.kwargs.path", text.name)
    assert snaprl(*told, "--steps", "42000")[0] == 0

    # the text is part of the run: a changed one is refused, in one sentence
    text.write_text(TEXT.replace("green", "gröön"))
    for arguments in (
        ["evaluate", tmp_path / "run"],
        [*("train", task, "--run-dir", tmp_path / "run", "--resume", "--steps", "50000")],
    ):
        code, out, err = snaprl(*arguments)
        assert (code, out) == (2, "")
        assert re.fullmatch(
            r"snaprl: the run in .* was trained with vocabulary 26 symbols \(\w+\), and what its "
            r"config names now has 27 symbols \(\w+\): put back what was there, or train anew\n",
            err,
        ), err


REFUSED = {
    "task": ("--task.name", "copi", "'task.name': there is no task 'copi': did you mean 'copy'.*"),
    "argument": (
        *("--task.kwargs.widow", "3"),
        r"unknown key 'widow' of the task copy: did you mean 'window'\?",
    ),
    "value": ("--task.kwargs.window", "0", "'window' of the task copy must be at least 1, not 0"),
    "flag": ("--model.featurs", "3", "unknown flag --model.featurs: did you mean --model.feat.*"),
    "optimiser": (
        *("--optimizer.name", "adm"),
        "'optimizer.name': there is no optimiser 'adm': did you mean 'adam'.*",
    ),
    "size": (
        *("--model.features", "99999"),
        "model.features 99999, model.method snap1: the influence takes .* GiB for .* stream.*",
    ),
    "rates": ("--optimizer.rates.core", "0.5", "unknown flag --optimizer.rates.core.*"),
    "pattern": (
        *("--model.sparsity.name", "unifrom"),
        "'model.sparsity.name': there is no pattern 'unifrom': did you mean 'uniform'.*",
    ),
    "pattern of nothing": (
        *("--model.sparsity.kwargs.density", "0.5"),
        "model.sparsity.kwargs: 'dense' takes no density: sparsity.name is the pattern that does",
    ),
    "fan-in": ("--model.fan-in", "9", "model.fan_in 9: fan_in is 9, but .*"),
}


@pytest.mark.parametrize(("flag", "value", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_flag_is_refused(snaprl, tmp_path, flag, value, sentence):
    task = written(tmp_path, COPY)
    code, out, err = snaprl("train", task, "--run-dir", tmp_path / "run", flag, value)
    assert (code, out) == (2, "")
    assert re.fullmatch(f"snaprl: {sentence}\n", err), err
    assert not (tmp_path / "run").exists()


IN_THE_FILE = {
    "agent": ("[agent]", r"unknown key 'agent' in .*: known here: seed, task, model, .*"),
    "key": ("[model]\nfeatrues = 3", r"unknown key 'model.featrues' in .*: did you mean .*\?"),
    "optimiser": (
        "[optimizer]\nkwargs = { b3 = 0.1 }",
        "optimizer.kwargs: optax.adam takes no 'b3', but .*b1, b2.*",
    ),
    "embedding": (
        "[task]\nname = 'lorenz'\n[model]\nembedding = 3",
        "model.embedding is 3, but the task lorenz reads numbers, not symbols: leave it out",
    ),
    "short text": (
        "[task]\nname = 'characters'\nkwargs = { path = 'PATH' }\n[training]\nunroll = 99",
        "training.unroll is 99, but the task characters has 71 steps to read: .*",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), IN_THE_FILE.values(), ids=IN_THE_FILE)
def test_a_wrong_file_is_refused(snaprl, tmp_path, text, sentence):
    (tmp_path / "short.txt").write_text("eighty characters in all" * 3 + "12345678")
    text = text.replace("PATH", str(tmp_path / "short.txt"))
    task = written(tmp_path, text if "[task]" in text else f"[task]\n{text}")
    code, out, err = snaprl("train", task, "--run-dir", tmp_path / "run")
    assert (code, out) == (2, "")
    assert re.fullmatch(f"snaprl: {sentence}\n", err), err
    assert not (tmp_path / "run").exists()


def test_a_run_that_ends_before_its_first_target_is_whole_all_the_same(snaprl, tmp_path):
    task = written(tmp_path, "[task]\nname = 'adding'\nkwargs = { length = 2000 }")
    flags = ("--model.features", "2", "--training.steps", "8000", "--training.streams", "8")
    code, out, _ = snaprl("train", task, "--run-dir", tmp_path / "run", *flags)
    assert (code, "step 8,000, no curve: name a metric" in out) == (0, True)


def test_episodes_are_refused(straight, snaprl):
    code, _, err = snaprl("evaluate", straight / "run", "--episodes", 3)
    assert (code, err.startswith("snaprl: --episodes is for agents")) == (2, True)


@pytest.mark.parametrize("kind", ["bias", "cosine"])
def test_a_core_that_copies_is_inspected(straight, snaprl, tmp_path, kind):
    flags = ["--steps", 40, "--streams", 2, "--out", tmp_path]
    code, _, err = snaprl("inspect", kind, straight / "run", *flags)
    assert code == 0, err
    pictures = [path for path in tmp_path.iterdir() if path.stat().st_size > 1000]
    assert {path.suffix for path in pictures} >= {".svg", ".png"}
    assert "copy" in next(path for path in pictures if path.suffix == ".svg").read_text()


def test_tasks_are_listed_with_their_arguments(snaprl):
    code, out, _ = snaprl("tasks")
    assert code == 0
    assert "copy  Gives back a string" in out
    assert "    threshold_bits = 0.15\n" in out


def test_help_of_a_task_lists_every_key(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "copy", "--help"])
    out = capsys.readouterr().out
    for flag in ("--task.name", "--model.method", "--optimizer.gradient-noise", "--steps"):
        assert flag in out


@pytest.mark.parametrize("name", ["copy", "charlm"])
def test_the_shipped_configs_are_supervised(name):
    assert isinstance(config.load(name), SupervisedConfig)
