"""The guide's programs run, one after another, and print what it says they print."""

import re
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[4] / "docs" / "sparsity.md"


def test_the_guide_does_what_it_says():
    text = GUIDE.read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    printed: list[str] = []
    names = {"print": lambda *values: printed.append(" ".join(map(str, values)))}
    for block in blocks:
        exec(block, names)
    said = re.findall(r"^print\(.*\)  # ([\d.]+)", text, flags=re.MULTILINE)
    assert printed == said
    assert len(blocks) == 8
    assert len(said) == 3
