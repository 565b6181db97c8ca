"""Finished or running runs, read back from their folders and told apart."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from snaprl.training import parts, sinks
from snaprl.training.errors import UserError

Value = bool | int | float | str | tuple[object, ...]
UNSEEN = ("report_every", "checkpoint_every", "keep_checkpoints")  # change nothing that is learnt
CELL_WORDS = {"simple": "simple RNN", "gru": "GRU", "mgu": "MGU", "lstm": "LSTM"}


@dataclass(frozen=True)
class Run:
    """One run: what it was told to do, and what it reported."""

    folder: Path
    settings: Mapping[str, Value]  # dotted key -> value, without the seed
    rows: Sequence[Mapping[str, float | int | str | None]]


def read(folder: Path) -> Run:
    """Reads a run's folder, which may be that of a run that goes on or was broken off.

    Raises:
        UserError: The folder holds no run, or one that has not reported yet.
    """
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(f"{folder} is no run: there is no metrics.jsonl in it")
    rows = sinks.read_rows(metrics)
    if not rows:
        raise UserError(f"{folder} holds no report yet: try again when the run has gone further")
    return Run(folder, _settings(folder), rows)


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Puts runs together that differ by the seed alone, under a label that a person can read.

    Labels say what differs between the groups, and the gradient method where nothing does.
    """
    kinds: list[tuple[Mapping[str, Value], list[Run]]] = []
    for run in runs:
        members = next((members for settings, members in kinds if settings == run.settings), None)
        if members is None:
            kinds.append((run.settings, [run]))
        else:
            members.append(run)
    differing = _differing([settings for settings, _ in kinds])
    named: dict[str, list[Run]] = {}
    for settings, members in kinds:
        name = label(settings, differing) or members[0].folder.name
        named.setdefault(name, []).extend(members)
    return named


def label(settings: Mapping[str, Value], keys: Sequence[str]) -> str:
    """Says in words what the settings under `keys` are; the method goes with what defines it."""
    words = [_words(key, settings) for key in keys if key in settings]
    return ", ".join(word for word in words if word)
