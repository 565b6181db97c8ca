"""The numbers of each picture: as a table, as a record for JSON, and drawn."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from snaprl.cores import analysis
from snaprl.training.errors import UserError
from snaprl.training.inspection import pictures
from snaprl.training.inspection.pictures import Line, Panel
from snaprl.training.inspection.subject import Subject
from snaprl.training.plot import MAX_POINTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 50  # of a line of cosines: one step's depends on the loss that was drawn for it


class Found(NamedTuple):
    """What an inspection gives."""

    table: str
    record: dict[str, Any]
    picture: "Callable[[], Figure]"


def pattern(subject: Subject, orders: Sequence[int], seed: int) -> Found:
    """Which weights may have an influence on which units."""
    del seed
    core = (subject.cell, subject.params, subject.mask, subject.xs[0])
    there = analysis.existing(subject.params, subject.mask)
    found = {n: analysis.influence_pattern(*core, n) for n in orders}
    shares = {n: analysis.kept_share(S, there) for n, S in found.items()}
    rows = {
        f"SnAp-{n}": {"entries": int(S.sum()), "share kept": shares[n]} for n, S in found.items()
    }
    units = subject.cell.features
    entered = analysis.entered(subject.params)[there]
    by_unit = np.argsort(entered, kind="stable")
    drawn = {n: S[:units, there][:, by_unit] for n, S in found.items()}
    return Found(
        _table(rows),
        {"units": units, "weights": int(there.sum()), "orders": rows},
        lambda: pictures.patterns(drawn, shares, entered[by_unit], subject.name),
    )


def bias(subject: Subject, orders: Sequence[int], seed: int) -> Found:
    """What each order keeps of the exact influence; orders that are exact are left out."""
    del seed
    cell, params, mask, xs, resets = subject[1:]
    core = (cell, params, mask, xs[0])
    closed = [n for n in orders if analysis.is_closed(*core, n)]
    followed = [n for n in orders if n not in closed]
    if not followed:
        way_out = "give a lower one in --orders" if closed[0] > 1 else "inspect another core"
        raise UserError(
            f"{subject.name}: order {closed[0]} is exact, so there is nothing to compare; {way_out}"
        )
    there = analysis.existing(params, mask)
    found = analysis.influence_bias(cell, params, mask, xs, resets, followed)
    rows = {}
    for n, ratios in found.items():
        kept = analysis.kept_share(analysis.influence_pattern(*core, n), there)
        means = {name: float(values.mean()) for name, values in ratios._asdict().items()}
        rows[f"SnAp-{n}"] = {"entries kept": kept, **means}
    notes = [f"SnAp-{closed[0]} is exact."] if closed else []
    words = {
        "share": "share of the\nexact norm",
        "size": "norm, relative\nto the exact",
        "error": "error, relative\nto the exact",
    }
    panels = [
        Panel(text, {f"SnAp-{n}": Line.of(getattr(ratios, name)) for n, ratios in found.items()})
        for name, text in words.items()
    ]
    over_time = {
        f"SnAp-{n}": {name: values.mean(1).tolist() for name, values in ratios._asdict().items()}
        for n, ratios in found.items()
    }
    steps, streams = xs.shape[:2]
    caption = _caption(steps, streams, MAX_POINTS, bands=True)
    return Found(
        "\n".join([_table(rows), *notes]),
        {
            "steps": steps,
            "streams": streams,
            "exact_from_order": min(closed, default=None),
            "means": rows,
            "over_time": over_time,
        },
        lambda: pictures.lines(panels, subject.name, " ".join([caption, *notes])),
    )


def cosine(subject: Subject, orders: Sequence[int], seed: int) -> Found:
    """How far the direction of each method's gradient is from that of the exact one."""
    cell, params, mask, xs, resets = subject[1:]
    methods = analysis.candidates(orders)
    key = jax.random.key(seed)
    found = analysis.gradient_cosines(cell, params, mask, xs, resets, methods, key)
    steps, streams = xs.shape[:2]
    rows = {
        name: {"mean": float(x.mean()), "second half": float(x[steps // 2 :].mean())}
        for name, x in found.items()
    }
    together = {names: Line.of(x, points=POINTS, band=False) for names, x in _alike(found).items()}
    panel = Panel("cosine to the exact gradient", together)
    return Found(
        _table(rows),
        {
            "steps": steps,
            "streams": streams,
            "means": rows,
            "over_time": {name: x.mean(1).tolist() for name, x in found.items()},
        },
        lambda: pictures.lines([panel], subject.name, _caption(steps, streams, POINTS)),
    )


def _caption(steps: int, streams: int, points: int, *, bands: bool = False) -> str:
    """How lines were averaged."""
    parts = [f"mean of {streams} streams"] if streams > 1 else []
    parts += [f"{-(-steps // points)} steps at a time"] if steps > points else []
    text = f"Lines: {', '.join(parts)}." if parts else ""
    if bands and streams > 1:
        text += " Bands: from the lowest stream to the highest."
    return text


def _alike(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Methods whose lines would lie on each other, under one name."""
    groups: list[tuple[list[str], np.ndarray]] = []
    for name, x in found.items():
        same = next((names for names, y in groups if np.abs(x - y).max() < 1e-3), None)
        if same is None:
            groups.append(([name], x))
        else:
            same.append(name)
    return {", ".join(names): x for names, x in groups}


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Names to the left, numbers below their names."""
    columns = list(next(iter(rows.values())))
    lines = [["", *columns]]
    for name, row in rows.items():
        cells = (f"{v:,}" if isinstance(v, int) else f"{v:.4f}" for v in row.values())
        lines.append([name, *cells])
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if k == 0 else text.rjust(width)
            for k, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
