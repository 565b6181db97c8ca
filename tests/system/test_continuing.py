"""Runs that were interrupted, damaged or diverged: what is left of them, and how they go on."""

import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from system.command import (
    CHECKPOINTS,
    STEPS,
    TASK,
    assert_refused,
    contents,
    spoil_last_checkpoint,
)

from snaprl.training import config as configs
from snaprl.training import run, sinks


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
    sentence = "was made with agent.features = 4, and tmaze has 64: leave CONFIG out .*"
    assert_refused(said, f"the run in .* {sentence}")
    said = snaprl("train", "copy", "--run-dir", copy, "--resume")
    assert_refused(said, "the run in .* trains an agent, and copy describes a supervised model: .*")
    assert contents(copy) == before


def parameters(folder):
    return jax.tree.leaves(run.read(folder).state.learner.variables)


def test_a_run_may_begin_with_what_another_has_learnt(trained, snaprl, tmp_path):
    """With steps that move nothing the parameters stay what they began as."""
    still = ("--optimizer.learning-rate", 1e-20, "--steps", 256, "--seed", 5)
    words = ("train", trained / "task.toml", *still)
    assert snaprl(*words, "--run-dir", tmp_path / "drawn").code == 0
    given = ("--from", trained / "run")
    assert snaprl(*words, "--run-dir", tmp_path / "given", *given).code == 0
    learnt = parameters(trained / "run")
    for place, same in (("given", True), ("drawn", False)):
        found = parameters(tmp_path / place)
        assert all(map(np.array_equal, found, learnt)) == same
    told = json.loads((tmp_path / "given" / "versions.json").read_text())
    assert told["started from"] == str((trained / "run").resolve())
    # before its first checkpoint it begins again, and with the same parameters
    shutil.rmtree(tmp_path / "given" / "checkpoints")
    said = snaprl("train", "--run-dir", tmp_path / "given", "--resume")
    assert (said.code, "starts again" in said.err) == (0, True)
    assert all(map(np.array_equal, parameters(tmp_path / "given"), learnt))


def test_what_a_run_cannot_begin_with_is_said(trained, snaprl, tmp_path):
    words = ("train", trained / "task.toml", "--run-dir", tmp_path / "new")
    said = snaprl(*words, "--agent.features", 5, "--from", trained / "run")
    sentence = (
        r"params/\S+ is .*5.* in this config's network, and .*4.* in .*/run: begin with a run "
        "whose network is the same"
    )
    assert (said.code, bool(re.search(f"snaprl: {sentence}", said.err))) == (2, True), said.err
    assert not (tmp_path / "new").exists()
    said = snaprl(*words, "--from", tmp_path)
    assert (said.code, "Traceback" in said.err) == (2, False)
    said = snaprl("train", "--run-dir", trained / "run", "--resume", "--from", trained / "run")
    assert_refused(said, ".*/run goes on from its own checkpoint: give no other run to it")


def test_a_run_goes_on_without_a_config(copy, snaprl):
    """Its folder has one; and the value of a flag is not taken for CONFIG."""
    said = snaprl("train", "--run-dir", copy, "--resume", "--training.steps", 768)
    assert (said.code, said.err.splitlines()[0]) == (0, "task, seed 0")
    assert run.Checkpoints(copy / "checkpoints").steps()[-1] == 768
    assert configs.load(copy / "config.toml").training.steps == 768
    said = snaprl("train", "--steps", 768, "--run-dir", copy)
    assert_refused(said, "name what to train, before its flags: a TOML file or one of .*")


def test_a_run_is_known_by_what_its_config_holds(trained, tmp_path, snaprl):
    """Whatever its file is called; what flags changed at the start does not count."""
    task, other = trained / "task.toml", tmp_path / "other.toml"
    flags = ["--seed", 3, "--agent.features", 5, "--training.steps", 128]
    said = snaprl("train", task, "--run-dir", tmp_path / "run", *flags)
    assert said.code == 0
    shutil.copy(task, other)
    assert snaprl("train", other, "--run-dir", tmp_path / "run", "--resume").code == 0
    other.write_text(TASK.replace("steps = 512", "steps = 900"))  # which may change
    assert snaprl("train", other, "--run-dir", tmp_path / "run", "--resume").code == 0
    other.write_text(TASK.replace("length = 3", "length = 4"))
    before = contents(tmp_path / "run")
    said = snaprl("train", other, "--run-dir", tmp_path / "run", "--resume")
    assert_refused(said, "the run in .* with env.kwargs = {'length': 3}, and .*other.toml has .*")
    (tmp_path / "task.toml").write_text(other.read_text())  # the name of the right one
    said = snaprl("train", tmp_path / "task.toml", "--run-dir", tmp_path / "run", "--resume")
    assert_refused(said, "the run in .* with env.kwargs = {'length': 3}, and .*task.toml has .*")
    assert contents(tmp_path / "run") == before


def test_a_run_of_before_is_known_by_the_name_of_its_config(copy, snaprl, task):
    """It does not tell what flags changed."""
    told = json.loads((copy / "versions.json").read_text())
    del told["flags"]
    (copy / "versions.json").write_text(json.dumps(told))
    task.write_text(TASK.replace("features = 4", "features = 5"))
    assert snaprl("train", task, "--run-dir", copy, "--resume").code == 0
    task.rename(other := task.with_name("other.toml"))
    said = snaprl("train", other, "--run-dir", copy, "--resume")
    assert_refused(said, "the run in .* with agent.features = 4, and .*other.toml has 5: .*")


def assert_neither_measured_nor_resumed(snaprl, copy, sentence):
    """Both are refused by the same sentence, and the run's folder is left as it was."""
    before = contents(copy)
    assert_refused(snaprl("evaluate", copy), sentence)
    assert_refused(snaprl("train", "--run-dir", copy, "--resume"), sentence)
    assert contents(copy) == before


def test_a_checkpoint_of_another_architecture_is_refused(copy, snaprl):
    file = copy / "config.toml"
    file.write_text(file.read_text().replace("features = 4", "features = 5"))
    sentence = r".*512 belongs to another architecture: .* is float32\[.*\] there and .* here; .*"
    assert_neither_measured_nor_resumed(snaprl, copy, sentence)


def test_a_config_that_was_cut_off_is_refused(copy, snaprl):
    """Defaults would make it another run's, and nobody would know."""
    file = copy / "config.toml"
    file.write_text(file.read_text().partition("[agent]")[0])
    sentence = r".*config.toml is not whole, for it has no \[agent\]: put back what .*"
    assert_neither_measured_nor_resumed(snaprl, copy, sentence)


def test_a_schedule_that_goes_further_is_said(snaprl, task, tmp_path):
    ways = "[loss]\nentropy_schedule = 'cosine'\n[optimizer]\nschedule = 'linear'\n"
    task.write_text(TASK + ways)
    folder = tmp_path / "run"
    assert snaprl("train", task, "--run-dir", folder, "--steps", 128).code == 0
    said = snaprl("train", task, "--run-dir", folder, "--resume", "--steps", 256)
    for way in ("learning rate follows the linear", "entropy bonus follows the cosine"):
        assert f"{way} schedule of 256 steps, not of 128" in said.err


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


def test_a_loss_that_is_no_number_stops_the_run(snaprl, task, tmp_path):
    flags = ["--optimizer.learning-rate", "1e30", "--training.report-every", "16"]
    said = snaprl("train", task, "--run-dir", tmp_path / "run", *flags)
    assert (said.code, said.out) == (2, ""), said
    assert "Traceback" not in said.err
    last = said.err.splitlines()[-1]
    assert re.fullmatch(
        r"snaprl: training stopped, for .*loss.* became NaN or infinite at update \d+ "
        r"\(step \d+\); no checkpoint was written, so nothing is lost with .*; "
        r"a lower optimizer.learning_rate may help",
        last,
    ), last


BROKEN = {
    # the 76th step of 4 streams lies in the 19th update, which ends at step 19 * 4 * 4
    "reward": ("", r"gave nan in reward, stream \d, step 3 of segment 18"),
    "raises": (
        ", raises = true",
        r"raised KeyError: 'the door is gone' \(.*command.py, line \d+\)",
    ),
}


@pytest.mark.parametrize(("more", "sentence"), BROKEN.values(), ids=BROKEN)
def test_a_broken_environment_leaves_all_that_was_learnt_before(
    snaprl, task, tmp_path, more, sentence
):
    task.write_text(
        TASK.replace("{ length = 3 }", f"{{ good_steps = 75{more} }}").replace(
            "[env]", "[env]\nid = 'tests/Pathological-v0'"
        )
    )
    folder = tmp_path / "run"
    said = snaprl("train", task, "--run-dir", folder)
    assert said.code == 2
    assert "Traceback" not in said.err
    assert re.search(
        rf"snaprl: training stopped, for actor 0: the environment {sentence}; the checkpoint of "
        "step 288 is kept",
        said.err.splitlines()[-1],
    ), said.err
    assert run.Checkpoints(folder / "checkpoints").steps() == [256, 288]
    assert [row["step"] for row in sinks.read_rows(folder / "metrics.jsonl")] == [128, 256, 288]


def test_episodes_of_an_environment_that_cannot_be_saved_start_anew(snaprl, task, tmp_path):
    task.write_text(
        TASK.replace("kwargs = { length = 3 }", "id = 'CartPole-v1'").replace("512", "256")
    )
    folder = tmp_path / "run"
    assert snaprl("train", task, "--run-dir", folder).code == 0
    said = snaprl("train", task, "--run-dir", folder, "--resume", "--steps", 384)
    assert said.code == 0
    assert (
        "snaprl: CartPole-v1 cannot be saved, so episodes start anew: for the next run, give "
        "get_state() and set_state() to it and to each of its wrappers that remembers something\n"
    ) in said.err
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
    monkeypatch.setattr(run, "prepare", lambda config: signal.raise_signal(signal.SIGINT))
    said = snaprl("train", task, "--run-dir", tmp_path / "run")
    assert said == (130, "", "snaprl: interrupted\n")
