"""`snaprl inspect`: numbers that agree, pictures that are there, sentences where it cannot be."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snaprl.cores import analysis
from snaprl.training import cli, config, inspection
from snaprl.training.build import build
from snaprl.training.checkpoints import Checkpoints
from snaprl.training.inspection import command, numbers, pictures, subject
from snaprl.training.inspection.stream import seen

DOCS = Path(__file__).resolve().parents[3] / "docs"
TASK = """
[env]
kwargs = { length = 3 }
[agent]
features = 4
fan_in = 2
encoder = [5]
method = "snap2"
[training]
streams = 2
unroll = 4
steps = 16
loop = "LOOP"
"""
CORE = ["--cell", "gru", "--units", "5", "--inputs", "2", "--fan-in", "2"]
SHORT = ["--steps", "6", "--streams", "2"]


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module", autouse=True)
def surroundings():
    """jax's settings are left as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_prepare_jax", lambda: None)
        yield


@pytest.fixture
def inspect(capsys) -> Callable[..., Said]:
    def call(*arguments: object) -> Said:
        try:
            code = cli.main(["inspect", *(str(a) for a in arguments)])
        except SystemExit as end:
            code = end.code
        return Said(code, *capsys.readouterr())

    return call


@pytest.fixture
def few(monkeypatch):
    """Fewer methods, for each is compiled."""
    some = ("SnAp-1", "SnAp-2", "BPTT (window 1)")
    every = analysis.candidates
    fewer = lambda orders: {name: c for name, c in every(orders).items() if name in some}  # noqa: E731
    monkeypatch.setattr(analysis, "candidates", fewer)


@pytest.fixture(scope="module", params=["device", "host"])
def trained(request, tmp_path_factory) -> Path:
    """A short run, with the environment on either side."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "task.toml").write_text(TASK.replace("LOOP", request.param), encoding="utf-8")
    assert cli.main(["train", str(folder / "task.toml"), "--run-dir", str(folder / "run")]) == 0
    return folder / "run"


def assert_written(said: Said, folder: Path, picture: str) -> dict:
    """Three files are named last, and are what they claim to be; gives back the numbers."""
    assert (said.code, said.err) == (0, "")
    files = [folder / f"inspect-{picture}.{kind}" for kind in ("png", "svg", "json")]
    assert said.out.splitlines()[-3:] == [str(file) for file in files]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    record = json.loads(files[2].read_text())
    drawing = files[1].read_text(encoding="utf-8")
    assert ET.fromstring(drawing).tag.endswith("svg")
    assert f"<!-- {record['core']} -->" in drawing  # text is drawn, and said beside it
    return record


def assert_refused(said: Said, sentence: str) -> None:
    assert (said.code, said.out) == (2, ""), said
    assert re.fullmatch(f"snaprl: {sentence}\n", said.err), said.err


# ---- a random core ---------------------------------------------------------------------------


def test_pattern(inspect, tmp_path):
    record = assert_written(inspect("pattern", *CORE, "--out", tmp_path), tmp_path, "pattern")
    # a unit reads itself and one other in three gates; 2 inputs; 3 biases of inputs, 1 of n
    assert record["weights"] == 5 * (3 * (2 + 2) + 3 + 1)
    orders = record["orders"]
    assert orders["SnAp-1"]["share kept"] == pytest.approx(1 / 5)
    assert orders["SnAp-2"]["share kept"] == pytest.approx(2 / 5)
    assert orders["SnAp-1"]["entries"] == record["weights"]
    assert "order 2: 40.0 % of the entries kept" in (tmp_path / "inspect-pattern.svg").read_text()


def test_bias(inspect, tmp_path):
    said = inspect("bias", *CORE, *SHORT, "--orders", 1, 9, "--out", tmp_path / "new")
    record = assert_written(said, tmp_path / "new", "bias")
    assert (record["steps"], record["streams"], record["exact_from_order"]) == (6, 2, 9)
    assert record["over_time"].keys() == {"SnAp-1"}
    over_time = record["over_time"]["SnAp-1"]
    assert over_time["share"][0] == pytest.approx(1)
    assert over_time["error"][0] == pytest.approx(0)
    means = record["means"]["SnAp-1"]
    assert all(means[name] == pytest.approx(np.mean(over_time[name])) for name in over_time)
    assert f"{means['error']:.4f}" in said.out
    assert "SnAp-9 is exact." in said.out
    again = inspect("bias", *CORE, *SHORT, "--orders", 1, 9, "--out", tmp_path / "again")
    assert again.out.replace("again", "new") == said.out
    for file in (tmp_path / "new").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_cosine(inspect, tmp_path, few):
    said = inspect("cosine", *CORE, *SHORT, "--out", tmp_path)
    record = assert_written(said, tmp_path, "cosine")
    for name, row in record["means"].items():
        over_time = record["over_time"][name]
        assert row["mean"] == pytest.approx(np.mean(over_time))
        assert row["second half"] == pytest.approx(np.mean(over_time[3:]))
        assert re.search(rf"^{re.escape(name)} +{row['mean']:.4f}", said.out, re.MULTILINE)


def test_a_gain_makes_weights_larger_and_a_fan_in_does_not_weaken_them():
    def weights(fan_in, gain):
        core = subject.random(
            "gru", units=64, inputs=2, fan_in=fan_in, gain=gain, steps=1, streams=1, seed=0
        )
        kernel, mask = np.asarray(core.params["hn"]["kernel"]), core.mask.get("hn", {})
        return np.linalg.norm(kernel * mask.get("kernel", 1))

    assert weights(None, 2.0) == pytest.approx(2 * weights(None, 1.0))
    assert weights(16, 1.0) == pytest.approx(weights(None, 1.0), rel=0.1)


# ---- a run -----------------------------------------------------------------------------------


def test_a_run_is_inspected_as_it_was_trained(trained, inspect):
    found = subject.of_run(trained, steps=12, streams=3, seed=0)
    assert found.xs.shape == (12, 3, 5)
    assert found.name == "TMaze, length 3, GRU, 4 units, fan-in 2"
    like = build(config.load(trained / "config.toml")).agent
    variables = jax.eval_shape(lambda: like.init(jax.random.key(0), 2))
    assert jax.tree.map(np.shape, found.params) == jax.tree.map(
        lambda leaf: leaf.shape, variables["params"]["core"]["cell"]
    )
    kept = {name: int(leaf["kernel"].sum()) for name, leaf in found.mask.items()}
    assert kept == {"hr": 4 * 2, "hz": 4 * 2, "hn": 4 * 2}
    assert bool(found.resets[0].all())
    assert 0 < int(found.resets[1:].sum()) < found.resets[1:].size
    # at an episode's start there is neither an action nor a reward: all mazes look alike but for
    # the cue
    starts = np.asarray(found.xs)[np.asarray(found.resets)]
    assert len(np.unique(starts.round(5), axis=0)) <= 2
    record = assert_written(inspect("bias", trained, *SHORT), trained, "bias")
    assert record["core"] == found.name
    assert "TMaze" in (trained / "inspect-bias.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("loop", ["device", "host"])
def test_the_core_reads_observations_as_the_policy_normalised_them(loop):
    blind = {"last_action": False, "last_reward": False, "normalise_observations": True}
    settings = {"env": {"kwargs": {"length": 3}}, "agent": blind, "training": {"loop": loop}}
    described = config.from_tables(settings)
    built = build(described)
    variables = built.agent.init(jax.random.key(0), 2)
    held = variables["observations"]
    spread = held | {"variance": jax.tree.map(lambda x: x + 1e12, held["variance"])}
    sizes = [
        float(
            jnp.abs(seen(described, built, v, steps=4, streams=2, key=jax.random.key(1))[0]).max()
        )
        for v in (variables, variables | {"observations": spread})
    ]
    assert sizes[0] == pytest.approx(1.0)
    assert 0 < sizes[1] < 1e-5


def test_the_parameters_are_those_of_the_last_checkpoint(trained, monkeypatch):
    seen = []
    restore = Checkpoints.restore

    def spy(self, like):
        seen.append(restore(self, like))
        return seen[-1]

    monkeypatch.setattr(Checkpoints, "restore", spy)
    found = subject.of_run(trained, steps=1, streams=1, seed=0)
    held = seen[0].state.learner.variables["params"]["core"]["cell"]
    assert jax.tree.all(jax.tree.map(np.array_equal, found.params, dict(held)))


# ---- how it is drawn -------------------------------------------------------------------------


def test_lines_are_averaged_in_pieces_and_methods_that_agree_share_one():
    values = np.arange(20.0).reshape(10, 2)
    line = pictures.Line.of(values, points=5)
    assert line.steps.tolist() == [1.5, 3.5, 5.5, 7.5, 9.5]
    assert line.mean.tolist() == [1.5, 5.5, 9.5, 13.5, 17.5]
    assert line.low is not None
    assert line.high is not None
    assert (line.high - line.low).tolist() == [1] * 5
    assert pictures.Line.of(values[:, :1]).low is None
    found = {"a": values, "b": values + 1, "c": values + 1e-6}
    assert list(numbers._alike(found)) == ["a, c", "b"]


def test_many_names_of_one_line_are_written_in_several():
    names = ", ".join(f"BPTT (window {k})" for k in range(9))
    panel = pictures.Panel("share", {names: pictures.Line.of(np.ones((4, 1)))})
    (axes,) = pictures.lines([panel], "title", "caption").axes
    (written,) = [text for text in axes.texts if "window 8" in text.get_text()]
    assert max(map(len, written.get_text().split("\n"))) <= pictures.NAME_WIDTH


@pytest.mark.parametrize("units", [2, 40])
def test_patterns_of_few_and_of_many_units(units):
    entered = np.repeat(np.arange(units), 3)
    own = np.arange(units)[:, None] == entered
    drawn = pictures.patterns({1: own, 2: np.ones_like(own)}, {1: 0.1, 2: 1.0}, entered, "both")
    first, second = (axes.images[0].get_array() for axes in drawn.axes)
    assert np.unique(first).tolist() == [0, 1]  # nothing is new in the first
    assert ((second == 2) == ~own).all()


# ---- what is said ----------------------------------------------------------------------------


def test_help(inspect):
    said = inspect("--help")
    assert said.code == 0
    assert all(name in said.out for name in command.TEXTS)
    for name in command.TEXTS:
        out = inspect(name, "--help").out
        assert f"usage: snaprl inspect {name}" in out
        assert all(flag in out for flag in ("RUN", "--fan-in", "--orders", "--out"))
        assert ("--steps" in out) == (name != "pattern")


def test_the_page_shows_small_pictures_and_names_commands_that_are_there():
    page = DOCS / "inspect.md"
    text = page.read_text(encoding="utf-8")
    for name in command.TEXTS:
        assert f"(inspect-{name}.png)" in text
        assert (DOCS / f"inspect-{name}.png").stat().st_size < 80_000
    (core,) = re.findall('^core="(.*)"$', text, re.MULTILINE)
    lines = re.findall("^snaprl (inspect [^#\n]*)", text, re.MULTILINE)
    assert len(lines) == 6
    for line in lines:
        known, rest = cli._parser().parse_known_args(line.replace("$core", core).split())
        assert not rest
        inspection.check(known)


def test_the_command_starts_light():
    code = (
        "import sys; from snaprl.training import cli\n"
        "try: cli.main(['inspect', 'bias', '--units', '0'])\n"
        "finally: print('jax' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False False\n"


REFUSED = {
    "units": (["bias", "--units", "0"], "--units is 0: give 1 or more"),
    "fan-in": (["pattern", "--fan-in", "0"], "--fan-in is 0: give 1 or more"),
    "steps": (["cosine", "--steps", "-1"], "--steps is -1: give 1 or more"),
    "gain": (["bias", "--gain", "nan"], "--gain is nan: give a number above 0"),
    "order": (["bias", "--orders", "2", "0"], "--orders has 0: bias takes 1 or more"),
    "cell": (["bias", "--cell", "gruu"], "there is no cell 'gruu': did you mean 'gru', .*"),
    "few weights": (
        ["pattern", "--cell", "sparse_gru"],
        "--cell sparse_gru: its influence is that of --cell gru --fan-in K",
    ),
    "many": (
        [*["pattern", "--units", "5"], *["--fan-in", "6"]],
        "--fan-in: fan_in is 6, but a kernel of shape .5, 5. has 5 inputs; use a smaller fan_in",
    ),
    "none": (
        ["pattern", "--cell", "lru", "--fan-in", "2"],
        "--fan-in: the units of lru read no others; leave it out",
    ),
    "run": (["bias", "nowhere"], "nowhere is no run: there is no config.toml in it"),
    "both": (
        ["bias", "nowhere", "--units", "3"],
        "nowhere says what its core is: leave --units out",
    ),
    "large": (
        ["bias", "--units", "400", "--steps", "1"],
        "GRU, 400 units, 4 inputs: the exact influence has 194,560,000 entries per stream, and to "
        r"look at it takes about 8.7 GiB where 2 are allowed; inspect a smaller or a .*",
    ),
    "exact": (
        ["bias", "--orders", "2", "3", "--steps", "1"],
        "GRU, 16 units, 4 inputs: order 2 is exact, so there is nothing to compare; give .*",
    ),
    "diagonal": (
        ["bias", "--cell", "indrnn", "--steps", "1"],
        ".*: order 1 is exact, so there is nothing to compare; inspect another core",
    ),
    "inexact": (
        ["cosine", "--cell", "layer_norm_gru", "--steps", "1"],
        "the derivatives of LayerNormGRUCell leave its statistics out, .*",
    ),
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(inspect, arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(inspect(*arguments), sentence)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_refused(inspect, tmp_path):
    (tmp_path / "file").write_text("no folder")
    said = inspect("pattern", *CORE, "--out", tmp_path / "file")
    assert said.code == 2
    assert re.fullmatch("snaprl: .*file cannot be written to .*: give another --out\n", said.err)
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_picture_that_there_is_not_is_refused(inspect):
    for arguments in ([], ["biass"]):
        said = inspect(*arguments)
        assert (said.code, said.out) == (2, "")
        assert "usage: snaprl" in said.err
    said = inspect("bias", "--unit", "3")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("snaprl: unknown argument --unit: did you mean '--units', or one of")
