"""A page of headings, words, tables and figures, as Markdown and as HTML in one file."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60em; margin: 2em auto;
  padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
code { font-size: .9em; background: #f4f4f4; padding: .1em .3em; }
svg { max-width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 or 2."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Words:
    """A paragraph; what stands between backticks is code."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells below names."""

    names: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure, by the path of its PNG, beside which there is an SVG of the same name."""

    path: Path
    text: str


Block = Heading | Words | Table | Picture


def markdown(blocks: Sequence[Block]) -> str:
    """The page as Markdown; pictures are links to files beside it."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Words(text):
            return text
        case Picture(path, text):
            return f"![{text}]({path.name})"
        case Table(names, rows):
            cells = [[cell.replace("|", "\\|") for cell in row] for row in (names, *rows)]
            lines = [cells[0], ["---"] * len(names), *cells[1:]]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_html(blocks: Sequence[Block], title: str) -> str:
    """The page as one HTML file, pictures included."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}'
        f"</title>\n<style>{STYLE}</style>\n{body}\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Words(text):
            return f"<p>{_inline(text)}</p>"
        case Picture(path, text):
            svg = path.with_suffix(".svg").read_text(encoding="utf-8")
            drawing = svg[svg.index("<svg") :]
            return f"<figure>{drawing}<figcaption>{html.escape(text)}</figcaption></figure>"
        case Table(names, rows):
            head = "".join(f"<th>{_inline(name)}</th>" for name in names)
            lines = ["".join(f"<td>{_inline(cell)}</td>" for cell in row) for row in rows]
            return (
                f"<table>\n<tr>{head}</tr>\n"
                + "".join(f"<tr>{line}</tr>\n" for line in lines)
                + "</table>"
            )


def _inline(text: str) -> str:
    """Escaped, with `code` and **bold** as in Markdown."""
    pieces = html.escape(text).split("`")
    for k, piece in enumerate(pieces):
        if k % 2:
            pieces[k] = f"<code>{piece}</code>"
        else:
            bold = piece.split("**")
            pieces[k] = "".join(f"<b>{p}</b>" if j % 2 else p for j, p in enumerate(bold))
    return "".join(pieces)
