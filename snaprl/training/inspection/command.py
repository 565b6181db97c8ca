"""The command's arguments, and what is done with them."""

import argparse
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snaprl.training import parts
from snaprl.training.errors import UserError

if TYPE_CHECKING:  # nothing heavy is imported before it is known what is asked for
    from matplotlib.figure import Figure

    from snaprl.training.inspection.subject import Subject

DEFAULTS = {"cell": "gru", "units": 16, "inputs": 4}  # of a core that is not a run's
ORDERS = {"pattern": [1, 2, 3], "bias": [1, 2, 3], "cosine": [0, 1, 2, 3]}
LIMIT_GIB = 2.0
TEXTS = {
    "pattern": "draw which weights may have an influence on which units, order by order",
    "bias": "draw what each order keeps of the exact influence, step by step",
    "cosine": "draw the cosine of each method's gradient to the exact one, step by step",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the three pictures to the command's parser, each as a command of its own."""
    cells = [name for name in parts.CELLS if name not in parts.COMPRESSED]
    pictures = parser.add_subparsers(required=True, metavar="PICTURE", dest="picture")
    for name, text in TEXTS.items():
        picture = pictures.add_parser(name, help=text, description=text, allow_abbrev=False)
        add = picture.add_argument
        add("run", type=Path, nargs="?", metavar="RUN", help="a run's folder; none: a random core")
        add("--cell", help=f"of a random core: {', '.join(cells)} ({DEFAULTS['cell']})")
        add("--units", type=int, help=f"of a random core ({DEFAULTS['units']})")
        add("--inputs", type=int, help=f"of a random core ({DEFAULTS['inputs']})")
        add("--fan-in", type=int, help="units that a unit of a random core reads (all)")
        add("--gain", type=float, help="by which its recurrent weights are larger (1)")
        orders = ORDERS[name]
        shown = " ".join(map(str, orders))
        add("--orders", type=int, nargs="+", default=orders, help=f"of SnAp ({shown})")
        if name != "pattern":
            add("--steps", type=int, default=200, help="of each stream (200)")
            add("--streams", type=int, default=8, help="that are averaged over (8)")
        add("--seed", type=int, default=0, help="of all that is drawn (0)")
        add("--out", type=Path, help="folder to write to (the run's, or the present one)")
        picture.set_defaults(usage=picture.format_usage())


def check(known: argparse.Namespace) -> None:
    """Refuses arguments that are out of range or do not go together, before anything heavy.

    Raises:
        UserError: The sentence names the argument.
    """
    lowest = 0 if known.picture == "cosine" else 1
    bounds = {"units": 1, "inputs": 1, "fan_in": 1, "steps": 1, "streams": 1, "seed": 0}
    for name, least in bounds.items():
        value = getattr(known, name, None)
        if value is not None and value < least:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} is {value}: give {least} or more")
    if known.gain is not None and not 0 < known.gain < float("inf"):
        raise UserError(f"--gain is {known.gain}: give a number above 0")
    if min(known.orders) < lowest:
        raise UserError(f"--orders has {min(known.orders)}: {known.picture} takes {lowest} or more")
    if known.cell is not None:
        parts.check_cell(known.cell)
    if known.run is not None:
        for name in ("cell", "units", "inputs", "fan_in", "gain"):
            if getattr(known, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{known.run} says what its core is: leave {flag} out")


def run(known: argparse.Namespace) -> None:
    """Makes a picture as PNG and SVG, prints its numbers as a table and writes them as JSON.

    Raises:
        UserError: There is no such run or core, it is too large, or a file cannot be written.
    """
    from snaprl.training.inspection import numbers, subject

    steps, streams = getattr(known, "steps", 1), getattr(known, "streams", 1)
    if known.run is not None:
        inspected = subject.of_run(known.run, steps=steps, streams=streams, seed=known.seed)
    else:
        inspected = subject.random(
            known.cell or DEFAULTS["cell"],
            units=known.units or DEFAULTS["units"],
            inputs=known.inputs or DEFAULTS["inputs"],
            fan_in=known.fan_in,
            gain=1.0 if known.gain is None else known.gain,
            steps=steps,
            streams=streams,
            seed=known.seed,
        )
    orders = sorted(set(known.orders))
    _check_core(inspected, known.picture, len(orders))
    found = getattr(numbers, known.picture)(inspected, orders, known.seed)
    print(found.table)
    stem = (known.out or known.run or Path()) / f"inspect-{known.picture}"
    for path in _write(stem, found.picture(), {"core": inspected.name, **found.record}):
        print(path)


def _check_core(inspected: "Subject", picture: str, orders: int) -> None:
    """Refuses a core without an exact influence, or with one that is too large to look at."""
    from snaprl.cores import analysis

    if picture != "pattern":
        try:
            analysis.check_exact(inspected.cell)
        except ValueError as error:
            raise UserError(str(error)) from error
    core = (inspected.params, inspected.mask, inspected.states)
    if picture == "pattern":
        needed = analysis.pattern_gib(inspected.params, inspected.states, orders)
    elif picture == "bias":
        needed = analysis.bias_gib(*core, orders)
    else:
        needed = analysis.cosines_gib(*core, *inspected.xs.shape[:2])
    if needed > LIMIT_GIB:
        entries = inspected.states * int(analysis.existing(*core[:2]).sum())
        raise UserError(
            f"{inspected.name}: the exact influence has {entries:,} entries per stream, and to "
            f"look at it takes about {needed:.1f} GiB where {LIMIT_GIB:.0f} are allowed; inspect a "
            "smaller or a sparser core, or less of it at once"
        )


def _write(stem: Path, drawing: "Figure", record: Mapping[str, Any]) -> list[Path]:
    from matplotlib import rc_context

    files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg", "json")]
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        _save_png(drawing, files[0])
        with rc_context({"svg.hashsalt": "snaprl"}):  # and no date: same numbers, same file
            drawing.savefig(files[1], bbox_inches="tight", metadata={"Date": None})
        files[2].write_text(json.dumps(record) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{stem.parent} cannot be written to ({error.strerror}): give another --out"
        ) from error
    return files


def _save_png(drawing: "Figure", file: Path) -> None:
    """With a palette, which a picture of a few colours needs no more than: a third of the bytes."""
    from PIL import Image

    whole = io.BytesIO()
    drawing.savefig(whole, format="png", dpi=160, bbox_inches="tight")
    Image.open(whole).convert("RGB").quantize(128).save(file, optimize=True)
