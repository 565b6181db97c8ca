"""Config files and flags: what is read is what was meant, and what is wrong is said."""

import dataclasses
import math
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaprl.training import config, parts, typed
from snaprl.training.errors import UserError, nearest, suggest
from snaprl.training.schema import (
    AgentConfig,
    Config,
    EnvConfig,
    TrainingConfig,
)
from snaprl.training.supervised import registry
from snaprl.training.supervised.schema import SupervisedConfig
from snaprl.training.typed import Named, Within

FILE = """
seed = 3
[env.kwargs]
corridor_length = 10
hint = true
[agent]
encoder = [64, 32]
"""


@pytest.fixture
def toml(tmp_path: Path):
    """Writes a config file."""

    def write(text: str) -> Path:
        path = tmp_path / "x.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_missing_keys_take_their_defaults(toml):
    loaded = config.load(toml(FILE))
    assert loaded == Config(
        seed=3,
        env=EnvConfig(kwargs={"corridor_length": 10, "hint": True}),
        agent=AgentConfig(encoder=(64, 32)),
    )
    assert config.load(toml("")) == Config()


def test_a_whole_number_may_be_written_with_an_exponent(toml):
    loaded = config.load(toml("training.steps = 2e5\nagent.encoder = [64.0]\nenv.kwargs.x = 1e1"))
    assert (loaded.training.steps, loaded.agent.encoder) == (200_000, (64,))
    whole = loaded.training.steps, *loaded.agent.encoder
    assert [type(number) for number in whole] == [int, int]
    assert type(loaded.env.kwargs["x"]) is float  # it may be that


NAMES = {
    parts.check_cell: [*parts.CELLS],
    parts.check_method: [*parts.METHODS, "snap12"],
    parts.check_optimizer: parts.OPTIMIZERS,
    parts.check_pattern: parts.PATTERNS,
    registry.check_task: [*registry.TASKS],
}
SCALARS = {
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats(allow_nan=False),
    str: st.text(),
}


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """All values that a field of the schema may have."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        rules = [rule for rule in annotation.__metadata__ if isinstance(rule, Within | Named)]
        if not rules:
            return values(arguments[0])
        rule = rules[0]
        if isinstance(rule, Named):
            return st.sampled_from(NAMES[rule.check])
        high = None if rule.high == math.inf else rule.high
        if arguments[0] is int:
            return st.integers(int(rule.low), high if high is None else int(high))
        excluded = not rule.low_included
        return st.floats(rule.low, high, exclude_min=excluded, allow_infinity=False)
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation, include_extras=True)
        return st.builds(
            typing.cast(type, annotation), **{name: values(hint) for name, hint in hints.items()}
        )
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(), values(arguments[1]), max_size=3)
    return st.one_of([SCALARS[kind] for kind in arguments or (annotation,)])


@pytest.mark.parametrize("schema", [Config, SupervisedConfig])
@given(data=st.data())
def test_loading_what_was_dumped_gives_an_equal_config(schema, data, tmp_path: Path):
    before = data.draw(values(schema))
    path = tmp_path / "x.toml"
    path.write_text(config.dumps(before), encoding="utf-8", newline="")
    assert config.load(path) == before
    config.check(before)


def test_a_dumped_config_names_every_key(toml):
    text = config.dumps(Config())
    assert all(f"{key.rpartition('.')[2]}" in text for key in typed.keys(Config))
    assert text.count("= ") == len(list(typed.keys(Config))) - 3  # empty tables


FLAGS = [
    (["--seed", "5"], ("seed",), 5),
    (["--steps", "7"], ("training", "steps"), 7),
    (["--training.steps=7"], ("training", "steps"), 7),
    (["--steps", "2e5"], ("training", "steps"), 200_000),
    (["--steps", "200_000"], ("training", "steps"), 200_000),
    (["--seed", "4294967295"], ("seed",), 4294967295),
    (["--steps", "7", "--steps", "8"], ("training", "steps"), 8),
    (
        ["--agent.sparsity.kwargs.density", "0.1", "--agent.sparsity.kwargs.new-key=x"],
        ("agent", "sparsity", "kwargs"),
        {"density": 0.1, "new_key": "x"},
    ),
    (["--method", "bptt"], ("agent", "method"), "bptt"),
    (["--agent.method", "bptt+snap1"], ("agent", "method"), "bptt+snap1"),
    (["--agent.encoder", "1", "2"], ("agent", "encoder"), (1, 2)),
    (["--agent.encoder"], ("agent", "encoder"), ()),
    (["--agent.last-action", "false"], ("agent", "last_action"), False),
    (["--agent.last_action", "False"], ("agent", "last_action"), False),
    (["--optimizer.learning-rate", "3e-4"], ("optimizer", "learning_rate"), 3e-4),
    (["--loss.ppo.ratio-clip", "0.3"], ("loss", "ppo", "ratio_clip"), 0.3),
    (["--loss.name", "ppo"], ("loss", "name"), "ppo"),
    (["--optimizer.rates.core", "0.5"], ("optimizer", "rates", "core"), 0.5),
    (["--env.kwargs.corridor-length", "40"], ("env", "kwargs", "corridor_length"), 40),
    (["--env.kwargs.hint", "false"], ("env", "kwargs", "hint"), False),
    (["--env.kwargs.hint=false"], ("env", "kwargs", "hint"), False),
    (["--env.kwargs.new_key", "-2"], ("env", "kwargs", "new_key"), -2),
    (["--env.kwargs.new-key=0.5"], ("env", "kwargs", "new_key"), 0.5),
    (["--env.kwargs.new", "true"], ("env", "kwargs", "new"), True),
    (["--env.kwargs.new", "north"], ("env", "kwargs", "new"), "north"),
    (["--env.kwargs.new", "2026-01-01"], ("env", "kwargs", "new"), "2026-01-01"),
]


@pytest.mark.parametrize(("flags", "path", "expected"), FLAGS, ids=lambda x: str(x))
def test_a_flag_replaces_one_value_and_no_other(toml, flags, path, expected):
    before, after = (config.load(toml(FILE), overrides) for overrides in ([], flags))
    tables = dataclasses.asdict(before)
    table = tables
    for name in path[:-1]:
        table = table[name]
    table[path[-1]] = expected
    assert dataclasses.asdict(after) == tables
    value = dataclasses.asdict(after)
    for name in path:
        value = value[name]
    assert type(value) is type(expected)


SUPERVISED_FLAGS = [
    (["--method", "bptt"], ("model", "method"), "bptt"),
    (["--steps", "7"], ("training", "steps"), 7),
    (["--model.readout", "8", "9"], ("model", "readout"), (8, 9)),
    (["--optimizer.name", "sgd"], ("optimizer", "name"), "sgd"),
    (["--task.kwargs.window", "9"], ("task", "kwargs", "window"), 9),
    (["--task.kwargs.new-key=0.5"], ("task", "kwargs", "new_key"), 0.5),
    (["--optimizer.kwargs.b1=0.8"], ("optimizer", "kwargs", "b1"), 0.8),
]


@pytest.mark.parametrize(("flags", "path", "expected"), SUPERVISED_FLAGS, ids=lambda x: str(x))
def test_a_file_with_a_task_is_supervised_and_has_flags_of_its_own(toml, flags, path, expected):
    file = toml("[task]\nname = 'copy'\nkwargs = { window = 3 }")
    before, after = (config.load(file, overrides) for overrides in ([], flags))
    assert type(before) is type(after) is SupervisedConfig
    tables = dataclasses.asdict(before)
    table = tables
    for name in path[:-1]:
        table = table[name]
    table[path[-1]] = expected
    assert dataclasses.asdict(after) == tables


def test_an_unknown_flag_of_a_task_is_named(toml):
    with pytest.raises(UserError) as caught:
        config.load(toml("[task]"), ["--model.featurs", "3"])
    assert str(caught.value) == "unknown flag --model.featurs: did you mean --model.features?"
    with pytest.raises(UserError, match="unknown key 'task.nam' in .*: did you mean 'task.name'"):
        config.load(toml("[task]\nnam = 'copy'"))


IN_FILE = [
    ("agent.methd = 'x'", "unknown key 'agent.methd' in {}: did you mean 'agent.method'?"),
    ("steps = 3", "unknown key 'steps' in {}: did you mean 'training.steps'?"),
    ("[agnt]\ncell = 'gru'", "unknown key 'agnt' in {}: did you mean 'agent'?"),
    (
        "zork = 1",
        "unknown key 'zork' in {}: known here: seed, env, agent, loss, optimizer, training, "
        "actors, evaluation",
    ),
    ("agent.features = 'a'", "'agent.features' in {} must be a whole number, not 'a'"),
    ("agent.features = true", "'agent.features' in {} must be a whole number, not true"),
    ("agent.features = 1.5", "'agent.features' in {} must be a whole number, not 1.5"),
    ("agent.last_action = 1", "'agent.last_action' in {} must be true or false, not 1"),
    ("agent.encoder = 3", "'agent.encoder' in {} must be a list, not 3"),
    ("agent.encoder = [3, 0]", "'agent.encoder' in {} must be at least 1, not 0"),
    (
        "loss.ppo.ratio = 0.1",
        "unknown key 'loss.ppo.ratio' in {}: did you mean 'loss.ppo.ratio_clip'?",
    ),
    (
        "loss.name = 'pppo'",
        "'loss.name' in {} cannot be 'pppo': did you mean 'ppo', or one of actor_critic, impala?",
    ),
    ("agent = 3", "'agent' in {} must be a table, not 3"),
    ("[enviroment]\nid = 'x'", "unknown key 'enviroment' in {}: did you mean 'env'?"),
    ("[eval]\nepisodes = 9", "unknown key 'eval' in {}: did you mean 'evaluation'?"),
    ("seed = inf", "'seed' in {} must be a whole number, not inf"),
    ("seed = 1e10", "'seed' in {} must be between 0 and 4294967295, not 10000000000"),
    ("loss.discount = 'x'", "'loss.discount' in {} must be a number, not 'x'"),
    ("loss.discount = 1.5", "'loss.discount' in {} must be between 0 and 1, not 1.5"),
    ("loss.value_cost = inf", "'loss.value_cost' in {} must be finite and at least 0, not inf"),
    (
        "optimizer.learning_rate = 0",
        "'optimizer.learning_rate' in {} must be greater than 0, not 0.0",
    ),
    (
        "optimizer.learning_rate = nan",
        "'optimizer.learning_rate' in {} must be finite and greater than 0, not nan",
    ),
    ("training.steps = 0", "'training.steps' in {} must be at least 1, not 0"),
    ("training.streams = -1", "'training.streams' in {} must be at least 1, not -1"),
    ("training.unroll = 0", "'training.unroll' in {} must be at least 1, not 0"),
    ("seed = -1", "'seed' in {} must be between 0 and 4294967295, not -1"),
    (
        "training.loop = 'devic'",
        "'training.loop' in {} cannot be 'devic': did you mean 'device', or one of auto, host?",
    ),
    (
        "agent.cell = 'gro'",
        "'agent.cell' in {}: there is no cell 'gro': did you mean 'gru', or one of elstm, "
        "indrnn, layer_norm_gru, layer_norm_lstm, lru, lstm, mgu, optimized_lstm, rtu, simple, "
        "sparse_gru, sparse_lstm, sparse_simple?",
    ),
    (
        "agent.method = 'snap01'",
        "'agent.method' in {}: there is no gradient method 'snap01': did you mean 'snap1', or one "
        "of bptt, bptt+rtrl, bptt+snap1, eprop, frozen, kf_rtrl, ok_rtrl4, rflo, rtrl, uoro?",
    ),
    (
        "env.kwargs.day = 2026-01-01",
        "'env.kwargs.day' in {} must be true or false, a whole number, a number or a string, not "
        "2026-01-01 of type date",
    ),
    (
        "seed = 1\nx =\n",
        "{} is not valid TOML: Invalid value (at line 2, column 4)",
    ),
]


@pytest.mark.parametrize(("text", "sentence"), IN_FILE, ids=[text for text, _ in IN_FILE])
def test_what_is_wrong_in_a_file_is_said_in_one_sentence(toml, text, sentence):
    path = toml(text)
    with pytest.raises(UserError) as caught:
        config.load(path)
    assert str(caught.value) == sentence.format(path)


ON_THE_LINE = [
    (["--agent.methd", "x"], "unknown flag --agent.methd: did you mean --agent.method?"),
    (["--stps=4"], "unknown flag --stps: did you mean --steps?"),
    (["--run-dri", "x"], "unknown flag --run-dri: did you mean --run-dir?"),
    (["--zzz", "4"], "unknown flag --zzz: --help lists all"),
    (["zork"], "'zork' is no flag: values are set by --KEY VALUE"),
    (["--training.unroll", "0"], "'training.unroll' must be at least 1, not 0"),
    (
        ["--env.kwargs.lenth"],
        "--env.kwargs.lenth has no value: give it one by --env.kwargs.lenth VALUE",
    ),
    (
        ["--env.kwargs.x", "--seed", "3"],
        "--env.kwargs.x has no value: give it one by --env.kwargs.x VALUE",
    ),
]


@pytest.mark.parametrize(("flags", "sentence"), ON_THE_LINE, ids=lambda x: str(x))
def test_what_is_wrong_on_the_command_line_is_said_in_one_sentence(toml, flags, sentence):
    with pytest.raises(UserError) as caught:
        config.load(toml(FILE), flags, known_flags=["--run-dir"])
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "flags", [["--training.unroll", "x"], ["--training.loop", "x"], ["--seed"]]
)
def test_a_flag_with_an_unreadable_value_ends_the_program(toml, flags, capsys):
    with pytest.raises(SystemExit) as caught:
        config.load(toml(FILE), flags)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert flags[0] in err
    assert not out


def test_help_lists_every_flag_with_the_values_of_the_file(toml, capsys):
    with pytest.raises(SystemExit) as caught:
        config.load(toml(FILE), ["--help"], prog="snaprl train x")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "usage: snaprl train x" in text
    for key in typed.keys(Config):
        assert key.replace("_", "-") in text
    assert "--env.kwargs.corridor-length" in text
    assert "(default: 64 32)" in text


def test_a_file_that_is_not_there_is_refused_with_those_that_are(tmp_path, monkeypatch):
    for name in ("tmaze", "copy"):
        (tmp_path / f"{name}.toml").write_text("seed = 9")
    known = {file.stem: file for file in tmp_path.glob("*.toml")}
    monkeypatch.setattr(config, "shipped", lambda: known)
    assert config.load("tmaze").seed == 9
    with pytest.raises(UserError, match=r"^there is no config 'tmze': did you mean 'tmaze', or"):
        config.load("tmze")
    with pytest.raises(UserError, match=r"^there is no config 'zork': known: copy, tmaze$"):
        config.load("zork")
    with pytest.raises(UserError, match=r"^there is no file 'no/copi.toml': did you mean 'copy'"):
        config.load("no/copi.toml")
    with pytest.raises(UserError, match="there is no file"):
        config.load(tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="is not valid TOML"):
        config.load(path)


def test_names_are_found_in_the_package_and_beside_it_in_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "snaprl"
    monkeypatch.setattr(config, "__file__", str(package / "training" / "config.py"))
    for folder in (package / "configs", tmp_path / "configs"):
        folder.mkdir(parents=True)
    inside, beside = package / "configs" / "a.toml", tmp_path / "configs" / "b.toml"
    inside.touch()
    beside.touch()
    # a folder beside an installed package is somebody else's
    assert config.shipped() == {"a": inside}
    (tmp_path / "pyproject.toml").touch()
    assert config.shipped() == {"a": inside, "b": beside}


def test_a_config_made_in_python_is_checked_too():
    with pytest.raises(UserError, match="'training.steps' must be at least 1, not 0"):
        config.check(Config(training=TrainingConfig(steps=0)))
    with pytest.raises(UserError, match="'seed' must be a whole number, not 3 of type int64"):
        config.check(Config(seed=np.int64(3)))
    for wrong in ("tmaze", {}, Config):
        with pytest.raises(UserError, match="is no Config and .*config.load makes one of a file"):
            config.check(wrong)


def test_a_checked_config_is_what_a_file_would_give():
    made: Any = Config(agent={"encoder": [64]}, training=TrainingConfig(steps=5))
    checked = config.check(made)
    assert checked == Config(agent=AgentConfig(encoder=(64,)), training=TrainingConfig(steps=5))


def test_values_are_replaced_by_dotted_key():
    values = {"agent.features": 3, "env.kwargs.length": 5, "loss.ppo.epochs": 2, "seed": 4}
    found = config.replace(Config(), values)
    assert (found.agent.features, found.seed, found.loss.ppo.epochs) == (3, 4, 2)
    assert found.env.kwargs == {"length": 5}
    assert config.load("tmaze", values) == config.replace(config.load("tmaze"), values)
    assert config.replace(found, {}) == found


WRONG_VALUES = [
    ({"agent.featurs": 3}, "unknown key 'agent.featurs': did you mean 'agent.features'?"),
    ({"agnt.features": 3}, "unknown key 'agnt': did you mean 'agent'?"),
    ({"agent.features": -3}, "'agent.features' must be at least 1, not -3"),
    ({"seed.x": 3}, "'seed' must be a whole number, not {'x': 3}"),
]


@pytest.mark.parametrize(("values", "sentence"), WRONG_VALUES)
def test_a_wrong_value_by_dotted_key_is_refused(values, sentence):
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        config.load("tmaze", values)


def test_nearest_words():
    assert nearest("x", []) is None
    assert suggest("x", []) == "known: none"
    assert suggest("aple", ["apple"]) == "did you mean 'apple'?"
    assert nearest("b.steps", ["training.steps", "b.stop"]) == "training.steps"
    assert nearest("environment", ["envy", "env", "en", "e"]) == "env"
    assert nearest("enc", ["encoded_observations"]) == "encoded_observations"
    assert nearest("environment.id", ["env", "seed"]) is None
    for word in ("en", "--e"):
        assert nearest(word, ["encoded_observations", "--episodes"]) is None


def test_method_names_are_taken_apart():
    assert parts.parse_method("snap12") == parts.MethodName("snap", order=12)
    assert parts.parse_method("bptt+rtrl").tail == parts.MethodName("rtrl")
    assert parts.parse_method("snap0") == parts.MethodName("snap", order=0)
    assert parts.parse_method("ok_rtrl3") == parts.MethodName("ok_rtrl", order=3)
    for wrong in (
        "snap",
        "snap01",
        "ok_rtrl",
        "ok_rtrl0",
        "bptt+uoro",
        "bptt+",
        "bptt+bptt",
        "rtrl+snap1",
        "frozen+rtrl",
        "SNAP1",
        "",
    ):
        with pytest.raises(UserError, match="there is no gradient method"):
            parts.parse_method(wrong)


def test_names_make_what_they_stand_for():
    from flax import linen as nn

    from snaprl import cores

    made = {name: parts.make_method(name) for name in parts.METHODS}
    assert made == {
        "snap1": cores.SnAp(order=1),
        "rtrl": cores.RTRL(),
        "bptt": cores.BPTT(),
        "bptt+snap1": cores.BPTT(tail=cores.SnAp(order=1)),
        "bptt+rtrl": cores.BPTT(tail=cores.RTRL()),
        "frozen": cores.Frozen(),
        "rflo": cores.RFLO(),
        "eprop": cores.EProp(),
        "uoro": cores.UORO(),
        "kf_rtrl": cores.KFRTRL(),
        "ok_rtrl4": cores.OKRTRL(rank=4),
    }
    assert parts.cell_class("gru") is nn.GRUCell
    for name in parts.CELLS:
        assert issubclass(parts.cell_class(name), nn.RNNCellBase)
    with pytest.raises(UserError, match="there is no cell 'gro'"):
        parts.cell_class("gro")


def test_loading_with_flags_starts_neither_jax_nor_numpy(toml):
    program = (
        "import sys; from snaprl.training import config;"
        f"config.load({str(toml(FILE))!r}, ['--method', 'rtrl', '--steps', '5']);"
        "sys.exit(any(name in sys.modules for name in ('jax', 'flax', 'numpy', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_text_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = config.load("charlm", ["--task.kwargs.path", "texts/a.txt"])
    there = config.absolute(named)
    assert there.task.kwargs == {**named.task.kwargs, "path": f"{tmp_path}/texts/a.txt"}
    assert config.absolute(there) == there
    for name in ("charlm", "tmaze"):  # the text that comes along; no text at all
        assert config.absolute(config.load(name)) == config.load(name)
