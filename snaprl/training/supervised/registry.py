"""The supervised tasks by name, looked up before anything heavy is imported."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from snaprl.training import typed
from snaprl.training.errors import UserError, suggest

if TYPE_CHECKING:  # names are checked before anything heavy is imported
    from snaprl.training.supervised.types import Task

TASKS = {  # name -> module here, dataclass of its arguments with `make() -> Task`
    "copy": ("copying", "Copy"),
    "delayed_copy": ("copying", "DelayedCopy"),
    "adding": ("adding", "Adding"),
    "parity": ("binary", "Parity"),
    "delayed_match": ("binary", "DelayedMatch"),
    "anbn": ("counting", "AnBn"),
    "lorenz": ("chaos", "Lorenz"),
    "mackey_glass": ("chaos", "MackeyGlass"),
    "characters": ("characters", "Characters"),
    "digits": ("digits", "Digits"),
}


def check_task(name: str) -> None:
    """Refuses a task that is not known.

    Raises:
        UserError: The sentence names the nearest known task, or all of them.
    """
    if name not in TASKS:
        raise UserError(f"there is no task '{name}': {suggest(name, TASKS)}")


def task_class(name: str) -> type:
    """The dataclass of a task's arguments.

    Raises:
        UserError: There is no such task.
    """
    check_task(name)
    module, attribute = TASKS[name]
    return getattr(importlib.import_module(f"snaprl.training.supervised.{module}"), attribute)


def make_task(name: str, kwargs: Mapping[str, object]) -> "Task":
    """Makes a task.

    Raises:
        UserError: There is no such task, an argument is unknown or wrong, or what it reads, such
            as a text, is not there.
    """
    arguments: Any = typed.read(task_class(name), kwargs, where=f" of the task {name}")
    return arguments.make()


def listing() -> list[tuple[str, str, dict[str, Any]]]:
    """Name, first sentence and arguments with their defaults, for every task."""
    found = []
    for name in TASKS:
        task: Any = task_class(name)
        summary = (task.__doc__ or "").strip().partition("\n")[0]
        arguments = {field.name: field.default for field in dataclasses.fields(task)}
        found.append((name, summary, arguments))
    return found
