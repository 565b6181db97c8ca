"""The table of methods in the docs, made of the registry.

`python tests/contract/table.py` writes it into docs/methods.md; a test compares the two.
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contract.registry import METHODS, Law

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"
START, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


class Cost(NamedTuple):
    """Per stream: N units, G gates, U state variables, s units reached; T steps of a segment.

    K inputs of a unit as the kernels have them, and k those of them that the mask leaves. On a
    dense core s is N, and k is K.
    """

    memory: str  # a product of these, or "none": compared with what is carried
    time: str
    cells: str = "any"  # or "unit-wise": compared with what is refused
    about: str = ""  # of the memory


UNITWISE = "unit-wise"
PAIRS = "s^2 per weight and step, less where D is sparse"
COST = {
    "snap1": Cost("U N K G", "BPTT's, none of it sequential backward"),
    "snap0": Cost("none", "less than BPTT's"),
    "snap2": Cost("s U N k G", PAIRS),
    "snap3": Cost("s U N k G", PAIRS),
    "rtrl": Cost(
        "s U N k G",
        "N per influence and segment, 1 per influence and step",
        about="s all that are ever reached",
    ),
    "bptt": Cost("none", "3 N K G per step", about="T N (G + 2) inside the segment"),
    "tail-snap1": Cost("U N K G", "BPTT's and SnAp-1's"),
    "tail-snap2": Cost("s U N k G", "BPTT's and SnAp-2's"),
    "tail-rtrl": Cost("s U N k G", "BPTT's and RTRL's", about="as for `RTRL()`"),
    "rflo": Cost("U N K G", "SnAp-1's", UNITWISE),
    "eprop": Cost("U N K G", "SnAp-1's", UNITWISE),
    "uoro": Cost(
        "N K G",
        "3 N K G per step and, by 32 steps, for inner products; the backward pass walks again",
        UNITWISE,
    ),
    "kf-rtrl": Cost("2 U N^2 G", "N^3 G per step", UNITWISE),
    "ok-rtrl": Cost("2 R U N^2 G", "R N^3 G per step", UNITWISE),
    "tail-rflo": Cost("U N K G", "BPTT's and RFLO's", UNITWISE),
    "tail-uoro": Cost("N K G", "BPTT's, and the estimate's forward walk", UNITWISE),
    "frozen": Cost("none", "no gradient of the weights"),
}


def table() -> str:
    """The table as markdown."""
    rows = [
        "| method | exact | biased | any split | one step exact | cells | memory carried | time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in METHODS.items():
        cost, exact = COST[name], Law.EXACT in row.laws
        biased = "no" if exact or row.drawn else "yes" if row.learns else "-"
        marks = ["yes" if law in row.laws else "no" for law in (Law.ANY_SPLIT, Law.ONE_STEP)]
        method = repr(row.method)
        for default in (", entries=False", "tail=None, ", ", pieces=1", "pieces=1"):
            method = method.replace(default, "")
        memory = f"{cost.memory}; {cost.about}" if cost.about else cost.memory
        made = [*marks, cost.cells, memory, cost.time]
        cells = [f"`{method}`", "yes" if exact else "no", biased, *made]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Writes the table between its marks."""
    text = PAGE.read_text("utf-8")
    before, rest = text.split(START)
    PAGE.write_text(before + START + table() + END + rest.split(END)[1], "utf-8")


if __name__ == "__main__":
    main()
