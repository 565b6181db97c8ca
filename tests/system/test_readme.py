"""What the README shows is run from the README, not from a copy."""

import re
import shlex
from pathlib import Path

import pytest

from snaprl.training import config
from snaprl.training.cli import _parser, config_and_flags

README = Path(__file__).parents[2] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def test_the_python_example_learns(capsys):
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    error = float(re.search(r"squared error ([\d.]+)", capsys.readouterr().out)[1])
    assert error < 0.01  # of a variance of 0.5


@pytest.mark.parametrize("line", re.findall(r"^snaprl .*$", "\n".join(blocks("sh")), re.M))
def test_every_command_is_one(line):
    words = shlex.split(line, comments=True)[1:]
    known, rest = _parser().parse_known_args(words)
    if words[0] == "train":
        config.load(*config_and_flags(rest))
    else:
        assert not rest


def test_the_table_of_configs_names_what_is_there():
    table = TEXT[TEXT.index("| config | task |") :].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    named = set(re.findall(r"`(\w+)`", " ".join(cells)))
    assert named == set(config.shipped())


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", TEXT))
def test_every_link_leads_somewhere(target):
    assert (README.parent / target).exists()
