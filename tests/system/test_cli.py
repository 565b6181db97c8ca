"""The command `snaprl`: what it says, what it refuses, and that it destroys nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from snaprl.training import cli, run, sinks
from snaprl.training import config as configs

STEPS, CHECKPOINTS = 512, [256, 512]
TASK = """
[env]
kwargs = { length = 3 }
[agent]
features = 4
[training]
streams = 4
unroll = 4
steps = 512
report_every = 128
checkpoint_every = 256
[evaluation]
episodes = 8
max_steps = 20
"""


class Said(NamedTuple):
    code: int
    out: str
    err: str


class Pathological(gymnasium.Env):
    """Rewards that are no numbers from some step on, or a space that nothing here can read."""

    def __init__(self, *, broken_space: bool = False, good_steps: int = 0):
        self.observation_space = spaces.Text(5) if broken_space else spaces.Box(-1, 1, (2,))
        self.action_space = spaces.Discrete(2)
        self._left = good_steps

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self._left -= 1
        reward = 0.0 if self._left >= 0 else float("nan")
        return np.zeros(2, np.float32), reward, False, False, {}


@pytest.fixture(scope="module", autouse=True)
def surroundings():
    """An environment of ours to go wrong, and jax's settings left as they are."""
    gymnasium.register("tests/Pathological-v0", Pathological)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_prepare_jax", lambda: None)
        yield
    del gymnasium.registry["tests/Pathological-v0"]


@pytest.fixture
def snaprl(capsys) -> Callable[..., Said]:
    def command(*arguments: object) -> Said:
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code
        return Said(code, *capsys.readouterr())

    return command


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with `task.toml` and the run `run` that was made from it."""
    folder = tmp_path_factory.mktemp("trained")
    task = folder / "task.toml"
    task.write_text(TASK, encoding="utf-8")
    assert cli.main(["train", str(task), "--run-dir", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    """The run of `trained`, to be spoilt."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def task(tmp_path) -> Path:
    path = tmp_path / "task.toml"
    path.write_text(TASK, encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_refused(said: Said, sentence: str) -> None:
    """One line on stderr, nothing on stdout, code 2; `sentence` is a regular expression."""
    assert said.code == 2, said
    assert not said.out
    assert re.fullmatch(f"snaprl: {sentence}\n", said.err), said.err


def spoil_last_checkpoint(folder: Path) -> int:
    """Truncates the biggest file of the last checkpoint; returns that one's step."""
    step = max(int(path.name) for path in (folder / "checkpoints").iterdir())
    files = [p for p in (folder / "checkpoints" / str(step) / "state").rglob("*") if p.is_file()]
    biggest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(biggest, biggest.stat().st_size // 2)
    return step


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


def test_evaluate_prints_one_object_last(trained, snaprl):
    said = snaprl("evaluate", trained / "run", "--episodes", 6)
    assert said.code == 0
    result = json.loads(said.out.splitlines()[-1])
    names = ("episode_return", "episode_length", "success")
    wanted = {"step", "episodes"} | {f"eval_{n}" for n in names}
    assert result.keys() == wanted | {f"eval_greedy_{n}" for n in names}
    assert (result["step"], result["episodes"]) == (STEPS, 6)
    assert snaprl("evaluate", trained / "run", "--episodes", 6).out == said.out


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


@pytest.mark.parametrize("arguments", [[], ["trian"], ["evaluate"], ["evaluate", ".", "--x", "1"]])
def test_a_command_that_is_none_is_refused(snaprl, arguments):
    said = snaprl(*arguments)
    assert (said.code, said.out) == (2, "")
    assert "usage: snaprl" in said.err


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


def test_nothing_to_resume_is_said(snaprl, task, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "absent"):
        said = snaprl("train", task, "--run-dir", folder, "--resume")
        assert_refused(said, f"{folder} holds no run to resume: leave --resume out to start one")
    assert_refused(snaprl("train", task, "--resume"), "--resume needs --run-dir: .*")


OTHER_RUN = {
    "architecture": (["--agent.features", "5"], "agent.features = 4, not 5"),
    "method": (["--method", "bptt"], "agent.method = snap1, not bptt"),
    "seed": (["--seed", "1"], "seed = 0, not 1"),
}


@pytest.mark.parametrize(("flags", "difference"), OTHER_RUN.values(), ids=OTHER_RUN)
def test_a_run_is_not_resumed_as_another(trained, copy, snaprl, flags, difference):
    before = contents(copy)
    said = snaprl("train", trained / "task.toml", "--run-dir", copy, "--resume", *flags)
    assert_refused(said, f"the run in .* was made with {difference}: give another --run-dir .*")
    assert contents(copy) == before


def test_a_run_is_not_resumed_by_another_config(copy, snaprl):
    before = contents(copy)
    said = snaprl("train", "tmaze", "--run-dir", copy, "--resume")
    assert_refused(said, "the run in .* was made from task, not from tmaze")
    assert contents(copy) == before


def test_a_checkpoint_of_another_architecture_is_refused(trained, copy, snaprl):
    file = copy / "config.toml"
    file.write_text(file.read_text().replace("features = 4", "features = 5"))
    before = contents(copy)
    sentence = r".*512 belongs to another architecture: .* is float32\[.*\] there and .* here; .*"
    assert_refused(snaprl("evaluate", copy), sentence)
    said = snaprl("train", trained / "task.toml", "--run-dir", copy, "--resume")
    assert_refused(said, sentence)
    assert contents(copy) == before


def test_a_damaged_checkpoint_is_said_and_the_one_before_used(trained, copy, snaprl):
    step = spoil_last_checkpoint(copy)
    sentence = f"snaprl: the checkpoint of step {step} is damaged: using that of step 256"
    said = snaprl("evaluate", copy)
    assert (said.code, said.err) == (0, sentence + "\n")
    assert json.loads(said.out)["step"] == 256
    said = snaprl("train", trained / "task.toml", "--run-dir", copy, "--resume")
    assert said.code == 0
    assert said.err.startswith(sentence)
    whole = run.Checkpoints(copy / "checkpoints").steps()
    assert whole == CHECKPOINTS
    said = snaprl("evaluate", copy)
    assert (said.err, json.loads(said.out)["step"]) == ("", STEPS)


def test_checkpoints_that_are_all_damaged_are_refused(copy, snaprl):
    spoil_last_checkpoint(copy)
    shutil.rmtree(copy / "checkpoints" / "256")
    assert_refused(snaprl("evaluate", copy), "no checkpoint in .* is whole: train anew")


def test_a_folder_without_a_run_is_refused(snaprl, tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        assert_refused(snaprl("evaluate", folder), f"{folder} is no run: .*")
        assert_refused(snaprl("plot", folder), f"{folder} is no run's folder: .*")
    (tmp_path / "config.toml").write_text(TASK)
    assert_refused(snaprl("evaluate", tmp_path), "there is no checkpoint in .*: nothing .*")
    assert_refused(snaprl("evaluate", tmp_path, "--episodes", 0), "--episodes is 0: give 1 or more")


def test_a_loss_that_is_no_number_stops_the_run(snaprl, task, tmp_path):
    flags = ["--optimizer.learning-rate", "1e30", "--training.report-every", "16"]
    said = snaprl("train", task, "--run-dir", tmp_path / "run", *flags)
    assert (said.code, said.out) == (2, "")
    assert "Traceback" not in said.err
    last = said.err.splitlines()[-1]
    assert re.fullmatch(
        r"snaprl: training stopped, for .*loss.* became NaN or infinite at update \d+ "
        r"\(step \d+\); none was saved yet; a lower optimizer.learning_rate may help",
        last,
    ), last


def test_a_reward_that_is_no_number_leaves_the_last_good_checkpoint(snaprl, task, tmp_path):
    task.write_text(
        TASK.replace("{ length = 3 }", "{ good_steps = 75 }").replace(
            "[env]", "[env]\nid = 'tests/Pathological-v0'"
        )
    )
    folder = tmp_path / "run"
    said = snaprl("train", task, "--run-dir", folder)
    assert said.code == 2
    # the 76th step of 4 streams lies in the 19th update, which ends at step 19 * 4 * 4
    assert re.search(
        r"snaprl: training stopped, for actor 0: the environment gave nan in reward, stream \d, "
        r"step 3 of segment 18; the checkpoint of step 256 is kept",
        said.err.splitlines()[-1],
    ), said.err
    assert run.Checkpoints(folder / "checkpoints").steps() == [256]
    assert [row["step"] for row in sinks.read_rows(folder / "metrics.jsonl")] == [128, 256]


def test_episodes_of_an_environment_that_cannot_be_saved_start_anew(snaprl, task, tmp_path):
    task.write_text(
        TASK.replace("kwargs = { length = 3 }", "id = 'CartPole-v1'").replace("512", "256")
    )
    folder = tmp_path / "run"
    assert snaprl("train", task, "--run-dir", folder).code == 0
    said = snaprl("train", task, "--run-dir", folder, "--resume", "--steps", 384)
    assert said.code == 0
    assert "snaprl: CartPole-v1 cannot be saved, so its episodes start anew" in said.err
    rows = sinks.read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [128, 256, 384]
    assert "success" not in rows[0]  # nobody knows it
    assert json.loads(snaprl("evaluate", folder).out)["eval_episode_return"] > 0


# ---- what interrupts it ----------------------------------------------------------------------


def test_ctrl_c_while_training_is_no_failure(snaprl, task, tmp_path, monkeypatch):
    write = sinks.JsonlSink.write

    def write_and_interrupt(self, report):
        write(self, report)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sinks.JsonlSink, "write", write_and_interrupt)
    said = snaprl("train", task, "--run-dir", tmp_path / "run")
    assert said.code == 0
    assert "snaprl: stopped at step 128; go on with --resume\n" in said.err
    assert run.Checkpoints(tmp_path / "run" / "checkpoints").steps() == [128]


def test_ctrl_c_before_training_is_one_line(snaprl, task, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "build", lambda config: signal.raise_signal(signal.SIGINT))
    said = snaprl("train", task, "--run-dir", tmp_path / "run")
    assert said == (130, "", "snaprl: interrupted\n")
