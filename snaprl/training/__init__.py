"""Learner, loops, runs and the command `snaprl`.

The reading order: `learner.py`, `device_loop.py`, `run.py`, then the rest. What a program of one's
own needs first can be imported from here.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snaprl.training.player import Player, load
    from snaprl.training.run import Run
    from snaprl.training.schema import Config

__all__ = ["Config", "Player", "Run", "load"]
_OF = {"Config": "schema", "Player": "player", "Run": "run", "load": "player"}


def __getattr__(name: str) -> Any:
    """Imports what is asked for, and not before: the command has to start at once."""
    if name not in _OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_OF[name]}"), name)
