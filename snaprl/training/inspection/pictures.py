"""Patterns as rasters, numbers over time as lines, in the style of the learning curves."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from snaprl.training import figure
from snaprl.training.figure import COLOURS, DASHES, GREY, INK
from snaprl.training.plot import MAX_POINTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEVER, BEFORE, NEW = "#EFEFEF", COLOURS[0], COLOURS[1]
FONT_PT = 10.5
NAME_WIDTH = 44  # characters, of a line's name
MOST_CELLS = 32  # units up to which a pattern is drawn with a grid


class Line(NamedTuple):
    """What is drawn of one method."""

    steps: np.ndarray  # [K]
    mean: np.ndarray  # [K]
    low: np.ndarray | None = None  # [K]  of the streams
    high: np.ndarray | None = None  # [K]

    @classmethod
    def of(cls, values: np.ndarray, *, points: int = MAX_POINTS, band: bool = True) -> "Line":
        """From what every stream gave, `[T, B]`; over `points` steps, neighbours are averaged."""
        steps = np.arange(1, len(values) + 1)
        rows = [steps, values.mean(1)]
        if band and values.shape[1] > 1:
            rows += [values.min(1), values.max(1)]
        pieces = min(points, len(values))
        return cls(*(np.array([x.mean() for x in np.array_split(r, pieces)]) for r in rows))


class Panel(NamedTuple):
    """Lines over one axis."""

    label: str
    lines: Mapping[str, Line]


def patterns(
    found: Mapping[int, np.ndarray],
    shares: Mapping[int, float],
    entered: np.ndarray,
    title: str,
) -> "Figure":
    """Draws patterns, one below the other.

    Args:
        found: For each order, lowest first, bool `[N, weights]`, weights sorted by `entered`.
        shares: For each order what it keeps of all entries.
        entered: The unit that each weight enters.
        title: What they are patterns of.
    """
    from matplotlib.colors import ListedColormap

    drawing = _figure((7, 0.8 + 1.75 * len(found)))
    every = drawing.subplots(len(found), sharex=True, squeeze=False)[:, 0]
    units = len(next(iter(found.values())))
    edges = np.searchsorted(entered, np.arange(units + 1))
    step = -(-units // 16)
    shown = np.arange(0, units, step)
    lower = next(iter(found.values()))  # nothing is new in the first
    for axes, (order, pattern) in zip(every, found.items(), strict=True):
        axes.imshow(
            pattern * 2 - (pattern & lower),
            cmap=ListedColormap([NEVER, BEFORE, NEW]),
            vmin=0,
            vmax=2,
            aspect="auto",
            interpolation="nearest",
            extent=(0, len(entered), units - 0.5, -0.5),
        )
        if units <= MOST_CELLS:  # else there would be more grid than picture
            axes.vlines(edges[1:-1], -0.5, units - 0.5, color="white", lw=0.5)
            axes.hlines(np.arange(0.5, units - 1), 0, len(entered), color="white", lw=0.5)
        axes.set_yticks(np.arange(0, units, -(-units // 4)))
        axes.set_xticks((edges[shown] + edges[shown + 1]) / 2, shown)
        text = f"order {order}: {100 * shares[order]:.1f} % of the entries kept"
        axes.set_title(text, loc="left", color=INK, fontsize=FONT_PT)
        axes.set_ylabel("unit", color=INK, fontsize=FONT_PT)
        axes.tick_params(length=0, labelsize=9, labelcolor=INK)
        axes.spines[:].set_visible(False)
        lower = pattern
    every[-1].set_xlabel("weights, by the unit that they enter", color=INK, fontsize=FONT_PT)
    _beside(every[0], title, (0, 1), 26, color=INK, fontsize=12)
    if len(found) > 1:
        text = "Blue: kept by the order above as well. Orange: added by this order."
        _beside(every[-1], text, (0, 0), -48)
    return drawing


def lines(panels: Sequence[Panel], title: str, caption: str) -> "Figure":
    """Draws numbers over the steps of a stream, each line named at its end.

    Args:
        panels: From top to bottom.
        title: What they are numbers of.
        caption: Below.
    """
    drawing = _figure((7, 4.6 if len(panels) == 1 else 2.2 * len(panels)))
    every = drawing.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(every, panels, strict=True):
        for look, line in zip(_looks(), panel.lines.values(), strict=False):
            axes.plot(line.steps, line.mean, look.dash, color=look.colour, lw=1.6, clip_on=False)
            if line.low is not None and line.high is not None:
                band = (line.steps, line.low, line.high)
                axes.fill_between(*band, color=look.colour, alpha=0.15, lw=0)
        _dress(axes, panel)
    every[-1].set_xlabel("step of the stream", color=INK, fontsize=FONT_PT)
    every[0].set_title(title, loc="left", color=INK, fontsize=12, pad=12)
    _beside(every[-1], caption, (0, 0), -48)
    for axes, panel in zip(every, panels, strict=True):
        _name_ends(axes, panel)
    return drawing


class _Look(NamedTuple):
    colour: str
    dash: str


def _looks() -> Iterator[_Look]:
    """Ways to draw a line that can be told apart."""
    return (_Look(colour, dash) for dash in DASHES for colour in COLOURS)


def _figure(size: tuple[float, float]) -> "Figure":
    from matplotlib.figure import Figure

    drawing = Figure(figsize=size, facecolor="white")
    drawing.subplots_adjust(hspace=0.35)
    return drawing


def _dress(axes: "Axes", panel: Panel) -> None:
    """Axes as the learning curves have them."""
    axes.set_xlim(1, max(line.steps[-1] for line in panel.lines.values()))
    axes.locator_params(axis="x", integer=True)
    axes.set_ylabel(panel.label, color=INK, fontsize=FONT_PT)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#B0B0B0")


def _name_ends(axes: "Axes", panel: Panel) -> None:
    """Writes names to the right of the lines' ends, pushed apart where they would overlap."""
    pt_per_pixel = 72 / axes.figure.dpi
    ends = [float(line.mean[-1]) for line in panel.lines.values()]
    heights = [axes.transData.transform((0, end))[1] * pt_per_pixel for end in ends]
    # lines that are one have all their names
    names = [textwrap.fill(name, NAME_WIDTH) for name in panel.lines]
    gap = figure.LABEL_GAP_PT * max(1 + name.count("\n") for name in names)
    floor = axes.transAxes.transform((0, 0))[1] * pt_per_pixel
    places = figure.spread(heights, gap, floor)
    leader = {"arrowstyle": "-", "linewidth": 1.2, "shrinkA": 2, "shrinkB": 3, "relpos": (0, 0.5)}
    named = zip(_looks(), names, ends, heights, places, strict=False)
    for look, name, end, height, place in named:
        axes.annotate(
            name,
            (1, end),
            xycoords=axes.get_yaxis_transform(),
            xytext=(28, place - height),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=FONT_PT,
            arrowprops=leader | {"color": look.colour, "linestyle": look.dash},
        )


def _beside(
    axes: "Axes",
    text: str,
    corner: tuple[float, float],
    offset_pt: float,
    color: str = GREY,
    fontsize: float = 9,
) -> None:
    """Writes above or below axes."""
    axes.annotate(
        text,
        corner,
        xycoords="axes fraction",
        xytext=(0, offset_pt),
        textcoords="offset points",
        va="baseline",
        color=color,
        fontsize=fontsize,
    )
