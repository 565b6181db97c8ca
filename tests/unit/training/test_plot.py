"""Learning curves: the right runs together, under the right names, at the right heights."""

import dataclasses
import json
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from snaprl.training import config, figure, runs
from snaprl.training.errors import UserError
from snaprl.training.plot import MAX_POINTS, plot
from snaprl.training.schema import AgentConfig, Config, EnvConfig, SparsityConfig, TrainingConfig


@pytest.fixture
def run(tmp_path):
    """Makes a run's folder."""
    count = 0

    def make(what: Config | None, rows, folder: Path | None = None) -> Path:
        nonlocal count
        count += 1
        folder = folder or tmp_path / "runs" / f"run{count}"
        folder.mkdir(parents=True)
        if what:
            (folder / "config.toml").write_text(config.dumps(what))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return make


@pytest.fixture
def drawn(monkeypatch):
    """What is handed to the drawing."""
    seen = {}
    draw = figure.draw

    def spy(curves, **rest):
        seen.update(curves=curves, **rest)
        return draw(curves, **rest)

    monkeypatch.setattr(figure, "draw", spy)
    return seen


def method(name: str, *, seed: int = 0, unroll: int = 4, **env) -> Config:
    return Config(
        seed=seed,
        env=EnvConfig(kwargs=env),
        agent=AgentConfig(method=name),
        training=TrainingConfig(unroll=unroll),
    )


def rising(*values: float, name: str = "success") -> list[dict]:
    return [{"step": 100 * i, "wall_s": 1.0, name: v} for i, v in enumerate(values, start=1)]


def test_seeds_make_one_line_with_a_band(run, drawn):
    folders = [
        run(method("snap1", seed=seed), rising(*values))
        for seed, values in enumerate([(0.5, 0.7), (0.6, 0.9), (0.1, 0.2)])
    ]
    plot(folders)
    ((name, curve),) = drawn["curves"].items()
    assert name == "SnAp-1"
    np.testing.assert_allclose(curve.steps, [100, 200])
    np.testing.assert_allclose(curve.mean, [0.4, 0.6])
    np.testing.assert_allclose(curve.low, [0.1, 0.2])
    np.testing.assert_allclose(curve.high, [0.6, 0.9])
    assert curve.seeds == 3


def test_a_seed_counts_as_far_as_it_went(run, drawn):
    folders = [run(method("snap1"), rising(0.0, 0.0)), run(method("snap1", seed=1), rising(1.0))]
    plot(folders)
    (curve,) = drawn["curves"].values()
    np.testing.assert_allclose(curve.mean, [0.5, 0.0])


def test_seeds_that_report_at_other_steps_are_interpolated(run, drawn):
    one = [{"step": step, "loss": step / 100} for step in (100, 200, 300)]
    other = [{"step": step, "loss": step / 100} for step in (150, 250)]
    plot([run(method("snap1"), one), run(method("snap1", seed=1), other)])
    (curve,) = drawn["curves"].values()
    np.testing.assert_allclose(curve.steps, [100, 150, 200, 250, 300])
    np.testing.assert_allclose(curve.mean, curve.steps / 100)


def test_long_runs_are_averaged_and_short_ones_are_not(run, drawn):
    values = [i % 2 for i in range(10 * MAX_POINTS)]
    plot([run(method("snap1"), rising(*values))])
    (curve,) = drawn["curves"].values()
    assert len(curve.steps) == MAX_POINTS
    np.testing.assert_allclose(curve.mean, 0.5)
    plot([run(method("snap1"), rising(*values[:MAX_POINTS]))])
    (curve,) = drawn["curves"].values()
    np.testing.assert_allclose(curve.mean, values[:MAX_POINTS])


NAMES = [
    ([method("snap1"), method("bptt")], ["SnAp-1", "BPTT (unroll 4)"]),
    ([method("bptt"), method("bptt", unroll=40)], ["unroll 4", "unroll 40"]),
    (
        [method("rtrl"), method("bptt", unroll=40), method("bptt")],
        ["RTRL", "BPTT (unroll 40)", "BPTT (unroll 4)"],
    ),
    (
        [method("snap1"), method("snap1", unroll=1), method("bptt+snap1")],
        ["SnAp-1, unroll 4", "SnAp-1, unroll 1", "BPTT (unroll 4) + SnAp-1"],
    ),
    ([method("frozen", length=10), method("frozen", length=40)], ["length 10", "length 40"]),
    ([method("frozen"), method("snap1", hint=False)], ["frozen core", "SnAp-1, no hint"]),
    (
        [
            Config(),
            Config(agent=AgentConfig(cell="lstm", features=1024, encoder=(64, 32))),
            Config(agent=AgentConfig(last_action=False)),
        ],
        [
            "GRU, features 64, no encoder, last action",
            "LSTM, features 1,024, encoder 64-32, last action",
            "GRU, features 64, no encoder, no last action",
        ],
    ),
    ([Config(), Config(env=EnvConfig(id="Other-v1"))], ["TMaze", "Other-v1"]),
]


@pytest.mark.parametrize(("configs", "names"), NAMES)
def test_labels_say_what_differs(run, drawn, configs, names):
    plot([run(each, rising(0.5, 0.6)) for each in configs])
    assert list(drawn["curves"]) == names


def test_what_changes_nothing_that_is_learnt_makes_no_group(run, drawn):
    chatty = dataclasses.replace(Config(), training=TrainingConfig(report_every=1))
    plot([run(Config(), rising(0.5)), run(chatty, rising(0.7))])
    assert list(drawn["curves"]) == ["SnAp-1"]


def test_a_run_of_before_a_key_was_there_is_like_one_with_its_default(run, drawn):
    old = run(Config(), rising(0.5))
    tables = tomllib.loads((old / "config.toml").read_text())
    del tables["agent"]["sparsity"], tables["env"]["wrappers"], tables["actors"]
    (old / "config.toml").write_text(tomli_w.dumps(tables))
    sparse = SparsityConfig("uniform", {"density": 0.5})
    other = dataclasses.replace(Config(), agent=AgentConfig(sparsity=sparse))
    plot([old, run(Config(), rising(0.7)), run(other, rising(0.9))])
    assert list(drawn["curves"]) == ["sparsity dense", "sparsity uniform, density 0.5"]


def test_runs_without_a_config_are_called_by_their_folders(run, drawn):
    plot([run(None, rising(0.5)), run(None, rising(0.6))])
    assert list(drawn["curves"]) == ["run1", "run2"]


def test_groups_that_would_have_the_same_name_stay_apart(run, drawn):
    odd = run(Config(), rising(0.5))
    (odd / "config.toml").write_text("[agent]\nmethod = 'snap1'\n")
    odder = run(Config(), rising(0.6))
    (odder / "config.toml").write_text("[agent]\nmethod = 'snap1'\n[env]\n[new]\nkey = 1\n")
    oddest = run(Config(), rising(0.7))
    (oddest / "config.toml").write_text("[agent]\nmethod = 'snap1'\n[zzz]\n'key' = 1\n")
    plot([odd, odder, oddest])
    assert list(drawn["curves"]) == ["run1", "key 1", "key 1 (run3)"]


def test_labels_can_be_given_and_equal_ones_make_one_line(run, drawn):
    folders = [run(method(name), rising(0.5)) for name in ("snap1", "rtrl", "bptt")]
    plot(folders, labels=["online", "online", "truncated"])
    assert {name: curve.seeds for name, curve in drawn["curves"].items()} == {
        "online": 2,
        "truncated": 1,
    }
    with pytest.raises(UserError, match=r"^3 runs need as many labels, not 1$"):
        plot(folders, labels=["x"])


def test_a_method_of_another_version_keeps_its_name():
    assert runs.method_words("newer-than-we") == "newer-than-we"
    words = {"uoro": "UORO", "rflo": "RFLO", "kf_rtrl": "KF-RTRL", "ok_rtrl4": "OK-RTRL (rank 4)"}
    assert {name: runs.method_words(name, 8) for name in words} == words


@pytest.mark.parametrize(
    ("names", "metric", "words"),
    [
        (["loss", "episode_return", "success"], None, "success rate"),
        (["loss", "episode_return"], None, "episode return"),
        (["loss", "grad_norm"], None, "loss"),
        (["loss", "success"], "loss", "loss"),
        (["grad_norm", "loss"], "grad_norm", "grad norm"),
    ],
)
def test_the_most_telling_metric_is_drawn(run, drawn, names, metric, words):
    rows = [{"step": 1, **dict.fromkeys(names, 0.5)}, {"step": 2, "loss": None}]
    plot([run(Config(), rows)], metric=metric)
    assert drawn["y_label"] == words
    assert drawn["unit_range"] == (words == "success rate")


def test_the_title_says_what_the_runs_share(run, drawn):
    plot(
        [
            run(method("snap1", length=10, hint=True), rising(0.5)),
            run(method("rtrl", length=10), rising(1)),
        ]
    )
    assert drawn["title"] == "TMaze, length 10"
    assert drawn["x_label"] == "environment steps"
    plot([run(Config(), rising(2.0, name="bits_per_char"))], metric="bits_per_char")
    assert drawn["x_label"] == "tokens"


def test_both_files_are_written_and_say_what_they_show(run, tmp_path):
    folders = [
        run(method(name, seed=seed), rising(0.5, 0.9))
        for name in ("snap1", "bptt")
        for seed in (0, 1)
    ]
    png, svg = plot(folders, tmp_path / "new" / "picture.png", chance=0.5)
    assert (png, svg) == (tmp_path / "new" / "picture.png", tmp_path / "new" / "picture.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    ET.parse(svg)
    for words in (
        "SnAp-1",
        "BPTT (unroll 4)",
        "chance",
        "success rate",
        "environment steps",
        "Lines: mean of 2 seeds. Bands: from the lowest seed to the highest.",
    ):
        assert f"<!-- {words} -->" in svg.read_text()


def test_where_files_go_by_default(run, tmp_path):
    first, second = run(Config(), rising(0.5)), run(Config(), rising(0.5))
    assert plot([first]) == [first / "curve.png", first / "curve.svg"]
    both = tmp_path / "runs"
    assert plot([first, second]) == [both / "curves.png", both / "curves.svg"]
    assert plot([first], tmp_path / "v1.2") == [tmp_path / "v1.2.png", tmp_path / "v1.2.svg"]


def test_a_torn_line_and_one_report_are_enough(run):
    folder = run(Config(), [{"step": 0, "success": 0.5}])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "succ')
    plot([folder])


def test_what_cannot_be_plotted_is_said_in_one_sentence(run, tmp_path):
    good = run(Config(), rising(0.5))
    missing = tmp_path / "missing"
    empty = run(Config(), [])
    wordless = run(Config(), [{"step": 1, "wall_s": 1.0}])
    broken = run(Config(), rising(0.5))
    (broken / "config.toml").write_text("x =")
    lossy = run(method("rtrl"), rising(0.5, name="loss"))
    (tmp_path / "file").touch()
    wrong = [
        ([], {}, "there is nothing to plot: name the folder of a run"),
        ([missing], {}, f"{missing} is no run's folder: it has no metrics.jsonl"),
        ([empty], {}, f"{empty} holds no report yet: let its run go on for a while"),
        ([wordless], {}, "name a metric to plot: the runs report nothing"),
        (
            [good, lossy],
            {"metric": "sucess"},
            "no run reports 'sucess': did you mean 'success', or one of loss?",
        ),
        ([good, lossy], {}, f"{lossy} has no 'success': leave it out"),
        (
            [broken],
            {},
            f"{broken}/config.toml is not valid TOML: Invalid value (at end of document)",
        ),
        (
            [good],
            {"output": tmp_path / "file" / "x"},
            f"{tmp_path}/file/x cannot be written (File exists): name another place to write to",
        ),
    ]
    for folders, options, sentence in wrong:
        with pytest.raises(UserError) as caught:
            plot(folders, **options)
        assert str(caught.value) == sentence


@given(st.lists(st.floats(0, 300), max_size=9), st.floats(1, 30))
def test_names_are_pushed_apart_in_order_and_no_further_than_needed(heights, gap):
    places = figure.spread(heights, gap)
    order = sorted(range(len(heights)), key=heights.__getitem__)
    for low, high in zip(order, order[1:], strict=False):
        assert places[high] - places[low] >= gap * (1 - 1e-9)
    assert sum(places) == pytest.approx(sum(heights), abs=1e-6)
    far_apart = [100.0 * i for i in range(len(heights))]
    assert figure.spread(far_apart, gap) == far_apart
    # up from the floor, those that would lie below it alone
    raised = figure.spread(heights, gap, 50)
    assert min(raised, default=50) >= 50
    for low, high in zip(order, order[1:], strict=False):
        assert raised[high] - raised[low] >= gap * (1 - 1e-9)
    if min(places, default=50) >= 50:
        assert raised == places


def test_levels_are_counted_in_whole_numbers(run, drawn):
    plot([run(method("snap1"), rising(3, 3, 4, 5, name="level"))])
    (axes,) = figure.draw(**drawn).axes
    assert all(tick == round(tick) for tick in axes.get_yticks())


def test_nothing_global_is_touched_and_matplotlib_waits_until_it_is_needed(run):
    folder = run(Config(), rising(0.5, 0.6))
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from snaprl.training.plot import plot\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import matplotlib\n"
        "before = dict(matplotlib.rcParams)\n"
        f"plot([Path({str(folder)!r})])\n"
        "assert dict(matplotlib.rcParams) == before\n"
        "assert 'jax' not in sys.modules\n"
        "from matplotlib import pyplot\n"
        "assert not pyplot.get_fignums()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
