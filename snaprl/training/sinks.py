"""Where reports go: a sink takes one mapping per report and is closed at the end.

A report holds `step`, which never falls within a run, and names with numbers or strings. Other
places, such as an experiment tracker, are reached by a class with the same two methods.
"""

import contextlib
import importlib
import json
import math
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from snaprl.training.errors import UserError

Report = Mapping[str, float | int | str]
EVALUATION = "eval_"
FINISH_S, HURRIED_S = 60.0, 2.0  # what wandb is given to send the last of it


class Sink(Protocol):
    """Takes reports."""

    def write(self, report: Report) -> None:
        """Takes one report."""

    def close(self) -> None:
        """Gives back what is held open; no report follows."""


class NullSink:
    """Takes reports nowhere."""

    def write(self, report: Report) -> None:
        """Forgets the report."""
        del report

    def close(self) -> None:
        """Has nothing to close."""


class JsonlSink:
    """Appends reports to a file, one JSON object a line, each handed to the system at once.

    JSON has no word for infinity or for what is not a number: both are written as `null`, which
    every reader of JSON takes.

    Args:
        path: The file; it is made where it is missing.
        keep_until_step: None begins a file that must not hold reports yet. A step continues one:
            what comes after that step, and a last line torn by a crash, is dropped at once.

    Raises:
        UserError: The file cannot be written, or holds reports that nobody said to continue.
    """

    def __init__(self, path: Path, keep_until_step: int | None = None) -> None:
        self._path = path
        with _told_about(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if keep_until_step is not None:
                _drop_after(path, keep_until_step)
            elif path.exists() and path.stat().st_size:
                raise UserError(
                    f"{path} holds the reports of another run: continue that one with --resume,"
                    " or give this one a --run-dir of its own"
                )
            # unbuffered: a line that failed to be written must not come back when closing
            self._file = path.open("ab", buffering=0)

    def write(self, report: Report) -> None:
        """Appends one line; raises UserError where that fails, as on a full disk."""
        line = json.dumps({name: _plain(value) for name, value in report.items()}) + "\n"
        rest = line.encode()
        with _told_about(self._path):
            while rest:
                rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardSink:
    """Writes the numbers of reports as TensorBoard scalars, `train/NAME` and `eval/NAME`.

    Args:
        folder: The folder that TensorBoard is pointed at.
        keep_until_step: Where a run is continued: TensorBoard drops what came after that step.

    Raises:
        UserError: The folder cannot be written.
    """

    def __init__(self, folder: Path, keep_until_step: int | None = None) -> None:
        # Not SummaryWriter: its thread dies on a full disk, and its queue then blocks for ever.
        from tensorboardX import event_file_writer

        self._folder = folder
        with _told_about(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # the name holds seconds only, and a run may be continued within one
            suffix = f".{time.time_ns()}"
            self._writer = event_file_writer.EventsWriter(str(folder / "events"), suffix)
            if keep_until_step is not None:
                event_pb2 = _proto("event")
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                purge_step = keep_until_step + 1
                event = event_pb2.Event(wall_time=time.time(), step=purge_step, session_log=start)
                self._writer.write_event(event)

    def write(self, report: Report) -> None:
        """Writes one event with all numbers of the report; raises UserError where that fails."""
        summary = _proto("summary").Summary
        values = [
            summary.Value(tag=_tag(name), simple_value=float(value))
            for name, value in report.items()
            if name not in ("step", "wall_s") and not isinstance(value, str)
        ]
        event = _proto("event").Event(
            wall_time=time.time(),
            step=int(report["step"]),
            summary=summary(value=values),
        )
        with _told_about(self._folder):
            self._writer.write_event(event)
            self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        with _told_about(self._folder):
            self._writer.close()


class WandbSink:
    """Sends the numbers of reports to Weights & Biases, under TensorBoard's names.

    A run that is continued goes on as the same run there: its folder remembers under which id.
    What is said where, and whether the network is used at all, is up to wandb's own settings, such
    as `WANDB_MODE=offline`.

    Args:
        project: The project there.
        folder: The run's folder.
        name: The run's name there.
        config: What the run was told to do.
        hurried: Whether someone waits for the run to end.

    Raises:
        UserError: wandb is not installed, or does not start.
    """

    def __init__(
        self,
        project: str,
        folder: Path,
        name: str,
        config: Mapping[str, Any],
        hurried: Callable[[], bool] = lambda: False,
    ) -> None:
        self._folder, self._hurried = folder, hurried
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise UserError(
                f"training.wandb = '{project}' needs wandb: pip install 'snaprl[wandb]'"
            ) from error
        file = folder / "wandb-id"
        with _told_about(file):
            if not file.exists():
                file.write_text(secrets.token_hex(4), encoding="utf-8")
            held = file.read_text(encoding="utf-8").strip()
        try:
            self._run = wandb.init(
                project=project, name=name, id=held, resume="allow", dir=folder, config=dict(config)
            )
        except wandb.Error as error:
            raise UserError(
                f"wandb does not start: {error}; log in there, set WANDB_MODE=offline, or leave "
                "training.wandb out"
            ) from error

    def write(self, report: Report) -> None:
        """Hands the numbers of the report to wandb, which sends them in the background."""
        numbers = {
            _tag(name): value
            for name, value in report.items()
            if name not in ("step", "wall_s") and not isinstance(value, str)
        }
        self._run.log(numbers, step=int(report["step"]))

    def close(self) -> None:
        """Ends the run there; where that takes long, says how the rest gets there later."""

        def end() -> None:
            try:
                self._run.finish()
            except Exception as error:
                print(f"snaprl: wandb did not end well: {error}", file=sys.stderr)

        ending = threading.Thread(target=end, daemon=True)
        ending.start()
        begin_s = time.monotonic()
        while ending.is_alive():
            ending.join(0.1)
            if time.monotonic() - begin_s > (HURRIED_S if self._hurried() else FINISH_S):
                print(
                    f"snaprl: wandb has not sent everything; `wandb sync {self._folder}/wandb/*` "
                    "sends the rest",
                    file=sys.stderr,
                )
                return


class Fanout:
    """Hands each report to several sinks; one that fails does not keep it from the others."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def write(self, report: Report) -> None:
        """Hands the report to all, then raises the first failure, an OSError as a UserError."""
        self._each(lambda sink: sink.write(report))

    def close(self) -> None:
        """Closes all, then raises the first failure, an OSError as a UserError."""
        self._each(lambda sink: sink.close())

    def _each(self, call: Callable[[Sink], None]) -> None:
        failures: list[Exception] = []
        for sink in self._sinks:
            try:
                with _told_about(type(sink).__name__):
                    call(sink)
            except Exception as failure:
                failures.append(failure)
        if failures:
            raise failures[0]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads what a `JsonlSink` wrote; a line that is torn is left out."""
    rows = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(json.JSONDecodeError):
                row = json.loads(line)
                if isinstance(row, dict) and "step" in row:
                    rows.append(row)
    return rows


def _drop_after(path: Path, step: int) -> None:
    """Leaves the rows up to `step`, by a new file in place of the old one: all or nothing."""
    if not path.exists():
        return
    kept = [json.dumps(row) + "\n" for row in read_rows(path) if row["step"] <= step]
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _plain(value: float | int | str) -> float | int | str | None:
    """What JSON can hold: Python's own numbers, and None for those that are not finite."""
    if not isinstance(value, int | float | str):
        value = np.asarray(value).item()  # a number of numpy's, or an array that holds just one
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _proto(name: str) -> Any:
    # these modules make their classes when they are imported, which type checkers cannot see
    return importlib.import_module(f"tensorboardX.proto.{name}_pb2")


def _tag(name: str) -> str:
    is_evaluation = name.startswith(EVALUATION)
    return f"{'eval' if is_evaluation else 'train'}/{name.removeprefix(EVALUATION)}"


@contextlib.contextmanager
def _told_about(place: object) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"reports cannot be written to {place} ({reason}): mend that, then use --resume"
        ) from error
