"""A sweep's file: a list of differences, times seeds; all of it is checked before any of it runs.

config = "charlm"                 # what the differences are to: a config's name, or a path
seeds = [0, 1, 2]
title = "Characters, GRU-128"     # of the page
metric = "eval_test_bits_per_char"  # that the page's table begins with
goal = "lowest"                   # or "highest": which of the metric is better
tune_by = "eval_valid_bits_per_char"  # whose best of [tune] is shown first; by default the metric

[all]                             # differences of every run
training.steps = 2_000_000

[grid]                            # every run with every one of these, to be compared
model.features = [32, 128]

[tune]                            # and with every one of these, of which the best counts
optimizer.learning_rate = [1e-3, 3e-3]

[[run]]
name = "snap1"
model.method = "snap1"
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snaprl.training import config as configs
from snaprl.training.config import AnyConfig
from snaprl.training.errors import UserError, suggest

KEYS = {
    "config": (str, "a string"),
    "seeds": (list, "a list of whole numbers"),
    "title": (str, "a string"),
    "metric": (str, "a string"),
    "goal": (str, "'lowest' or 'highest'"),
    "tune_by": (str, "a string"),
    "all": (dict, "a table"),
    "grid": (dict, "a table of lists"),
    "tune": (dict, "a table of lists"),
    "run": (list, "tables [[run]]"),
}
UNNAMEABLE = re.compile(r"[^\w.+=,-]+")  # what no folder's name should hold


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    name: str  # of its settings, shared by its seeds
    base: str  # the same without what is tuned
    seed: int
    config: AnyConfig
    folder: Path


@dataclass(frozen=True)
class Plan:
    """A sweep."""

    title: str
    metric: str | None
    highest: bool
    tune_by: str | None  # the metric that tells the best of what is tuned
    jobs: tuple[Job, ...]

    @property
    def bases(self) -> dict[str, str]:
        """Of every name, the one without what is tuned."""
        return {job.name: job.base for job in self.jobs}


def find(name_or_path: str) -> Path:
    """The sweep's file that is meant by a path, or by the name of one in `configs/paper/`.

    Raises:
        UserError: There is none; the sentence names those that come with snaprl.
    """
    known = configs.shipped("paper")
    if name_or_path in known:
        return known[name_or_path]
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    raise UserError(f"there is no sweep '{name_or_path}': {suggest(name_or_path, known)}")


def read(path: Path, folder: Path) -> Plan:
    """Reads a sweep's file.

    Args:
        path: The file.
        folder: Where the runs are to lie.

    Raises:
        UserError: A key or value is not known, or two runs have the same name.
    """
    tables = configs.read_toml(path)
    _check(tables, path)
    base = configs.read_toml(base_of(tables, path))
    seeds = tables.get("seeds", [0])
    jobs = []
    for run in tables["run"]:
        own = {k: v for k, v in run.items() if k != "name"}
        for (compared, point), (tuned, choice) in itertools.product(
            _points(tables.get("grid", {})), _points(tables.get("tune", {}))
        ):
            name, merged = run["name"] + compared + tuned, base
            for news in (tables.get("all", {}), own, point, choice):
                merged = merge(merged, news)
            one = configs.absolute(configs.from_tables(merged, where=f" in {path}, run '{name}'"))
            for seed in seeds:
                job, place = replace(one, seed=seed), folder / f"{name}-{seed}"
                jobs.append(Job(name, run["name"] + compared, seed, job, place))
    _check_names(jobs, path)
    return Plan(
        title=tables.get("title", folder.resolve().name),
        metric=tables.get("metric"),
        highest=tables.get("goal", "lowest") == "highest",
        tune_by=tables.get("tune_by", tables.get("metric")),
        jobs=tuple(jobs),
    )


def base_of(tables: Mapping[str, Any], path: Path) -> Path:
    """The file that the differences are to; one beside the sweep's file comes first.

    Raises:
        UserError: There is none.
    """
    beside = path.parent / tables["config"]
    return beside if beside.is_file() else configs.find(tables["config"])


def merge(table: Mapping[str, Any], news: Mapping[str, Any]) -> dict[str, Any]:
    """`table` with what `news` says; tables in both are merged, too."""
    both = {k: v for k, v in news.items() if isinstance(v, dict) and isinstance(table.get(k), dict)}
    return {**table, **news, **{k: merge(table[k], v) for k, v in both.items()}}


def _points(grid: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every combination of the grid's values: what it adds to a name, and its differences."""
    flat = list(_flat(grid))
    for values in itertools.product(*(choices for _, choices in flat)):
        point: dict[str, Any] = {}
        words = []
        for (key, _), value in zip(flat, values, strict=True):
            nested: Any = value
            for part in reversed(key.split(".")):
                nested = {part: nested}
            point = merge(point, nested)
            told = UNNAMEABLE.sub("_", str(value))
            words.append(f"-{key.rpartition('.')[2]}={told}")
        yield "".join(words), point


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _check(tables: Mapping[str, Any], path: Path) -> None:
    """Refuses a file that is no sweep's."""
    for key, value in tables.items():
        if key not in KEYS:
            raise UserError(f"unknown key '{key}' in {path}: {suggest(key, KEYS)}")
        kind, words = KEYS[key]
        if not isinstance(value, kind):
            raise UserError(f"'{key}' in {path} must be {words}, not {value}")
    for key in ("config", "run"):
        if not tables.get(key):
            raise UserError(f"{path} has no '{key}': a sweep needs one config and its runs")
    seeds = tables.get("seeds", [0])
    known = all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds)
    if not seeds or not known or len({*seeds}) < len(seeds):
        raise UserError(
            f"'seeds' in {path} must be different whole numbers from 0 to 2^32 - 1, not {seeds}"
        )
    if tables.get("goal", "lowest") not in ("lowest", "highest"):
        raise UserError(f"'goal' in {path} must be {KEYS['goal'][1]}, not {tables['goal']}")
    for table in ("grid", "tune"):
        for key, choices in _flat(tables.get(table, {})):
            if not isinstance(choices, list) or not choices:
                raise UserError(
                    f"'{table}.{key}' in {path} must be a list of values, not {choices}"
                )
    if tables.get("tune") and not (tables.get("tune_by") or tables.get("metric")):
        raise UserError(f"{path} has a [tune], but no 'metric' that would tell the best of it")
    for run in tables["run"]:
        name = run.get("name") if isinstance(run, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"[\w.+=-]+", name):
            raise UserError(
                f"every [[run]] in {path} needs a name of letters, digits and -_.+=, not {name!r}"
            )
    for table in (*(tables.get(k, {}) for k in ("all", "grid", "tune")), *tables["run"]):
        if "seed" in table:
            raise UserError(f"'seed' in {path} is not for one run or table: give 'seeds' for all")


def _check_names(jobs: Sequence[Job], path: Path) -> None:
    folders = [job.folder for job in jobs]
    for job in jobs:
        if folders.count(job.folder) > 1:
            raise UserError(f"two runs in {path} are called '{job.name}': give each its own name")
