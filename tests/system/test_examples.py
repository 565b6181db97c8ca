"""What a user copies: every example runs, shows what it says, and is what the guide shows."""

import ast
import difflib
import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
GUIDE = (ROOT / "docs" / "plug.md").read_text("utf-8")
SEEDS = [0, 1, 2]
PROGRESS = re.compile(r" *(\w+ +)?steps +(\d+)  (?:success|recalled) (\d\.\d\d)")

# name: (a tiny budget, whose lines of progress are these)
TINY = {
    "nnx_agent": (["--steps", "8192", "--length", "4"], ["windowed"] * 8 + ["online"] * 8),
    "nnx_ppo": (["--steps", "10240", "--length", "4"], ["windowed"] * 10 + ["online"] * 10),
    "own_cell": (
        ["--steps", "20480"],
        ["bptt"] * 8 + ["snap1"] * 8 + ["rtrl"] * 8,
    ),
    "ppo_online": (["--steps", "10240", "--length", "4"], [""] * 10),
    "ppo_rnn": (["--steps", "10240", "--length", "4"], [""] * 10),
    "supervised": (["--steps", "640"], ["rnn"] * 8 + ["online"] * 8),
}


def run(name: str, *arguments: str) -> list[tuple[str, int, float]]:
    """Runs an example as a user does; returns what each line of its progress says."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | cache,
    )
    assert done.returncode == 0, done.stderr
    lines = [PROGRESS.fullmatch(line) for line in done.stdout.splitlines()]
    assert lines
    assert all(lines), done.stdout
    return [((m[1] or "").strip(), int(m[2]), float(m[3])) for m in lines if m]


def code(name: str) -> list[str]:
    """The lines of an example below its docstring."""
    text = (EXAMPLES / f"{name}.py").read_text("utf-8")
    end = ast.parse(text).body[0].end_lineno
    return text.splitlines()[end:]


def of_class(file: str, name: str) -> list[str]:
    """The lines of a class."""
    text = (EXAMPLES / f"{file}.py").read_text("utf-8")
    body = ast.parse(text).body
    (found,) = (node for node in body if isinstance(node, ast.ClassDef) and node.name == name)
    return text.splitlines()[found.lineno - 1 : found.end_lineno]


def diff(before: list[str], after: list[str], names: tuple[str, str]) -> list[str]:
    """A diff with one line of context, and without line numbers."""
    lines = difflib.unified_diff(before, after, *names, n=1, lineterm="")
    return ["@@" if line.startswith("@@") else line for line in lines]


def changed(lines: list[str], sign: str) -> list[str]:
    return [line for line in lines if line.startswith(sign) and not line.startswith(sign * 3)]


def ppo_diff() -> list[str]:
    names = "examples/ppo_rnn.py", "examples/ppo_online.py"
    return diff(code("ppo_rnn"), code("ppo_online"), names)


@functools.cache
def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(TINY)


@pytest.mark.parametrize("name", TINY)
def test_an_example_says_how_to_run_it(name):
    text = (EXAMPLES / f"{name}.py").read_text("utf-8")
    assert f"    python examples/{name}.py" in (ast.get_docstring(ast.parse(text)) or "")


@pytest.mark.parametrize("name", TINY)
def test_an_example_runs(name):
    arguments, names = TINY[name]
    lines = run(name, *arguments, "--seed", "1")
    assert [line[0] for line in lines] == names
    own = [[steps for name_, steps, _ in lines if name_ == each] for each in dict.fromkeys(names)]
    assert all(np.diff(steps).min() > 0 for steps in own)
    assert {steps[-1] for steps in own} == {int(arguments[1])}
    assert all(0 <= share <= 1 for _, _, share in lines)


def test_the_swap_in_ppo_is_five_lines():
    lines = ppo_diff()
    assert 0 < len(changed(lines, "-")) <= 5
    assert 0 < len(changed(lines, "+")) <= 5


def test_the_guide_shows_the_diffs():
    layers = [of_class("supervised", name) for name in ("Windowed", "Online")]
    expected = [
        diff(*layers, ("examples/supervised.py Windowed", "examples/supervised.py Online")),
        ppo_diff(),
    ]
    shown = re.findall(r"```diff\n(.*?)```", GUIDE, re.S)
    assert [block.splitlines() for block in shown] == expected


def test_the_guide_shows_lines_that_are_there():
    """Lines of Python in the guide stand in the example that the block names first."""
    blocks = re.findall(r"```python\n *# (examples/\w+\.py)\n(.*?)```", GUIDE, re.S)
    assert blocks
    for path, block in blocks:
        there = {line.strip() for line in (ROOT / path).read_text("utf-8").splitlines()}
        assert {line.strip() for line in block.splitlines()} - {""} <= there


def test_only_the_gradient_differs():
    """The supervised models start from the same weights and say the same."""
    supervised = module("supervised")
    xs, _, _ = supervised.recall_task(supervised.WINDOW, 0)
    outcomes = []
    for model in (supervised.Windowed(), supervised.Online()):
        carry = model.initialize_carry(jax.random.key(0))
        params = model.init(jax.random.key(1), carry, xs)
        outcomes.append((params, model.apply(params, carry, xs)[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *outcomes)


@pytest.mark.learning
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("plain", "online"),
    [
        ({"name": "ppo_rnn"}, {"name": "ppo_online"}),
        ({"name": "nnx_agent", "core": "windowed"}, {"name": "nnx_agent", "core": "online"}),
        ({"name": "nnx_ppo", "core": "windowed"}, {"name": "nnx_ppo", "core": "online"}),
        ({"name": "supervised", "core": "rnn"}, {"name": "supervised", "core": "online"}),
    ],
    ids=["ppo", "nnx_agent", "nnx_ppo", "supervised"],
)
def test_the_online_one_learns_and_the_plain_one_does_not(plain, online, seed):
    def last(name: str, core: str | None = None) -> float:
        arguments = [] if core is None else ["--core", core]
        return run(name, *arguments, "--seed", str(seed))[-1][2]

    assert last(**online) > 0.9
    assert abs(last(**plain) - 0.5) < 0.1


@pytest.mark.learning
@pytest.mark.parametrize("seed", SEEDS)
def test_a_cell_of_ones_own_learns(seed):
    lines = run("own_cell", "--seed", str(seed))
    last = {method: share for method, _, share in lines}
    assert last["snap1"] > 0.95
    assert last["rtrl"] > 0.8  # .88 on seed 2, where it begins late
    assert abs(last["bptt"] - 0.5) < 0.1
