"""What a run was made with: versions, commit, command, and what its checkpoints belong to."""

import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from snaprl.training.errors import UserError

FILE = "versions.json"  # in a run's folder
VERSIONS = ("snaprl", "jax", "jaxlib", "flax", "optax", "rlax", "gymnasium", "numpy")


def now(config: str) -> dict[str, str]:
    """What a run that begins now is made with; `config` is the name of what describes it."""
    return {name: _version(name) for name in VERSIONS} | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "config": config,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
    }


def read(folder: Path) -> dict[str, str]:
    """What the run in a folder was made with; nothing where that cannot be read."""
    try:
        return json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def compare(folder: Path, facts: Mapping[str, str]) -> None:
    """Refuses a run whose checkpoints belong to something else, such as another text.

    Raises:
        UserError: One of `facts` is not what it was when the run began.
    """
    held = read(folder)
    for name, value in facts.items():
        if held.get(name, value) != value:
            raise UserError(
                f"the run in {folder} was trained with {name} {held[name]}, and what its config "
                f"names now has {value}: put back what was there, or train anew"
            )


def _commit() -> str:
    """The commit of the checkout that this is, with a + where files differ; '' outside of one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    git = ["git", "-C", str(root)]
    try:
        commit, changed = (
            subprocess.run(
                [*git, *words], capture_output=True, text=True, timeout=10
            ).stdout.strip()
            for words in (("rev-parse", "--short=10", "HEAD"), ("status", "--porcelain", "snaprl"))
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f"{commit}+" if changed else commit


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
