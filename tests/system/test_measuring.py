"""`snaprl evaluate`, evaluations during training, the best checkpoint, and films."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from system.command import CHECKPOINTS, STEPS, TASK, assert_refused

from snaprl.training import measure, run, sinks
from snaprl.training.errors import Stopped


def test_evaluate_prints_one_object_last(trained, snaprl):
    said = snaprl("evaluate", trained / "run", "--episodes", 6)
    assert said.code == 0
    result = json.loads(said.out.splitlines()[-1])
    names = ("episode_return", "episode_length", "success")
    wanted = {"step", "episodes"} | {f"eval_{n}" for n in names}
    assert result.keys() == wanted | {f"eval_greedy_{n}" for n in names}
    assert (result["step"], result["episodes"]) == (STEPS, 6)
    assert json.loads((trained / "run" / "evaluation.json").read_text()) == result
    assert snaprl("evaluate", trained / "run", "--episodes", 6).out == said.out


def test_an_evaluation_that_cannot_be_left_behind_is_told_all_the_same(trained, snaprl):
    (trained / "run" / "evaluation.json.new").mkdir()
    said = snaprl("evaluate", trained / "run", "--episodes", 6)
    (trained / "run" / "evaluation.json.new").rmdir()
    assert (said.code, json.loads(said.out)["step"]) == (0, STEPS)
    assert "evaluation.json cannot be written (Is a directory), so a report of" in said.err


# ---- while it trains -------------------------------------------------------------------------

EVERY = ["--evaluation.every", 128, "--evaluation.episodes-each", 8]


@pytest.fixture
def scores(monkeypatch) -> list[float]:
    """What evaluations find, in place of what they would; and the states that they were shown."""
    told = [0.25, 0.75, 0.5, 0.625]

    def call(self, state, key, stop):
        del self, state, key, stop
        return {"eval_success": told.pop(0), "episodes": 8}

    monkeypatch.setattr(measure.AgentMeasure, "__call__", call)
    return told


def steps_of(folder: Path) -> list[int]:
    return run.Checkpoints(folder).steps()


def test_the_best_checkpoint_is_kept(snaprl, task, tmp_path, scores):
    folder = tmp_path / "run"
    assert snaprl("train", task, "--run-dir", folder, *EVERY).code == 0
    assert not scores
    rows = sinks.read_rows(folder / "metrics.jsonl")
    assert [row["eval_success"] for row in rows] == [0.25, 0.75, 0.5, 0.625]
    assert all(row["episodes"] != 8 for row in rows)  # these are training's
    assert steps_of(folder / "best") == [256]
    assert steps_of(folder / "checkpoints") == CHECKPOINTS
    assert run.read(folder, best=True).step == 256
    assert run.read(folder).step == STEPS


def test_an_evaluation_that_was_broken_off_is_made_at_the_next_report(
    snaprl, task, tmp_path, scores, monkeypatch
):
    whole, asked = measure.AgentMeasure.__call__, []

    def call(self, state, key, stop):
        asked.append(stop)
        if len(asked) == 1:
            raise Stopped
        return whole(self, state, key, stop)

    monkeypatch.setattr(measure.AgentMeasure, "__call__", call)
    flags = ["--evaluation.every", 256, "--evaluation.episodes-each", 8]
    assert snaprl("train", task, "--run-dir", tmp_path / "run", *flags).code == 0
    rows = sinks.read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval_success" in row] == [384, 512]
    assert not any(stop() for stop in asked)


def test_a_continued_run_remembers_how_good_its_best_was(snaprl, task, tmp_path, scores):
    folder = tmp_path / "run"
    assert snaprl("train", task, "--run-dir", folder, "--steps", 256, *EVERY).code == 0
    scores[:] = [0.5, 0.625]
    flags = ["--resume", "--steps", 512]
    assert snaprl("train", task, "--run-dir", folder, *flags).code == 0
    assert steps_of(folder / "best") == [256]
    # what is better than the best that is left is kept, although one was better once
    shutil.rmtree(folder / "best" / "256")
    scores[:] = [0.5, 0.625]
    assert snaprl("train", task, "--run-dir", folder, "--resume", "--steps", 768).code == 0
    assert steps_of(folder / "best") == [768]


def test_evaluations_change_nothing_in_training(trained, snaprl, tmp_path):
    folder = tmp_path / "run"
    assert snaprl("train", trained / "task.toml", "--run-dir", folder, *EVERY).code == 0
    ours, theirs = (sinks.read_rows(f / "metrics.jsonl") for f in (folder, trained / "run"))
    timed = {"wall_s", "steps_per_s"}
    for our, their in zip(ours, theirs, strict=True):
        assert {k: v for k, v in our.items() if k in their.keys() - timed} == {
            k: v for k, v in their.items() if k not in timed
        }
    found = json.loads(snaprl("evaluate", folder, "--best").out)
    best = max(ours, key=measure.score)
    assert found["step"] == min(
        row["step"] for row in ours if measure.score(row) == measure.score(best)
    )


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(trained, snaprl, tmp_path):
    """Though it was evaluated before, and the best kept."""
    folder = tmp_path / "run"
    assert snaprl("train", trained / "task.toml", "--run-dir", folder, *EVERY).code == 0
    shutil.rmtree(folder / "checkpoints")
    said = snaprl("train", trained / "task.toml", "--run-dir", folder, "--resume")
    assert said.code == 0, said.err
    assert "there is no checkpoint yet, so the run starts again" in said.err
    assert snaprl("evaluate", folder, "--best").code == 0


def test_there_is_no_best_where_nothing_was_evaluated(trained, snaprl):
    said = snaprl("evaluate", trained / "run", "--best")
    assert_refused(said, ".*/run has no best checkpoint: .*evaluation.every says .*")


def test_a_run_is_looked_at_while_it_goes_on(snaprl, task, tmp_path):
    """By the commands, again and again, in the face of checkpoints that come and go."""
    folder = tmp_path / "run"
    often = ["--steps", 10**9, "--training.checkpoint_every", 1280, "--training.report_every", 1280]
    command = [sys.executable, "-m", "snaprl.training.cli", "train", task, "--run-dir", folder]
    with subprocess.Popen([*map(str, [*command, *often])], stderr=subprocess.DEVNULL) as training:
        try:
            until_s = time.monotonic() + 100
            while not steps_of(folder / "checkpoints") and time.monotonic() < until_s:
                time.sleep(0.1)
            seen = []
            for _ in range(3):
                said = snaprl("evaluate", folder, "--episodes", 4)
                assert said.code == 0, said.err
                seen.append(json.loads(said.out.splitlines()[-1])["step"])
                said = snaprl("plot", folder, "--output", tmp_path / "curve.png")
                assert said.code == 0, said.err
            assert training.poll() is None
            assert seen == sorted(seen)
            assert seen[0] < seen[-1]
        finally:
            training.kill()


def test_what_tells_the_better_evaluation():
    better, worse = {"eval_valid_loss": 1.0, "eval_test_loss": 9.0}, {"eval_valid_loss": 2.0}
    assert measure.score(better) > measure.score(worse) > measure.score({"loss": 0.0})
    success = {"eval_success": 0.5, "eval_episode_return": 9.0}
    assert measure.score(success) == (0.0, 0.5)
    assert measure.score({"eval_success": None}) == measure.NO_SCORE < measure.score(worse)
    easy, hard = ({"level": level, "eval_loss": loss} for level, loss in ((1, 0.01), (9, 0.2)))
    assert measure.score(easy) < measure.score(hard) < measure.score({**hard, "eval_loss": 0.1})


# ---- films -----------------------------------------------------------------------------------


def test_a_film_shows_whole_episodes(trained, snaprl, tmp_path):
    path = tmp_path / "film.gif"
    said = snaprl("evaluate", trained / "run", "--video", path, "--episodes", 2)
    assert said.code == 0, said.err
    with Image.open(path) as film:
        frames = film.n_frames
        assert min(film.size) > 50
    found = re.fullmatch(rf"{path}: (\d+) frames\n", said.out)
    assert found
    # one for each state: at least cue, corridor and turn; a gif leaves out what does not change
    assert 2 * 4 < frames <= int(found[1]) <= 2 * 20 + 1


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # by whoever reads it here
def test_a_film_as_mp4_has_the_same_frames(trained, snaprl, tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    from imageio.v2 import get_reader  # pyright: ignore[reportMissingImports]

    path = tmp_path / "film.mp4"
    said = snaprl("evaluate", trained / "run", "--video", path, "--episodes", 2)
    assert (said.code, said.err) == (0, "")
    with get_reader(path) as film:
        assert said.out == f"{path}: {film.count_frames()} frames\n"


def test_an_environment_of_gymnasium_is_filmed(snaprl, task, tmp_path):
    pytest.importorskip("pygame")
    text = TASK.replace("kwargs = { length = 3 }", "id = 'CartPole-v1'").replace("512", "64")
    task.write_text(text)
    assert snaprl("train", task, "--run-dir", tmp_path / "run").code == 0
    path = tmp_path / "film.gif"
    said = snaprl("evaluate", tmp_path / "run", "--video", path, "--episodes", 1)
    assert said.code == 0, said.err
    assert path.stat().st_size > 1000


NO_FILM = {
    "kind": ("film.avi", r"--video .*film.avi: the name must end in .gif or .mp4"),
    "folder": ("absent/film.gif", r"--video .*: there is no folder .*absent"),
}


@pytest.mark.parametrize(("name", "sentence"), NO_FILM.values(), ids=NO_FILM)
def test_a_film_that_cannot_be_is_refused(trained, snaprl, tmp_path, name, sentence):
    said = snaprl("evaluate", trained / "run", "--video", tmp_path / name)
    assert_refused(said, sentence)


def test_what_writes_mp4_is_named_where_it_is_absent(trained, snaprl, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    said = snaprl("evaluate", trained / "run", "--video", tmp_path / "film.mp4")
    assert_refused(said, r".* needs imageio: pip install 'snaprl\[video\]', or write a .gif")


def test_an_environment_without_pictures_is_refused(snaprl, task, tmp_path):
    text = TASK.replace("{ length = 3 }", "{ good_steps = 9999 }")
    task.write_text(text.replace("[env]", "[env]\nid = 'tests/Pathological-v0'"))
    assert snaprl("train", task, "--run-dir", tmp_path / "run").code == 0
    said = snaprl("evaluate", tmp_path / "run", "--video", tmp_path / "film.gif")
    assert_refused(said, "tests/Pathological-v0 cannot be drawn: .*")
