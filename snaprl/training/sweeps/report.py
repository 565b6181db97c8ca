"""`snaprl report`: what came of the runs in a folder, as a page fit to be shown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snaprl.training import progress, provenance, runs
from snaprl.training.errors import UserError
from snaprl.training.plot import plot, telling
from snaprl.training.runs import Run
from snaprl.training.sweeps import plan as plans
from snaprl.training.sweeps.command import SWEEP, is_done
from snaprl.training.sweeps.page import (
    Block,
    Heading,
    Picture,
    Table,
    Words,
    as_html,
    markdown,
)
from snaprl.training.sweeps.plan import Plan
from snaprl.training.sweeps.processes import CONFIGS

METRICS = {  # that a table may show, the most telling first, and how they are called
    "level": "L reached",
    "eval_test_bits_per_char": "test, bits/char",
    "eval_valid_bits_per_char": "valid, bits/char",
    "eval_test_accuracy": "test accuracy",
    "eval_bits_per_char": "evaluated, bits/char",
    "eval_accuracy": "evaluated accuracy",
    "eval_success": "evaluated success",
    "eval_episode_return": "evaluated return",
    "success": "success",
    "episode_return": "return",
    "bits_per_char": "training, bits/char",
    "eval_loss": "evaluated loss",
    "loss": "training loss",
}
SHOWN = 3  # of these, at most, for a run
VERSIONS = ("python", "jax", "flax")  # of what a run was made with, those that the page names
MAX_LINES = 12  # in a figure


@dataclass(frozen=True)
class Entry:
    """Runs that differ by the seed alone."""

    name: str
    members: Sequence[Run]
    numbers: Sequence[Mapping[str, float]]  # of each: its last report, and its evaluation

    def values(self, metric: str) -> list[float]:
        """Of the seeds that have it."""
        found = (one.get(metric) for one in self.numbers)
        return [float(value) for value in found if isinstance(value, int | float)]

    def made(self, name: str) -> list[str]:
        """What `versions.json` has under a name, each of its values once."""
        found = (provenance.read(run.folder).get(name) for run in self.members)
        return sorted({value for value in found if value})

    def mean(self, metric: str) -> float:
        """Over seeds; not a number where none has it."""
        return float(np.mean(self.values(metric) or [np.nan]))


def report(folder: Path, output: Path | None = None) -> list[Path]:
    """Writes `report.md` and `report.html`, and the figures that they show.

    Args:
        folder: Of a sweep, or any folder with runs in it.
        output: The folder that the page goes to, made where it is not there; by default that one.

    Returns:
        The two files.

    Raises:
        UserError: There is no run in the folder, or the page cannot be written.
    """
    plan = plans.read(folder / SWEEP, folder) if (folder / SWEEP).is_file() else None
    entries, twice = _entries(folder, plan)
    output = output or folder
    title = plan.title if plan else f"Runs in {folder.resolve().name}"
    files = [output / "report.md", output / "report.html"]
    try:
        output.mkdir(parents=True, exist_ok=True)
        blocks = [Heading(title, 1), *_blocks(entries, plan, output)]
        if twice:
            words = ", ".join(f"`{path}`" for path in twice)
            blocks.append(Words(f"Left out, for another run has their settings and seed: {words}."))
        files[0].write_text(markdown(blocks), encoding="utf-8")
        files[1].write_text(as_html(blocks, title), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error.strerror}): name another --output"
        ) from error
    return files


def _entries(folder: Path, plan: Plan | None) -> tuple[list[Entry], list[Path]]:
    """The runs in a folder, seeds taken together; those of a sweep in its order.

    Returns:
        Also the runs that are another's double, and no seed more.
    """
    found = [run for path in sorted(folder.rglob("metrics.jsonl")) for run in _read(path.parent)]
    if not found:
        raise UserError(f"there is no run with a report in {folder}: name a folder that holds runs")
    if plan:
        names = {job.folder.resolve(): job.name for job in plan.jobs}
        groups: dict[str, list[Run]] = {job.name: [] for job in plan.jobs}
        for run in found:
            if run.folder.resolve() in names:
                groups[names[run.folder.resolve()]].append(run)
        twice = []
    else:
        groups, twice = {}, []
        for name, members in runs.group(found).items():
            counted: dict[Any, Run] = {}
            for run in members:
                seed = run.folder if run.seed is None else run.seed
                if counted.setdefault(seed, run) is not run:
                    twice.append(run.folder.relative_to(folder))
            groups[name] = list(counted.values())
    entries = [
        Entry(name, members, [numbers_of(run) for run in members])
        for name, members in groups.items()
        if members
    ]
    return entries, twice


def _read(folder: Path) -> Iterator[Run]:
    try:
        yield runs.read(folder)
    except UserError:  # it has not reported yet
        return


def numbers_of(run: Run) -> dict[str, Any]:
    """The last report, the evaluation if it is of that time, and the median speed."""
    speeds = [row["steps_per_s"] for row in run.rows if row.get("steps_per_s")]
    measured = runs.read_measured(run.folder)
    if measured.get("step") != run.rows[-1]["step"]:  # it went on since, and was broken off
        measured = {}
    return {**run.rows[-1], **measured, "steps_per_s": float(np.median(speeds or [np.nan]))}


def _blocks(entries: Sequence[Entry], plan: Plan | None, output: Path) -> Iterator[Block]:
    yield from _missing(entries, plan)
    metrics = _metrics(entries, plan)
    chosen = list(entries)
    if plan and len(plan.bases) > len({*plan.bases.values()}):
        if any(entry.values(plan.tune_by or "") for entry in entries):
            chosen = _best(entries, plan)
            yield Words(
                f"Of what was tuned the best by `{plan.tune_by}`, "
                f"{'highest' if plan.highest else 'lowest'} mean; all of it stands below."
            )
        else:
            yield Words(
                f"No run has `{plan.tune_by}`, which would tell the best of what was tuned."
            )
    yield _table(chosen, metrics)
    yield Words(
        "Mean over seeds, and from the lowest to the highest. Wall time and speed are those of one "
        "run; others ran beside it."
    )
    yield from _references(entries)
    yield from _figures(chosen, output)
    if len(chosen) < len(entries):
        yield Heading("All runs")
        yield _table(entries, metrics)
    yield Heading("How it was made")
    yield _origins(entries, plan)
    yield from _versions(entries)
    if plan:
        yield Words(
            f"Paths are those of the sweep's folder; `snaprl sweep {SWEEP}` makes all of it."
        )


def _metrics(entries: Sequence[Entry], plan: Plan | None) -> list[str]:
    """The sweep's own, and the most telling ones of each kind of run."""
    first = [plan.metric] if plan and plan.metric else []
    shown = set()
    for entry in entries:
        shown |= {*[m for m in METRICS if entry.values(m) and m not in first][: SHOWN - len(first)]}
    return [*first, *(m for m in METRICS if m in shown)]


def _best(entries: Sequence[Entry], plan: Plan) -> list[Entry]:
    """Of the entries that differ by what is tuned alone, the one whose mean is best."""
    best: dict[str, Entry] = {}
    for entry in entries:
        base = plan.bases[entry.name]
        now, then = (_rank(e, plan) for e in (entry, best.get(base)))
        if base not in best or now > then:
            best[base] = entry
    return list(best.values())


def _rank(entry: Entry | None, plan: Plan) -> float:
    mean = entry.mean(plan.tune_by or "") if entry else np.nan
    return -np.inf if np.isnan(mean) else mean if plan.highest else -mean


def _table(entries: Sequence[Entry], metrics: Sequence[str]) -> Table:
    names = ["run", "seeds", *(METRICS.get(m, m) for m in metrics)]
    names += ["steps", "steps/s", "wall time"]
    rows = []
    for entry in entries:
        seeds = len(entry.members)
        row = [entry.name, str(seeds), *(_spread(entry.values(m), seeds) for m in metrics)]
        row += [progress.number(entry.mean("step")), progress.number(entry.mean("steps_per_s"))]
        rows.append([*row, progress.duration(entry.mean("wall_s"))])
    return Table(names, rows)


def _spread(values: Sequence[float], seeds: int) -> str:
    """`2.31 (2.30 to 2.33)`, and of how many seeds, where not all have a value."""
    if not values:
        return "-"
    mean, low, high = (f"{x:.4g}" for x in (np.mean(values), min(values), max(values)))
    told = mean if len(values) == 1 else f"{mean} ({low} to {high})"
    return told if len(values) == seeds else f"{told}, of {len(values)}"


def _references(entries: Sequence[Entry]) -> Iterator[Words]:
    found: dict[str, dict[str, list[str]]] = {}  # who has which value, by the reference's name
    for entry in entries:
        for name, value in dict.fromkeys(_scores(entry)):
            found.setdefault(name, {}).setdefault(value, []).append(entry.name)
    words = []
    for name, values in found.items():
        shared = len(values) == 1
        said = (v if shared else f"{v} ({', '.join(who)})" for v, who in values.items())
        words.append(f"{name.replace('.', ', ')} {', '.join(said)}")
    if words:
        yield Words(f"To compare with: {'; '.join(words)}.")


def _scores(entry: Entry) -> Iterator[tuple[str, str]]:
    for one in entry.numbers:
        for key, value in one.items():
            if key.startswith("reference_"):
                yield key.removeprefix("reference_"), f"{value:.4g}"


def _figures(entries: Sequence[Entry], output: Path) -> Iterator[Block]:
    """One for each metric that tells what was learnt; different tasks may have different ones."""
    by_metric: dict[str, list[Entry]] = {}
    for entry in entries:
        by_metric.setdefault(telling(entry.members), []).append(entry)
    for metric, among in by_metric.items():
        if not metric:
            continue
        drawn = among[:MAX_LINES]
        folders = [run.folder for entry in drawn for run in entry.members]
        labels = [entry.name for entry in drawn for _ in entry.members]
        stem = "curves" if len(by_metric) == 1 else f"curves-{metric}"
        png, _ = plot(folders, output / stem, metric, labels=labels)
        yield Picture(png, "Learning curves")
        if len(drawn) < len(among):
            yield Words(f"Drawn are the first {len(drawn)} of {len(among)}.")


def _origins(entries: Sequence[Entry], plan: Plan | None) -> Table:
    """Of what, with how much, and with which commit and command each was made."""
    rows = []
    for entry in entries:
        commits = ", ".join(entry.made("commit"))
        command = provenance.read(entry.members[0].folder).get("command", "")
        if plan:  # in place of that of the sweep's own process
            seed = next(job.seed for job in plan.jobs if job.name == entry.name)
            command = f"snaprl train {CONFIGS}/{entry.name}.toml --seed {seed}"
        row = [entry.name, _seeds(entry)]
        row += [_range(entry.values("parameters")), _range(entry.values("step"))]
        row += [progress.duration(sum(entry.values("wall_s")))]
        rows.append([*row, f"`{commits}`" if commits else "", f"`{command}`"])
    names = ["run", "seeds", "parameters", "steps of each", "wall time of all"]
    return Table([*names, "commit", "command (of the first seed)"], rows)


def _seeds(entry: Entry) -> str:
    """`0, 1, 2`."""
    return ", ".join(map(str, sorted(run.seed for run in entry.members if run.seed is not None)))


def _range(values: Sequence[float]) -> str:
    """`91,217`, or `400,000 to 801,280`; nothing where there are none."""
    ends = sorted({min(values, default=0), max(values, default=0)})
    return " to ".join(f"{end:,.0f}" for end in ends) if values else ""


def _versions(entries: Sequence[Entry]) -> Iterator[Words]:
    """With what the runs were made, each of its versions where there were several."""
    found = {name: sorted({v for e in entries for v in e.made(name)}) for name in VERSIONS}
    words = [f"{name} {', '.join(versions)}" for name, versions in found.items() if versions]
    if words:
        yield Words(f"Made with {'; '.join(words)}.")


def _missing(entries: Sequence[Entry], plan: Plan | None) -> Iterator[Words]:
    """Runs of a sweep that are not through: not there, going on, broken off, or failed."""
    there = {run.folder.resolve(): run for entry in entries for run in entry.members}
    absent, partial = [], []
    for job in plan.jobs if plan else ():
        run, name = there.get(job.folder.resolve()), f"{job.name}, seed {job.seed}"
        if run is None:
            absent.append(name)
        elif not is_done(job):
            partial.append(f"{name} (at {progress.number(run.rows[-1]['step'])})")
    if absent:
        yield Words(f"Not there yet: {'; '.join(absent)}.")
    if partial:
        yield Words(f"Not through, and told as far as they got: {'; '.join(partial)}.")
