"""The command `snaprl`, called in this process, and a small run of it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import gymnasium
import pytest
from system.command import TASK, Pathological, Said

from snaprl.training import cli


@pytest.fixture(scope="module")
def surroundings():
    """An environment of ours to go wrong, and jax's settings left as they are."""
    gymnasium.register("tests/Pathological-v0", Pathological)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_prepare_jax", lambda: None)
        yield
    del gymnasium.registry["tests/Pathological-v0"]


@pytest.fixture
def snaprl(capsys, surroundings) -> Callable[..., Said]:
    def command(*arguments: object) -> Said:
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code
        return Said(code, *capsys.readouterr())

    return command


@pytest.fixture(scope="module")
def trained(tmp_path_factory, surroundings) -> Path:
    """A folder with `task.toml` and the run `run` that was made from it."""
    folder = tmp_path_factory.mktemp("trained")
    task = folder / "task.toml"
    task.write_text(TASK, encoding="utf-8")
    assert cli.main(["train", str(task), "--run-dir", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    """The run of `trained`, to be spoilt."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def task(tmp_path) -> Path:
    path = tmp_path / "task.toml"
    path.write_text(TASK, encoding="utf-8")
    return path
