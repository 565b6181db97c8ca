"""What the documentation shows is what the code does."""

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from snaprl.training import sinks, typed
from snaprl.training.resume import FREE
from snaprl.training.schema import Config
from snaprl.training.supervised.schema import SupervisedConfig

ROOT = Path(__file__).resolve().parents[2]
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "snaprl").rglob("*.py")
    if ">>>" in path.read_text("utf-8")
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_docstring_examples_run(name):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_room_has_a_page():
    pages = {path.stem for path in (ROOT / "docs" / "reference").glob("*.md")}
    assert pages == {path.parent.name for path in (ROOT / "snaprl").glob("*/__init__.py")}


def python_blocks(page: Path) -> str:
    """The Python of a page; what comes before a block is blank, so that errors name its line."""
    lines, inside = [], False
    for line in page.read_text("utf-8").splitlines():
        closes = inside and line == "```"
        inside = (inside or line == "```python") and not closes
        lines.append(line if inside and line != "```python" else "")
    return "\n".join(lines)


def test_the_page_on_python_is_a_program(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "python.md"
    names: dict[str, Any] = {}
    exec(compile(python_blocks(page), str(page), "exec"), names)
    assert names["report"]["step"] == 24_064  # whole updates
    assert sinks.read_rows(tmp_path / "runs" / "short" / "metrics.jsonl")[-1]["step"] == 26_112
    assert names["found"]["eval_greedy_success"] > 0.9
    out = capsys.readouterr().out
    # a return is as high as the corridor allows: the cue was remembered
    assert len(re.findall(r"episode \d: return 4.0\n", out)) >= 4
    assert float(re.findall(r"success ([\d.]+)", out)[-1]) > 0.9
    assert names["chunk"].updates == 100


def test_the_keys_that_may_change_on_resume_are_listed():
    text = (ROOT / "docs" / "running.md").read_text("utf-8")
    rows = text.partition("| table | keys that may change |")[2].partition("\n\n")[0]
    found = set()
    for row in rows.splitlines()[2:]:
        table, *keys = re.findall("`([a-z_]+)`", row)
        found |= {f"{table}.{key}" for key in keys}
    assert found == FREE
    assert set(typed.keys(Config)) | set(typed.keys(SupervisedConfig)) >= FREE
