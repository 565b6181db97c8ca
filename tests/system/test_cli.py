"""The command `snaprl`: what it says, what it refuses, and that it destroys nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from system.command import TASK, Said, assert_refused, contents

from snaprl.training import config as configs
from snaprl.training import sinks
from snaprl.training.schema import Config

# ---- what it does ----------------------------------------------------------------------------


def test_a_run_holds_what_it_promises(trained):
    folder = trained / "run"
    names = {path.name for path in folder.iterdir()}
    assert {"config.toml", "metrics.jsonl", "checkpoints", "curve.png", "versions.json"} <= names
    assert list((folder / "tensorboard").iterdir())
    assert configs.load(folder / "config.toml") == configs.load(trained / "task.toml")
    rows = sinks.read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [128, 256, 384, 512]
    told = {"step", "wall_s", "episode_return", "episode_length", "success", "steps_per_s", "loss"}
    assert all(told <= row.keys() for row in rows)
    assert json.loads((folder / "versions.json").read_text())["config"] == "task"


def test_plot_says_where_the_picture_is(copy, snaprl):
    (copy / "curve.png").unlink()
    said = snaprl("plot", copy)
    assert said.code == 0
    assert all(Path(line).is_file() for line in said.out.splitlines())
    assert (copy / "curve.png").is_file()


def test_envs_lists_ours_with_their_arguments(snaprl):
    said = snaprl("envs")
    assert said.code == 0
    assert "snaprl/TMaze-v0" in said.out
    assert "    length = 10\n" in said.out


def test_help(snaprl):
    said = snaprl("--help")
    assert said.code == 0
    assert all(name in said.out for name in ("train", "evaluate", "plot", "envs", "bench"))
    for name in ("evaluate", "plot", "bench"):
        assert f"usage: snaprl {name}" in snaprl(name, "--help").out


def test_help_of_a_config_lists_every_key_and_the_flags_of_train(snaprl):
    said = snaprl("train", "tmaze", "--help")
    assert said.code == 0
    for flag in ("--training.unroll", "--agent.method", "--env.kwargs.length", "--run-dir"):
        assert flag in said.out
    assert "--resume" in said.out


def test_as_a_program(tmp_path):
    def program(*arguments: str) -> Said:
        done = subprocess.run(
            [sys.executable, "-m", "snaprl.training.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    said = program("envs")
    assert (said.code, said.err) == (0, "")
    assert_refused(program("train", "tmze"), "there is no config 'tmze': did you mean 'tmaze'.*")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("safe", [False, True])
def test_the_script_finds_modules_of_the_current_folder(tmp_path, safe):
    script = tmp_path / "bin" / "snaprl"
    script.parent.mkdir()
    script.write_text(
        "import sys\nfrom snaprl.training import cli\ncli.main(['tasks'])\nprint(sys.path[0])"
    )
    here = tmp_path / "here"
    here.mkdir()
    done = subprocess.run(
        [sys.executable, *["-P"] * safe, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=here,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout.splitlines()[-1] == str(here)) is not safe


# ---- what it refuses -------------------------------------------------------------------------

IN_THE_FILE = {
    "unknown key": (
        "agent.methd = 'snap1'",
        r"unknown key 'agent.methd' in .*task.toml: did you mean 'agent.method'\?",
    ),
    "bad value": ("training.unroll = 0", "'training.unroll' in .*task.toml must be at least 1.*"),
    "no TOML": ("training", ".*task.toml is not valid TOML: .*"),
}


@pytest.mark.parametrize(("text", "sentence"), IN_THE_FILE.values(), ids=IN_THE_FILE)
def test_a_wrong_file_is_refused(snaprl, tmp_path, text, sentence):
    (tmp_path / "task.toml").write_text(text)
    assert_refused(snaprl("train", tmp_path / "task.toml", "--run-dir", tmp_path / "run"), sentence)
    assert not (tmp_path / "run").exists()


ON_THE_LINE = {
    "flag": (["--agent.featurs", "3"], r"unknown flag --agent.featurs: did you mean --agent.f.*\?"),
    "value": (["--training.unroll", "0"], "'training.unroll' must be at least 1, not 0"),
    "method": (["--method", "snap"], "'agent.method': there is no gradient method 'snap': .*"),
    "env": (["--env.id", "snaprl/TMaz-v0"], "env.id snaprl/TMaz-v0: .*did you mean .*TMaze-v0.*"),
    "argument": (
        ["--env.kwargs.lenth", "3"],
        r"env.id snaprl/TMaze-v0: .*no argument 'lenth': did you mean 'length'\?",
    ),
    "argument of a host environment": (
        ["--training.loop", "host", "--env.kwargs.lenth", "3"],
        "env.id snaprl/TMaze-v0: .*'lenth'.*",
    ),
    "value of an argument": (
        ["--env.kwargs.length", "0"],
        "env.id snaprl/TMaze-v0: TMaze's length is 0.*",
    ),
    "argument of somebody else's environment": (
        ["--env.id", "tests/Pathological-v0", "--env.kwargs.length", "3"],
        "env.id tests/Pathological-v0: .*length.*",
    ),
    "size": (
        ["--agent.features", "9999", "--method", "rtrl"],
        "agent.features 9999, agent.method rtrl: the influence takes .* GiB for .* stream.*",
    ),
    "package": (["--env.id", "nopackage:X-v0"], "env.id nopackage:X-v0: .*nopackage.*"),
    "loop": (
        ["--env.id", "CartPole-v1", "--training.loop", "device"],
        "CartPole-v1 is no environment of pure functions: training.loop must be 'host' or 'auto'",
    ),
}


@pytest.mark.parametrize(("flags", "sentence"), ON_THE_LINE.values(), ids=ON_THE_LINE)
def test_a_wrong_flag_is_refused(snaprl, task, tmp_path, flags, sentence):
    if "env.id" in flags[0]:
        task.write_text(TASK.replace("kwargs = { length = 3 }", ""))
    assert_refused(snaprl("train", task, "--run-dir", tmp_path / "run", *flags), sentence)
    assert not (tmp_path / "run").exists()


def test_a_space_that_cannot_be_encoded_is_refused(snaprl, task, tmp_path):
    task.write_text("[env]\nid = 'tests/Pathological-v0'\nkwargs = { broken_space = true }")
    assert_refused(
        snaprl("train", task, "--run-dir", tmp_path / "run"),
        "env.id tests/Pathological-v0: the observation space Text.* is not supported; wrap .*",
    )
    assert not (tmp_path / "run").exists()


def test_a_config_that_is_not_there_is_refused(snaprl, tmp_path):
    file = tmp_path / "nothing.toml"
    assert_refused(snaprl("train", file), f"there is no file '{re.escape(str(file))}': .*")
    assert_refused(snaprl("train", "tmze"), "there is no config 'tmze': did you mean 'tmaze'.*")


@pytest.mark.parametrize("arguments", [[], ["trian"], ["evaluate"]])
def test_a_command_that_is_none_is_refused(snaprl, arguments):
    said = snaprl(*arguments)
    assert (said.code, said.out) == (2, "")
    assert "usage: snaprl" in said.err


def test_a_flag_that_a_command_does_not_know_is_refused(snaprl):
    said = snaprl("evaluate", ".", "--evaluation.episodes", "5")
    assert_refused(said, "unknown argument --evaluation.episodes: did you mean '--episodes', or .*")
    assert_refused(snaprl("envs", "--x"), "unknown argument --x: known: .*")


@pytest.mark.parametrize("held", ["config.toml", "metrics.jsonl", "checkpoints/5/x"])
def test_a_folder_that_holds_a_run_is_left_alone(snaprl, task, tmp_path, held):
    file = tmp_path / "run" / held
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    before = contents(tmp_path)
    said = snaprl("train", task, "--run-dir", tmp_path / "run")
    assert_refused(said, ".*run already holds a run: go on with it by --resume, or .*--run-dir")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("place", ["file/run", "file"])
def test_a_folder_that_cannot_be_written_is_refused(snaprl, task, tmp_path, place):
    (tmp_path / "file").write_text("no folder")
    said = snaprl("train", task, "--run-dir", tmp_path / place)
    assert_refused(said, f".*{place}/.* cannot be written .*: give another --run-dir")
    assert (tmp_path / "file").read_text() == "no folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_folder_that_is_closed_to_us_is_refused(snaprl, task, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    said = snaprl("train", task, "--run-dir", tmp_path / "closed" / "run")
    assert_refused(said, ".* cannot be written .*: give another --run-dir")


def test_a_folder_without_a_run_is_refused(snaprl, tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        assert_refused(snaprl("evaluate", folder), f"{folder} is no run: .*")
        assert_refused(snaprl("plot", folder), f"{folder} is no run's folder: .*")
    (tmp_path / "config.toml").write_text(configs.dumps(Config()))
    assert_refused(snaprl("evaluate", tmp_path), "there is no checkpoint in .*: nothing .*")
    assert_refused(snaprl("evaluate", tmp_path, "--episodes", 0), "--episodes is 0: give 1 or more")
