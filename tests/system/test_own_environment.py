"""The guide to an environment of one's own, run as it is written, by a script as pip writes it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "environment.md"
TEXT = PAGE.read_text(encoding="utf-8")
SCRIPT = """
import sys
from snaprl.training.cli import main
if __name__ == "__main__":
    sys.exit(main())
"""
SHORT = ["--steps", "512", "--training.report-every", "128", "--training.checkpoint-every", "256"]


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)
    return found


def snaprl(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a folder that is on no path."""
    script = folder.parent / "bin" / "snaprl"
    script.parent.mkdir(exist_ok=True)
    script.write_text(SCRIPT, encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(script), *words],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env=os.environ | {"MPLBACKEND": "agg"},
    )


@pytest.fixture
def here(tmp_path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "mem.py").write_text(block("python"), encoding="utf-8")
    (folder / "recall.toml").write_text(block("toml"), encoding="utf-8")
    return folder


def rows(run: Path) -> list[dict]:
    """The reports, without what a clock has put in."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("wall_s", "steps_per_s")} for r in found]


def test_the_commands_of_the_guide_learn(here):
    said = []
    for line in block("sh").splitlines():
        done = snaprl(here, *shlex.split(line)[1:])
        assert done.returncode == 0, done.stderr
        said.append(done)
    assert json.loads(said[1].stdout)["eval_success"] > 0.9
    reports = rows(here / "runs" / "recall")
    assert [row["step"] for row in reports][-1] == 50_048  # whole updates
    assert {row["episode_length"] for row in reports} == {6}
    assert {row["episode_length"] for row in rows(here / "runs" / "early")} == {5}
    # elsewhere the module is not found, and the sentence says what helps
    run = str(here / "runs" / "recall")
    done = snaprl(here.parent, "evaluate", run)
    assert done.returncode == 2
    assert re.fullmatch(r"snaprl: env.id mem:Recall-v0: No module .* PYTHONPATH\n", done.stderr)


def test_it_is_resumed_exactly(here):
    whole = snaprl(here, "train", "recall.toml", "--run-dir", "whole", *SHORT)
    assert whole.returncode == 0, whole.stderr
    shutil.copytree(here / "whole", here / "again")
    shutil.rmtree(here / "again" / "checkpoints" / "512")
    again = snaprl(here, "train", "recall.toml", "--run-dir", "again", "--resume", *SHORT)
    assert again.returncode == 0, again.stderr
    assert "start anew" not in again.stderr
    assert rows(here / "again") == rows(here / "whole")
    parameters = [
        sorted(p.read_bytes() for p in (here / run / "checkpoints" / "512" / "meta").rglob("m*"))
        for run in ("whole", "again")
    ]
    assert parameters[0] == parameters[1]  # checksums of all that is kept


@pytest.mark.slow  # actors are processes that start and compile
def test_actors_in_processes_find_it(here):
    flags = ["--engine", "processes", "--actors.count", "2", *SHORT]
    done = snaprl(here, "train", "recall.toml", "--run-dir", "run", *flags)
    assert done.returncode == 0, done.stderr
    assert {row["restarts"] for row in rows(here / "run")} == {0}


SWEEP = """
config = "recall.toml"
seeds = [0]
title = "Recall"
metric = "success"
[all.training]
steps = 512
report_every = 128
[[run]]
name = "plain"
"""


@pytest.mark.slow  # a run is a process that starts and compiles
def test_runs_of_a_sweep_find_it(here):
    (here / "sweep.toml").write_text(SWEEP, encoding="utf-8")
    done = snaprl(here, "sweep", "sweep.toml", "--jobs", "1")
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", TEXT))
def test_every_link_leads_somewhere(target):
    assert (PAGE.parent / target).exists()
