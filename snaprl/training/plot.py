"""Draws learning curves: a line per way of training, its seeds taken together."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from snaprl.training import figure, runs
from snaprl.training.errors import UserError, suggest
from snaprl.training.figure import Curve
from snaprl.training.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_METRICS = ("success", "episode_return", "level", "bits_per_char", "loss")
METRIC_WORDS = {
    "success": "success rate",
    "eval_success": "success rate, evaluated",
    "bits_per_char": "bits per character",
    "level": "length of strings, L",
}
MAX_POINTS = 200  # of a line; more than these are averaged, for the eye sees no more


def plot(
    folders: Sequence[str | Path],
    output: str | Path | None = None,
    metric: str | None = None,
    labels: Sequence[str] | None = None,
    chance: float | None = None,
) -> list[Path]:
    """Draws the learning curves of runs, as PNG and as SVG.

    Runs whose configs differ by the seed alone make one line, their mean, in a band from the
    lowest to the highest seed. Where a run has over 200 reports, neighbours are averaged;
    nothing else is smoothed. A seed that was broken off counts as far as it went.

    Args:
        folders: The runs' folders.
        output: Where to write; the ending may be `.png`, `.svg` or none, both are written. By
            default `curve` in the run's folder, or `curves` beside the folders of several.
        metric: What to draw; by default the first of `DEFAULT_METRICS` that a run reports.
        labels: What to call the runs, one for each; equal labels make one line. By default what
            differs between the runs' configs.
        chance: Height of a line to compare with, drawn as chance level.

    Returns:
        The two files.

    Raises:
        UserError: A folder holds no run, or the runs do not have the metric.
    """
    if not folders:
        raise UserError("there is nothing to plot: name the folder of a run")
    if isinstance(folders, str | Path):
        raise UserError(f"{str(folders)!r} is no list: name the folders of runs to plot in one")
    places = [Path(folder) for folder in folders]
    found = [runs.read(folder) for folder in places]
    groups = runs.group(found) if labels is None else _under(labels, found)
    metric = _choose(metric, found)
    curves = {name: _curve(name, members, metric) for name, members in groups.items()}
    tokens = "task.name" in found[0].settings
    tokens |= any("bits_per_char" in row for row in found[0].rows)  # of a run without its config
    drawing = figure.draw(
        curves,
        title=_title(found),
        x_label="tokens" if tokens else "environment steps",
        y_label=METRIC_WORDS.get(metric, metric.replace("_", " ")),
        unit_range=metric in ("success", "eval_success"),
        whole=metric == "level",
        chance=chance,
    )
    return _save(drawing, _stem(places, None if output is None else Path(output)))


def _under(labels: Sequence[str], found: Sequence[Run]) -> dict[str, list[Run]]:
    if len(labels) != len(found):
        raise UserError(f"{len(found)} runs need as many labels, not {len(labels)}")
    groups: dict[str, list[Run]] = {}
    for name, run in zip(labels, found, strict=True):
        groups.setdefault(name, []).append(run)
    return groups


def _choose(metric: str | None, found: Sequence[Run]) -> str:
    """The metric that is asked for, or the most telling one that there is."""
    known = set()
    for run in found:
        for row in run.rows:
            known |= {name for name, value in row.items() if isinstance(value, int | float)}
    known -= {"step", "wall_s"}
    if metric is not None:
        if metric in known:
            return metric
        raise UserError(f"no run reports '{metric}': {suggest(metric, known)}")
    if default := next((name for name in DEFAULT_METRICS if name in known), None):
        return default
    words = ", ".join(sorted(known)) or "nothing"
    raise UserError(f"name a metric to plot: the runs report {words}")


def telling(found: Sequence[Run]) -> str:
    """The metric that tells most of what runs have learnt; '' where none of the usual ones does."""
    try:
        return _choose(None, found)
    except UserError:
        return ""


def _curve(name: str, members: Sequence[Run], metric: str) -> Curve:
    """Takes seeds together on all steps that one of them has reported."""
    lines = [line for run in members if len((line := _line(run, metric))[0])]
    if not lines:
        raise UserError(f"{members[0].folder} has no '{metric}': leave it out")
    grid = np.unique(np.concatenate([steps for steps, _ in lines]))
    values = [np.interp(grid, *line, left=np.nan, right=np.nan) for line in lines]
    return Curve(
        grid,
        np.nanmean(values, axis=0),
        np.nanmin(values, axis=0),
        np.nanmax(values, axis=0),
        len(lines),
    )


def _line(run: Run, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a run, averaged in pieces where they are too many."""
    points = np.array(
        [(r["step"], r[metric]) for r in run.rows if isinstance(r.get(metric), int | float)]
    ).reshape(-1, 2)
    if len(points) > MAX_POINTS:
        points = np.array([piece.mean(axis=0) for piece in np.array_split(points, MAX_POINTS)])
    return points[:, 0], points[:, 1]


def _title(found: Sequence[Run]) -> str:
    """The environment or task, with those of its arguments that all runs share."""
    first = found[0].settings
    shared = [key for key in first if all(run.settings.get(key) == first[key] for run in found)]
    return runs.label(first, [key for key in runs.environment(first) if key in shared])


def _stem(folders: Sequence[Path], output: Path | None) -> Path:
    """The two files' path without its ending."""
    if output is not None:
        return output.with_suffix("") if output.suffix in (".png", ".svg") else output
    return folders[0] / "curve" if len(folders) == 1 else folders[0].parent / "curves"


def _save(drawing: "Figure", stem: Path) -> list[Path]:
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for file in files:
            metadata = {"Date": None} if file.suffix == ".svg" else {}  # same runs, same file
            drawing.savefig(file, dpi=160, bbox_inches="tight", metadata=metadata)
    except OSError as error:
        raise UserError(
            f"{stem} cannot be written ({error.strerror}): name another place to write to"
        ) from error
    return files
