"""Lines, their bands and their names: what a learning curve looks like."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by all eyes; without yellow, which is faint on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")  # the colours again, where they do not suffice
INK, GREY = "#222222", "#6B6B6B"
LABEL_GAP_PT = 14.0


class Curve(NamedTuple):
    """What is drawn of one group of runs."""

    steps: np.ndarray  # [K]
    mean: np.ndarray  # [K]
    low: np.ndarray  # [K]  the lowest seed
    high: np.ndarray  # [K]  the highest seed
    seeds: int


class End(NamedTuple):
    """The right end of a line, where its name is written."""

    name: str
    height: float
    colour: str
    dash: str


def draw(
    curves: Mapping[str, Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    unit_range: bool,
    whole: bool,
    chance: float | None,
) -> "Figure":
    """Draws curves, each named at its end.

    Args:
        curves: By name.
        title: What they have in common.
        x_label: What a step is.
        y_label: What is measured.
        unit_range: Whether what is measured lies between 0 and 1.
        whole: Whether it is counted.
        chance: Height of the chance level's line, if there is to be one.
    """
    # a figure of its own instead of pyplot's, which would pick a screen and remember everything
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(7, 4.2), facecolor="white")
    axes = figure.add_subplot()
    for index, curve in enumerate(curves.values()):
        colour, dash = _look(index)
        dot = "o" if len(curve.steps) == 1 else ""  # one report makes no line
        axes.plot(curve.steps, curve.mean, dash, marker=dot, color=colour, lw=2, clip_on=False)
        if curve.seeds > 1:
            axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.15, lw=0)
    axes.set_xlim(0, max(1, *(curve.steps[-1] for curve in curves.values())))
    if unit_range:
        axes.set_ylim(0, 1)
    ends = [End(name, curve.mean[-1], *_look(i)) for i, (name, curve) in enumerate(curves.items())]
    if chance is not None:
        axes.axhline(chance, color=GREY, linestyle="--", linewidth=1, zorder=1)
        ends.append(End("chance", chance, GREY, "--"))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.locator_params(axis="x", nbins=6)
    axes.locator_params(axis="y", integer=whole)
    axes.set_xlabel(x_label, color=INK, fontsize=11)
    axes.set_ylabel(y_label, color=INK, fontsize=11)
    axes.set_title(title, loc="left", color=INK, fontsize=12, pad=12)
    axes.tick_params(length=0, labelsize=10, labelcolor=INK)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#B0B0B0")
    _name_ends(axes, ends)
    _caption(axes, curves)
    return figure


def _look(index: int) -> tuple[str, str]:
    return COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]


def _name_ends(axes: "Axes", ends: Sequence[End]) -> None:
    """Writes names to the right of the lines' ends, pushed apart where they would overlap."""
    pt_per_pixel = 72 / axes.figure.dpi
    heights = [axes.transData.transform((0, end.height))[1] * pt_per_pixel for end in ends]
    # none below the axis, where the numbers of the steps are
    floor = axes.transAxes.transform((0, 0))[1] * pt_per_pixel
    places = spread(heights, LABEL_GAP_PT, floor)
    for end, height, place in zip(ends, heights, places, strict=True):
        leader = {"arrowstyle": "-", "color": end.colour, "linestyle": end.dash, "linewidth": 1.2}
        axes.annotate(
            end.name,
            (1, end.height),
            xycoords=axes.get_yaxis_transform(),
            xytext=(24, place - height),
            textcoords="offset points",
            va="center",
            color=GREY if end.colour == GREY else INK,
            fontsize=10.5,
            arrowprops=leader | {"shrinkA": 2, "shrinkB": 3, "relpos": (0, 0.5)},
        )


def _caption(axes: "Axes", curves: Mapping[str, Curve]) -> None:
    counts = sorted({curve.seeds for curve in curves.values()})
    if counts[-1] == 1:
        return
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    axes.annotate(
        f"Lines: mean of {seeds} seeds. Bands: from the lowest seed to the highest.",
        (0, 0),
        xycoords="axes fraction",
        xytext=(0, -48),
        textcoords="offset points",
        color=GREY,
        fontsize=9,
    )


def spread(places: Sequence[float], gap: float, floor: float = -math.inf) -> list[float]:
    """Moves places apart to at least `gap`; those that touch stay around their common middle.

    None ends below `floor`, which may push all of them up.
    """
    order = sorted(range(len(places)), key=places.__getitem__)
    rows: list[list[int]] = []  # of indices that stand side by side, lowest first

    def low(row: list[int]) -> float:
        middle = sum(places[index] for index in row) / len(row)
        return max(floor, middle - gap * (len(row) - 1) / 2)

    for index in order:
        row = [index]
        while rows and low(rows[-1]) + gap * len(rows[-1]) > low(row):
            row = rows.pop() + row
        rows.append(row)
    spaced = {index: low(row) + gap * rank for row in rows for rank, index in enumerate(row)}
    return [spaced[index] for index in range(len(places))]
