"""Runs, going on or done, read back from their folders and told apart."""

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from snaprl.training import parts, sinks
from snaprl.training.errors import UserError

OURS = ("config.toml", "metrics.jsonl", "checkpoints")  # a folder with one of them is no new one
MEASURED = "evaluation.json"  # in a run's folder, once it was evaluated
METHODS = ("agent.method", "model.method")  # of an agent, of a supervised run
UNROLL = "training.unroll"
UNSEEN = (  # keys that change nothing that is learnt
    "seed",
    "training.report_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.wandb",
    "evaluation.every",
    "evaluation.episodes_each",
)
CELL_WORDS = {
    "simple": "simple RNN",
    "gru": "GRU",
    "mgu": "MGU",
    "lstm": "LSTM",
    "optimized_lstm": "LSTM (optimized)",
    "layer_norm_gru": "layer-norm GRU",
    "layer_norm_lstm": "layer-norm LSTM",
    "indrnn": "IndRNN",
    "elstm": "eLSTM",
    "lru": "LRU",
    "rtu": "RTU",
    "sparse_simple": "sparse simple RNN",
    "sparse_gru": "sparse GRU",
    "sparse_lstm": "sparse LSTM",
}
UNSAID = {"env.wrappers": []}  # what is not worth a word where all runs have it
METHOD_WORDS = {
    "rtrl": "RTRL",
    "frozen": "frozen core",
    "rflo": "RFLO",
    "eprop": "e-prop",
    "uoro": "UORO",
    "kf_rtrl": "KF-RTRL",
}


def check_new(folder: Path) -> None:
    """Raises UserError where a folder holds a run already."""
    if any((folder / name).exists() for name in OURS):
        raise UserError(
            f"{folder} already holds a run: go on with it by --resume, or give another --run-dir"
        )


def check_resumable(folder: Path) -> None:
    """Raises UserError where a folder holds no run to go on with."""
    if not (folder / "config.toml").exists():
        raise UserError(f"{folder} holds no run to resume: leave --resume out to start one")


def check_held(folder: Path) -> None:
    """Raises UserError where a folder holds no run to look at."""
    if not (folder / "config.toml").exists():
        raise UserError(f"{folder} is no run: there is no config.toml in it")


@dataclass(frozen=True)
class Run:
    """One run: what it was told to do, and what it reported."""

    folder: Path
    settings: Mapping[str, Any]  # by dotted key, without what two equal runs may differ in
    rows: Sequence[Mapping[str, Any]]  # as metrics.jsonl has them
    seed: int | None = None  # where its config is there


def read(folder: Path) -> Run:
    """Reads a run's folder; the run may go on, or may have been broken off.

    Raises:
        UserError: The folder holds no run, or one that has not reported yet.
    """
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(f"{folder} is no run's folder: it has no metrics.jsonl")
    rows = sinks.read_rows(metrics)
    if not rows:
        raise UserError(f"{folder} holds no report yet: let its run go on for a while")
    config = folder / "config.toml"
    if not config.is_file():  # a run that nothing is known of is like no other
        return Run(folder, {"run": folder.name}, rows)
    try:
        # not `config.load`: a run of an older version has keys that are no more
        tables = tomllib.loads(config.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{config} is not valid TOML: {error}") from None
    from snaprl.training.schema import Config
    from snaprl.training.supervised.schema import SupervisedConfig

    # what such a run did not know yet was as it is by default now
    default = asdict(SupervisedConfig() if "task" in tables else Config())
    known = {k: list(v) if isinstance(v, tuple) else v for k, v in _flat(default)}
    settings = known | dict(_flat(tables))
    told = {k: v for k, v in settings.items() if k not in UNSEEN}
    return Run(folder, told, rows, tables.get("seed", 0))


def read_measured(folder: Path) -> dict[str, Any]:
    """What the last evaluation of a run said; nothing where there was none."""
    try:
        return json.loads((folder / MEASURED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_measured(folder: Path, result: Mapping[str, Any]) -> None:
    """Puts what an evaluation said into the run's folder, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    new = folder / f"{MEASURED}.new"
    new.write_text(json.dumps(dict(result)) + "\n", encoding="utf-8")
    new.replace(folder / MEASURED)


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Puts runs together that differ by the seed alone, under labels that people can read.

    A label says in what a group differs from the others of its environment or task, which it names
    where there are several; a group alone is called by its gradient method.
    """
    groups: list[list[Run]] = []
    for run in runs:
        alike = (members for members in groups if members[0].settings == run.settings)
        members = next(alike, None)
        if members is None:
            groups.append([run])
        else:
            members.append(run)
    every = [members[0].settings for members in groups]
    subjects: dict[str, list[Mapping[str, Any]]] = {}
    for settings in every:
        subjects.setdefault(_subject(settings), []).append(settings)
    differing = {subject: _differing(among) for subject, among in subjects.items()}
    alone = len(subjects) == 1
    methods = METHODS if alone else [key for key in METHODS if key in _differing(every)]
    labelled: dict[str, list[Run]] = {}
    for settings, members in zip(every, groups, strict=True):
        subject = _subject(settings)
        words = ["" if alone else short_id(subject), label(settings, differing[subject] or methods)]
        name = ", ".join(filter(None, words)) or members[0].folder.name
        if name in labelled:
            name = f"{name} ({members[0].folder.name})"
        labelled[name] = members
    return labelled


def _subject(settings: Mapping[str, Any]) -> str:
    """The environment or task."""
    return str(settings.get("env.id") or settings.get("task.name") or "")


def _differing(every: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys whose values are not the same in all settings."""

    def differs(key: str, among: Sequence[Mapping[str, Any]]) -> bool:
        return any(settings.get(key) != among[0].get(key) for settings in among)

    known = dict.fromkeys(key for settings in every for key in settings)
    keys = [key for key in known if differs(key, every)]
    others = [settings for settings in every if not _says_unroll(settings)]
    if _method_of(keys) and UNROLL in keys and not differs(UNROLL, others):
        keys.remove(UNROLL)  # only among those whose method says it
    return keys


def _says_unroll(settings: Mapping[str, Any]) -> bool:
    return str(settings.get(_method_of(settings))).startswith("bptt")


def _method_of(keys: Iterable[str]) -> str:
    """Which of the keys names the gradient method; '' where none does."""
    return next((key for key in keys if key in METHODS), "")


def label(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Says in words what `settings` has under `keys`, such as `SnAp-1, LSTM, length 40`."""
    words = []
    for key in sorted(keys, key=lambda key: key not in METHODS):  # the method first
        if key in METHODS and key in settings:
            words.append(method_words(settings[key], settings.get(UNROLL)))
        elif key == UNROLL and _method_of(keys) and _says_unroll(settings):
            continue  # has been said with the method
        elif key in settings:
            words.append(_words(key, settings[key]))
    return ", ".join(words)


def method_words(method: str, unroll: int | None = None) -> str:
    """A gradient method as people call it: `SnAp-1`, `BPTT (unroll 4) + RTRL`."""
    try:
        name = parts.parse_method(method)
    except UserError:
        return method  # of another version
    match name.kind:
        case "snap":
            return f"SnAp-{name.order}"
        case "ok_rtrl":
            return f"OK-RTRL (rank {name.order})"
        case kind if kind in METHOD_WORDS:
            return METHOD_WORDS[kind]
        case _:
            bptt = f"BPTT (unroll {unroll})" if unroll else "BPTT"
            tail = method.partition("+")[2]
            return f"{bptt} + {method_words(tail)}" if tail else bptt


def _words(key: str, value: Any) -> str:
    table, _, name = key.rpartition(".")
    name = (table.rpartition(".")[2] if name == "name" else name).replace("_", " ")
    if key in ("agent.cell", "model.cell"):
        return CELL_WORDS.get(value, str(value))
    if key in ("env.id", "task.name", "run"):
        return short_id(value)
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if isinstance(value, list):
        return f"{name} {'-'.join(map(str, value))}" if value else f"no {name}"
    return f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"


def environment(settings: Mapping[str, Any]) -> list[str]:
    """The keys that say what was learnt, an agent's environment or a supervised task."""
    told = [key for key in settings if key.startswith(("env.", "task."))]
    return [key for key in told if key not in UNSAID or settings[key] != UNSAID[key]]


def short_id(env: str) -> str:
    """An environment's id without the words that all of ours share."""
    return env.removeprefix("snaprl/").removesuffix("-v0")


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
