"""A sweep from the command: run side by side, gone on with, and told of."""

import json
import re

import pytest

from snaprl.training import cli

SWEEP = """
config = "base.toml"
seeds = [0]
title = "A small sweep"
metric = "eval_bits_per_char"
[[run]]
name = "frozen"
model.method = "frozen"
[[run]]
name = "bptt"
"""
BASE = """
[task]
name = "delayed_copy"
kwargs = { delay = 2 }
[model]
cell = "simple"
method = "bptt"
features = 4
[training]
streams = 2
unroll = 4
steps = 400
report_every = 200
checkpoint_every = 200
[evaluation]
steps = 500
"""


@pytest.fixture
def snaprl(capfd):
    def command(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(a) for a in arguments])
        return (code, *capfd.readouterr())

    return command


@pytest.mark.slow  # each run is a process that starts and compiles
def test_a_sweep_is_run_reported_and_not_run_again(snaprl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "small.toml").write_text(SWEEP)
    code, out, err = snaprl("sweep", "small.toml")
    folder = tmp_path / "runs" / "small"
    assert code == 0, err
    assert out.split() == ["runs/small/report.md", "runs/small/report.html"]
    assert "[2/2]" in err
    for name in ("frozen-0", "bptt-0"):
        assert json.loads((folder / name / "evaluation.json").read_text())["step"] == 400
        assert (folder / name / "curve.png").is_file()
    text = (folder / "report.md").read_text()
    assert text.startswith("# A small sweep\n")
    assert len(re.findall(r"^\| (?:frozen|bptt) \| 1 \| \d\.\d+ \|", text, re.M)) == 2

    before = (folder / "frozen-0" / "metrics.jsonl").read_bytes()
    code, _, err = snaprl("sweep", "small.toml")
    assert (code, "2 runs, 2 of them done" in err) == (0, True)
    assert (folder / "frozen-0" / "metrics.jsonl").read_bytes() == before

    # further: the runs go on where they stood
    (tmp_path / "small.toml").write_text(SWEEP + "training.steps = 600\n")
    code, _, err = snaprl("sweep", "small.toml", "--jobs", 1)
    assert code == 0, err
    assert "2 runs, 1 of them done" in err
    lines = (folder / "bptt-0" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [200, 400, 600]

    # other settings under a name that is taken
    (tmp_path / "small.toml").write_text(SWEEP + "model.features = 5\n")
    code, out, err = snaprl("sweep", "small.toml")
    assert (code, out) == (2, "")
    assert re.match(r"snaprl: runs/small/bptt-0 holds a run of other settings: remove it, or", err)

    code, out, _ = snaprl("report", folder, "--output", tmp_path / "page")
    assert code == 0
    assert (tmp_path / "page" / "report.html").is_file()


def test_what_cannot_be_built_is_said_before_anything_runs(snaprl, tmp_path):
    (tmp_path / "base.toml").write_text(BASE)
    sweep = tmp_path / "s.toml"
    sweep.write_text(SWEEP + "model.fan_in = 99\n")
    code, out, err = snaprl("sweep", sweep, "--folder", tmp_path / "runs")
    assert (code, out) == (2, "")
    assert err.startswith("snaprl: run 'bptt': model.fan_in 99")
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fails_does_not_keep_the_others_from_running(snaprl, tmp_path):
    (tmp_path / "base.toml").write_text(BASE)
    sweep = tmp_path / "s.toml"
    text = SWEEP + "optimizer.learning_rate = 3e38\n"
    sweep.write_text(text + "optimizer.name = 'sgd'\noptimizer.max_grad_norm = 3e38\n")
    code, _, err = snaprl("sweep", sweep, "--folder", tmp_path / "runs", "--jobs", 2)
    assert code == 1
    assert re.search(r"bptt, seed 0: failed, snaprl: training stopped, for .* became NaN", err), err
    assert "frozen, seed 0: done in" in err
    assert "Not there yet: bptt, seed 0" in (tmp_path / "runs" / "report.md").read_text()
