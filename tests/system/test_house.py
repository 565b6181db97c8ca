"""The rooms of the house: who may import whom, and what an import may cost."""

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import snaprl
from snaprl.training import config

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "snaprl"
CONFIGS = ROOT / "configs"

# training -> agents -> cores, training -> envs
MAY_IMPORT = {
    "cores": set(),
    "envs": set(),
    "agents": {"cores"},
    "training": {"agents", "cores", "envs"},
}
# Each is optional, or of use to training alone: an actor starts without them.
HEAVY = ["distrax", "matplotlib", "orbax", "pandas", "ray", "tensorboardX", "tensorflow"]


def rooms_imported(source: str) -> set[str]:
    """The rooms that a file imports, inside functions too."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "snaprl" and len(part) > 1} & set(MAY_IMPORT)


def python_files(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("import snaprl.cores.snap", {"cores"}),
        ("from snaprl import cores, envs", {"cores", "envs"}),
        ("def f():\n    from snaprl.training import config as c", {"training"}),
        ("import snaprl\nfrom snaprl import __version__\nimport json", set()),
    ],
)
def test_the_reader_of_imports_sees_every_form(source, rooms):
    assert rooms_imported(source) == rooms


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows_go_one_way(room):
    files = python_files(room)
    assert files, f"snaprl/{room} has no files"
    wrong = {
        str(path.relative_to(ROOT)): sorted(forbidden)
        for path in files
        if (forbidden := rooms_imported(path.read_text("utf-8")) - MAY_IMPORT[room] - {room})
    }
    assert not wrong


# what a training loop is made of: who calls these trains
GRADIENTS = {"jax.grad", "jax.value_and_grad", "jax.vjp", "jax.linearize"}
STEPS = {"optax.apply_updates", "optimizer.update"}


def names_used(source: str) -> list[str]:
    """The names that a file uses, each as often as it does, as its imports spell them out."""
    tree = ast.parse(source)
    of: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            of |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            of |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    used = (ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute | ast.Name))
    parts = (name.partition(".") for name in used)
    return [of.get(first, first) + dot + rest for first, dot, rest in parts]


@pytest.mark.parametrize(
    ("source", "used"),
    [
        ("import jax\njax.grad(f)(x)", "jax.grad"),
        ("import jax as j\ng = j.value_and_grad", "jax.value_and_grad"),
        ("from jax import grad as g\ng(f)", "jax.grad"),
        ("def f():\n    from optax import apply_updates as a\n    a(p, s)", "optax.apply_updates"),
        ("optimizer.update(grads, state)", "optimizer.update"),
    ],
)
def test_the_reader_of_names_sees_every_form(source, used):
    assert used in names_used(source)


def users_of(names: set[str]) -> dict[str, list[str]]:
    """Which files of the package use some of the names, and which, as often as they do."""
    used = {
        str(path.relative_to(PACKAGE)): names_used(path.read_text("utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    found = {path: sorted(name for name in every if name in names) for path, every in used.items()}
    return {path: some for path, some in found.items() if some}


def test_parameters_are_changed_in_one_place():
    """Agents and supervised tasks train by the same learner."""
    assert users_of(STEPS) == {"training/learner.py": sorted(STEPS)}


def test_supervised_tasks_and_sweeps_have_no_training_loop_of_their_own():
    ours = ("training/supervised/", "training/sweeps/")
    assert [path for path in users_of(GRADIENTS | STEPS) if path.startswith(ours)] == []
    assert "training/supervised/build.py" in users_of({"snaprl.training.learner.make_learner"})
    assert "training/supervised/loop.py" in users_of({"self._learner.update"})


def test_every_room_is_known():
    found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert found == set(MAY_IMPORT)


def test_every_folder_with_code_is_a_package():
    """A folder without `__init__.py` would import here and be missed by tools."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LIGHT = ["snaprl", "snaprl.cores", "snaprl.envs", "snaprl.envs.tmaze", "snaprl.agents"]


@pytest.mark.parametrize("module", [*LIGHT, "snaprl.training.build"])
def test_import_is_light(module):
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(run_python(code))
    loaded = {name.split(".")[0] for name in modules}
    assert loaded.isdisjoint(HEAVY)
    if module == "snaprl":
        assert "jax" not in loaded
    if module == "snaprl.cores":
        assert "flax.nnx" not in modules


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_import_starts_no_device_and_sets_no_option(room):
    """On a platform that does not exist, the first use of a device would raise."""
    code = (
        "import jax; before = dict(jax.config.values)\n"
        f"import snaprl.{room}; assert dict(jax.config.values) == before\n"
        "try: jax.devices()\n"
        "except RuntimeError: print('a device would have been noticed')"
    )
    assert "noticed" in run_python(code, JAX_PLATFORMS="no_such_platform")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_config_loads(path):
    assert config.load(path.stem) == config.load(path)


def test_the_version_is_said_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert snaprl.__version__ == project["version"] == importlib.metadata.version("snaprl")


def test_the_lock_names_no_place():
    """An address or a path in it would tie the installation to one index or machine."""
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    wrong = [line for line in lines if any(sign in line for sign in ("://", "--", "@", "file:"))]
    assert not wrong
