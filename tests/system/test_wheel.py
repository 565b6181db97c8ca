"""What is shipped is what is tested: the wheel, installed elsewhere, does the main job."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path, timeout_s: float = 300.0) -> str:
    """Runs a command outside the checkout and gives back what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(kind: str, source: Path, target: Path) -> Path:
    """Builds with the installed backend: no isolation, so no network either."""
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", target, cwd=source)
    (built,) = target.iterdir()
    return built


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_package_its_types_and_its_configs(wheel):
    names = names_in(wheel)
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "snaprl").rglob("*.py")}
    found = [path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.toml")]
    configs = {f"snaprl/configs/{path}" for path in found}
    text = "snaprl/training/supervised/texts/moby_dick.txt.gz"
    assert {"snaprl/agents/__init__.py", "snaprl/cores/__init__.py"} <= code & names
    assert {"snaprl/envs/__init__.py", "snaprl/training/__init__.py"} <= code & names
    assert configs
    payload = {name for name in names if ".dist-info/" not in name}
    assert payload == code | configs | {"snaprl/py.typed", text}


def test_the_sdist_builds_the_same_wheel(wheel, tmp_path):
    sdist = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert (source / "tests" / "conftest.py").exists()
    assert names_in(build("wheel", source, tmp_path / "again")) == names_in(wheel)


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel in it, that borrows this one's dependencies.

    A `.pth` file found by way of another `.pth` file is not read: the editable installation of
    this checkout stays out.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    here = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", here, cwd=folder).strip())
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    site.joinpath("borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n", "utf-8")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=folder)
    where = run(python, "-c", "import snaprl; print(snaprl.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(folder)
    return folder


def test_the_installed_wheel_trains_and_evaluates(elsewhere):
    snaprl, work = elsewhere / "venv" / "bin" / "snaprl", elsewhere / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    run(snaprl, "train", "tmaze", "--steps", "20000", "--run-dir", "run", cwd=work)
    for name in ("config.toml", "metrics.jsonl", "checkpoints", "versions.json"):
        assert (work / "run" / name).exists(), name
    reports = (work / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert json.loads(reports[-1])["step"] >= 20000
    result = json.loads(run(snaprl, "evaluate", "run", cwd=work).splitlines()[-1])
    assert "eval_episode_return" in result
