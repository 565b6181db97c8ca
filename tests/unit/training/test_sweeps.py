"""Sweeps and their pages: what is planned, what is refused, what is told."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from snaprl.training import config as configs
from snaprl.training.errors import UserError
from snaprl.training.loops import prepare
from snaprl.training.supervised import build as supervised
from snaprl.training.sweeps import command, page, plan
from snaprl.training.sweeps.page import Heading, Picture, Table, Words
from snaprl.training.sweeps.report import METRICS, report

SWEEP = """
config = "copy"
seeds = [3, 5]
title = "A sweep"
metric = "level"
goal = "highest"
[all]
training.steps = 1000
model.features = 8
[grid]
training.unroll = [1, 2]
[tune]
optimizer.learning_rate = [0.1, 0.2]
[[run]]
name = "one"
model.method = "bptt"
[[run]]
name = "two"
model = { method = "uoro", features = 9 }
"""


@pytest.fixture
def read(tmp_path):
    def from_text(text: str) -> plan.Plan:
        path = tmp_path / "s.toml"
        path.write_text(text, encoding="utf-8")
        return plan.read(path, tmp_path / "runs")

    return from_text


def test_a_sweep_is_runs_times_grid_times_seeds(read, tmp_path):
    found = read(SWEEP)
    assert (found.title, found.metric, found.highest) == ("A sweep", "level", True)
    assert len(found.jobs) == 2 * 4 * 2
    job = found.jobs[-1]
    assert (job.name, job.base, job.seed) == ("two-unroll=2-learning_rate=0.2", "two-unroll=2", 5)
    assert job.folder == tmp_path / "runs" / "two-unroll=2-learning_rate=0.2-5"
    c = job.config
    assert (c.seed, c.training.steps, c.model.method, c.model.features) == (5, 1000, "uoro", 9)
    assert (c.optimizer.learning_rate, c.training.unroll) == (0.2, 2)
    assert c.training.streams == configs.load("copy").training.streams  # the rest is as it was
    assert found.jobs[0].config.model.features == 8
    assert len({(j.name, j.seed) for j in found.jobs}) == 16
    bases = {f"{run}-unroll={unroll}" for run in ("one", "two") for unroll in (1, 2)}
    assert set(found.bases.values()) == bases
    assert found.tune_by == "level"
    assert read(f"tune_by = 'loss'\n{SWEEP}").tune_by == "loss"


def test_values_that_no_folder_could_be_called_by_still_name_a_run(read):
    text = "[grid]\ntask.kwargs.path = ['a/x', '/b c']\n[[run]]\nname = 'r'"
    found = read("config = 'charlm'\n" + text)
    assert [job.name for job in found.jobs] == ["r-path=a_x", "r-path=_b_c"]
    assert found.jobs[0].config.task.kwargs["path"] == str(Path("a/x").absolute())


def test_a_config_beside_the_sweep_is_found(read, tmp_path):
    (tmp_path / "mine.toml").write_text("[task]\n[model]\nfeatures = 3")
    found = read("config = 'mine.toml'\n[[run]]\nname = 'x'")
    assert [job.config.model.features for job in found.jobs] == [3]
    assert [job.seed for job in found.jobs] == [0]


def test_tables_are_merged_and_values_replaced():
    before = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    news = {"a": {"c": {"f": 4}}, "e": {"g": 5}}
    assert plan.merge(before, news) == {"a": {"b": 1, "c": {"d": 2, "f": 4}}, "e": {"g": 5}}
    assert before == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


RUN = "config = 'copy'\n[[run]]\nname = 'x'\n"
WRONG = {
    "key": (f"sedes = [1]\n{RUN}", "unknown key 'sedes' in {}: did you mean 'seeds'"),
    "nothing": ("", "{} has no 'config': a sweep needs one config and its runs"),
    "no runs": ("config = 'copy'", "{} has no 'run': "),
    "config": (RUN.replace("copy", "copi"), "there is no config 'copi': did you mean 'copy'"),
    "type": (f"title = 3\n{RUN}", "'title' in {} must be a string, not 3"),
    "seeds": (
        f"seeds = [1, 1]\n{RUN}",
        "'seeds' in {} must be different whole numbers from 0 to 2^32 - 1, not [1, 1]",
    ),
    "negative": (
        f"seeds = [0, -1]\n{RUN}",
        "'seeds' in {} must be different whole numbers from 0 to 2^32 - 1, not [0, -1]",
    ),
    "seed": (f"{RUN}seed = 1", "'seed' in {} is not for one run or table: give 'seeds' for all"),
    "grid of seeds": (f"{RUN}[grid]\nseed = [3]", "'seed' in {} is not for one run or table"),
    "tuned by nothing": (
        f"{RUN}[tune]\ntraining.unroll = [1, 2]",
        "{} has a [tune], but no 'metric' that would tell the best of it",
    ),
    "goal": (f"goal = 'up'\n{RUN}", "'goal' in {} must be 'lowest' or 'highest', not up"),
    "grid": (f"{RUN}[grid]\nseed = 3", "'grid.seed' in {} must be a list of values, not 3"),
    "name": (RUN.replace("'x'", "'a/b'"), "every [[run]] in {} needs a name of letters, digits"),
    "no name": ("config = 'copy'\n[[run]]\nseed = 1", "every [[run]] in {} needs a name"),
    "twice": (f"{RUN}[[run]]\nname = 'x'", "two runs in {} are called 'x': give each its own name"),
    "key of a run": (
        f"{RUN}model.methd = 'bptt'",
        "unknown key 'model.methd' in {}, run 'x': did you mean 'model.method'?",
    ),
    "value of a run": (
        f"{RUN}[grid]\ntraining.unroll = [0]",
        "'training.unroll' in {}, run 'x-unroll=0' must be at least 1, not 0",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), WRONG.values(), ids=WRONG)
def test_a_wrong_sweep_is_refused(read, tmp_path, text, sentence):
    with pytest.raises(UserError) as caught:
        read(text)
    assert str(caught.value).startswith(sentence.format(tmp_path / "s.toml"))


def test_sweeps_are_found_by_name():
    known = configs.shipped("paper")
    assert known
    for name, path in known.items():
        assert plan.find(name) == path
    with pytest.raises(UserError, match="there is no sweep 'copyy': did you mean 'copy"):
        plan.find("copyy")


@pytest.mark.parametrize("name", configs.shipped("paper"))
def test_the_sweeps_that_come_along_are_sound(name, tmp_path):
    found = plan.read(plan.find(name), tmp_path)
    assert found.jobs
    assert found.title
    assert found.metric in METRICS
    assert found.tune_by in METRICS
    kinds = {job.base.partition("-model")[0]: job.config for job in found.jobs}
    for config in kinds.values():
        if config.task.kwargs.get("path"):  # a corpus that everyone has to bring along
            config = replace(config, task=replace(config.task, kwargs={"vocabulary": "byte"}))
        if config.model.features < 512:  # the pattern of a larger one takes its time
            supervised.build(config)


HELD = """
config = "charlm"
[all]
task.kwargs.path = "TEXT"
model = { features = 4, method = "frozen" }
training = { steps = 400, unroll = 4, streams = 2 }
optimizer.schedule = "linear"
[[run]]
name = "x"
"""
OTHER = {
    "settings": ("features = 4", "features = 5", "with model.features = 4, not 5: remove it, or"),
    "further, another schedule": ("steps = 400", "steps = 800", "with training.steps = 400, not"),
    "text": ("x", "x", "was trained with text "),
}


@pytest.mark.parametrize(("old", "new", "sentence"), OTHER.values(), ids=OTHER)
def test_runs_that_do_not_belong_together_are_no_sweep(tmp_path, old, new, sentence):
    """Whether they are done or not: one row of a table would hold both."""
    text, file, folder = tmp_path / "text", tmp_path / "s.toml", tmp_path / "runs"
    text.write_text("abcd" * 100)
    file.write_text(HELD.replace("TEXT", str(text)))
    (job,) = plan.read(file, folder).jobs
    job.folder.mkdir(parents=True)
    (job.folder / "config.toml").write_text(configs.dumps(job.config))
    facts = dict(prepare(job.config)[0].facts)
    (job.folder / "versions.json").write_text(json.dumps(facts))
    (job.folder / "evaluation.json").write_text('{"step": 400}')
    if "text" in sentence:
        text.write_text("abdc" * 100)
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=sentence):
        command.sweep(file, folder, jobs=1)


# ---- pages -----------------------------------------------------------------------------------


def test_a_page_as_markdown_and_as_html(tmp_path):
    svg = "<?xml version='1.0'?>\n<svg><text>a curve</text></svg>"
    (tmp_path / "curve.svg").write_text(svg)
    blocks = [
        Heading("Title & more", 1),
        Words("Made by `a < b` and **bold**."),
        Table(["run", "x|y"], [["a", "1"], ["b", "2"]]),
        Picture(tmp_path / "curve.png", "curves"),
    ]
    assert page.markdown(blocks) == (
        "# Title & more\n\nMade by `a < b` and **bold**.\n\n"
        "| run | x\\|y |\n| --- | --- |\n| a | 1 |\n| b | 2 |\n\n![curves](curve.png)\n"
    )
    text = page.as_html(blocks, "Title & more")
    assert "<h1>Title &amp; more</h1>" in text
    assert "<code>a &lt; b</code> and <b>bold</b>" in text
    assert "<td>b</td><td>2</td>" in text
    assert "<svg><text>a curve</text></svg>" in text
    assert "<?xml" not in text


def made_up_run(folder, *, seed, rate, level, steps=1000, measured=None, task="copy"):
    folder.mkdir(parents=True)
    known = {"bits_per_char": 0.5} | ({} if level is None else {"level": 1})
    rows = [
        {"step": k, "wall_s": k / 100, "steps_per_s": 100.0} | known for k in (steps // 2, steps)
    ]
    rows[-1] |= {} if level is None else {"level": level}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = {"seed": seed, "optimizer": {"learning_rate": rate}, "task": {"name": task}}
    (folder / "config.toml").write_text(tomli_w.dumps(tables))
    made = {"commit": "abc123", "command": "snaprl train copy", "jax": "0.9.0"}
    made |= {"flax": "0.12.3", "python": f"3.1{seed}"}
    (folder / "versions.json").write_text(json.dumps(made))
    if measured:
        (folder / "evaluation.json").write_text(json.dumps(measured))


def test_a_report_tells_mean_spread_seeds_and_origin(tmp_path):
    for seed, level in ((0, 4), (1, 7)):
        measured = {"step": 1000, "parameters": 12345, "reference_chance.bits_per_char": 1.0}
        made_up_run(tmp_path / f"a{seed}", seed=seed, rate=0.1, level=level, measured=measured)
    made_up_run(tmp_path / "b", seed=0, rate=0.2, level=9, steps=600)
    files = report(tmp_path)
    text = files[0].read_text()
    assert [f.name for f in files] == ["report.md", "report.html"]
    first = "| learning rate 0.1 | 2 | 5.5 (4 to 7) | 0.5 (0.5 to 0.5) | 1.00k | 100 | 0:10 |"
    assert first in text
    assert "| learning rate 0.2 | 1 | 9 | 0.5 | 600 | 100 | 0:06 |" in text
    assert "To compare with: chance, bits_per_char 1." in text
    how = text.partition("## How it was made\n")[2]
    origin = "| 12,345 | 1,000 | 0:20 | `abc123` | `snaprl train copy` |"
    assert f"| learning rate 0.1 | 0, 1 {origin}" in how
    assert "| learning rate 0.2 | 0 |  | 600 | 0:06 |" in how
    assert "Made with python 3.10, 3.11; jax 0.9.0; flax 0.12.3." in how
    assert "<svg" in files[1].read_text()
    assert (tmp_path / "curves.png").is_file()
    with pytest.raises(UserError, match="there is no run with a report in"):
        report(tmp_path / "nowhere")


IMPOSSIBLE = {
    "a file": ("file", "File exists"),
    "below a file": ("file/page", "Not a directory"),
    "too long": ("x" * 300, "File name too long"),
    "taken": ("taken", "Is a directory"),
}


@pytest.mark.parametrize(("name", "why"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_report_that_cannot_be_written_is_refused(tmp_path, name, why):
    made_up_run(tmp_path / "runs" / "a", seed=0, rate=0.1, level=4)
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "report.md").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        report(tmp_path / "runs", tmp_path / name)
    sentence = f"{tmp_path / name} cannot be written ({why}): name another --output"
    assert str(caught.value) == sentence


def test_a_report_of_a_sweep_picks_the_best_of_a_grid_and_names_what_is_missing(tmp_path):
    text = """
config = "copy"
metric = "level"
goal = "GOAL"
title = "Rates"
[tune]
optimizer.learning_rate = [0.1, 0.2, 0.3]
[[run]]
name = "x"
"""
    for rate, level in ((0.1, 4), (0.2, 7)):
        made_up_run(tmp_path / f"x-learning_rate={rate}-0", seed=0, rate=rate, level=level)
    for goal, best in (("highest", 0.2), ("lowest", 0.1)):
        (tmp_path / "sweep.toml").write_text(text.replace("GOAL", goal))
        told = report(tmp_path)[0].read_text()
        assert told.startswith("# Rates\n")
        summary, _, everything = told.partition("## All runs")
        assert re.findall(r"\| x-learning_rate=([\d.]+) \| 1 \|", summary) == [str(best)]
        assert len(re.findall(r"\| x-learning_rate=[\d.]+ \| 1 \|", everything)) == 2
        assert "Not there yet: x-learning_rate=0.3, seed 0." in told


RATES = """
config = "copy"
metric = "level"
goal = "highest"
[all]
training.steps = 1000
[grid]
training.unroll = [1, 2]
[tune]
optimizer.learning_rate = [0.1, 0.2]
[[run]]
name = "x"
"""


def summary(folder) -> str:
    return report(folder)[0].read_text().partition("## All runs")[0]


def test_what_is_compared_stays_and_what_is_tuned_is_chosen(tmp_path):
    """By its own metric, where one is named: the best on what is shown is not always that."""
    (tmp_path / "sweep.toml").write_text(RATES)
    for unroll, rate, level, loss in ((1, 0.1, 4, 1.0), (1, 0.2, 5, 2.0), (2, 0.1, 9, 3.0)):
        folder = tmp_path / f"x-unroll={unroll}-learning_rate={rate}-0"
        made_up_run(
            folder, seed=0, rate=rate, level=level, measured={"step": 1000, "eval_loss": -loss}
        )
    names = r"\| x-unroll=(\d)-learning_rate=([\d.]+) \| 1 \|"
    assert re.findall(names, summary(tmp_path)) == [("1", "0.2"), ("2", "0.1")]
    (tmp_path / "sweep.toml").write_text(f"tune_by = 'eval_loss'\n{RATES}")
    assert re.findall(names, summary(tmp_path)) == [("1", "0.1"), ("2", "0.1")]
    (tmp_path / "sweep.toml").write_text(f"tune_by = 'evil_loss'\n{RATES}")  # none has it
    assert len(re.findall(names, told := summary(tmp_path))) == 3
    assert "No run has `evil_loss`, which would tell the best of what was tuned." in told


def test_runs_that_are_not_through_are_named_and_old_evaluations_are_not_told(tmp_path):
    (tmp_path / "sweep.toml").write_text(RATES.replace("[1, 2]", "[1]"))
    whole, part = (tmp_path / f"x-unroll=1-learning_rate={rate}-0" for rate in (0.1, 0.2))
    made_up_run(whole, seed=0, rate=0.1, level=4, measured={"step": 1000, "level": 4})
    made_up_run(part, seed=0, rate=0.2, level=3, steps=600, measured={"step": 400, "level": 77})
    told = report(tmp_path)[0].read_text()
    assert "as far as they got: x-unroll=1-learning_rate=0.2, seed 0 (at 600)." in told
    assert "77" not in told
    assert "Not there yet" not in told


def test_a_seed_is_counted_once(tmp_path):
    for name, level in (("a", 4), ("b", 9)):
        made_up_run(tmp_path / name, seed=3, rate=0.1, level=level)
    told = report(tmp_path)[0].read_text()
    assert "| 1 | 4 |" in told
    assert "Left out, for another run has their settings and seed: `b`." in told


def test_a_value_that_some_seeds_lack_is_told_with_how_many_have_it(tmp_path):
    for seed, measured in ((0, {"step": 1000, "eval_accuracy": 0.5}), (1, None)):
        made_up_run(tmp_path / str(seed), seed=seed, rate=0.1, level=4, measured=measured)
    assert "| 2 | 4 (4 to 4) | 0.5, of 1 |" in report(tmp_path)[0].read_text()


def test_different_tasks_have_a_picture_each_and_scores_of_their_own(tmp_path):
    for name, level, chance in (("copy", 4, 1.0), ("anbn", None, 2.0)):
        measured = {"step": 1000, "reference_chance.bits_per_char": chance}
        made_up_run(tmp_path / name, seed=0, rate=0.1, level=level, measured=measured, task=name)
    told = report(tmp_path)[0].read_text()
    assert re.findall(r"^\| (\w+) \| 1 \|", told, re.M) == ["anbn", "copy"]
    assert "![Learning curves](curves-level.png)" in told
    assert "![Learning curves](curves-bits_per_char.png)" in told
    assert "To compare with: chance, bits_per_char 2 (anbn), 1 (copy)." in told


def test_more_lines_than_a_figure_holds_are_said(tmp_path):
    for k in range(14):
        made_up_run(tmp_path / f"{k:02}", seed=0, rate=0.1 + k, level=4)
    assert "Drawn are the first 12 of 14." in report(tmp_path)[0].read_text()
