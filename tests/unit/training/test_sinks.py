"""Reports arrive whole, in order and once, whatever a crash or a full disk does."""

import errno
import importlib
import json
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaprl.training import sinks
from snaprl.training.errors import UserError
from snaprl.training.sinks import (
    Fanout,
    JsonlSink,
    NullSink,
    TensorBoardSink,
    WandbSink,
    read_rows,
)


def rows_of(path: Path) -> list[dict]:
    """Reads each line by JSON's strict grammar, which knows no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def fill(path: Path, *reports: dict, keep_until_step: int | None = None) -> None:
    sink = JsonlSink(path, keep_until_step)
    for report in reports:
        sink.write(report)
    sink.close()


def test_a_report_is_on_disk_when_write_returns(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    sink = JsonlSink(path)
    for step in (1, 2):
        sink.write({"step": step, "loss": 0.5, "task": "tmaze"})
        assert rows_of(path)[-1] == {"step": step, "loss": 0.5, "task": "tmaze"}
    sink.close()
    assert len(rows_of(path)) == 2


@given(st.dictionaries(st.text(), st.floats() | st.integers() | st.text()))
def test_every_line_is_valid_json_and_reads_as_it_was_written(tmp_path, report):
    path = tmp_path / "metrics.jsonl"
    path.unlink(missing_ok=True)
    fill(path, report | {"step": 1})
    expected = {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in report.items()
    } | {"step": 1}
    assert rows_of(path) == [expected] == read_rows(path)


def test_numbers_of_arrays_are_written_as_plain_ones(tmp_path):
    path = tmp_path / "metrics.jsonl"
    fill(
        path, {"step": np.int64(3), "a": np.float32(0.5), "b": np.array(2), "c": np.float32("nan")}
    )
    assert path.read_text() == '{"step": 3, "a": 0.5, "b": 2, "c": null}\n'


def test_continuing_drops_what_came_after_the_checkpoint_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    fill(path, *({"step": step, "old": 1} for step in (1, 2, 3)))
    with path.open("a") as file:
        file.write('{"step": 4, "ol')
    fill(path, {"step": 3, "old": 0}, keep_until_step=2)
    assert rows_of(path) == [{"step": 1, "old": 1}, {"step": 2, "old": 1}, {"step": 3, "old": 0}]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_continuing_keeps_the_file_whole_where_the_new_one_cannot_be_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    fill(path, {"step": 1})
    before = path.read_bytes()
    (tmp_path / "metrics.jsonl.new").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        JsonlSink(path, keep_until_step=0)
    assert path.read_bytes() == before


def test_a_run_that_has_no_file_yet_can_be_continued(tmp_path):
    path = tmp_path / "metrics.jsonl"
    fill(path, {"step": 1}, keep_until_step=0)
    assert rows_of(path) == [{"step": 1}]


def test_another_runs_reports_are_not_touched(tmp_path):
    path = tmp_path / "metrics.jsonl"
    fill(path, {"step": 1})
    with pytest.raises(UserError) as caught:
        JsonlSink(path)
    assert str(caught.value) == (
        f"{path} holds the reports of another run: continue that one with --resume, or give this "
        "one a --run-dir of its own"
    )
    assert rows_of(path) == [{"step": 1}]


def test_reading_leaves_out_what_is_no_report(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\x00\x00\n[1]\n{"loss": 1}\n{"step": 2}\n{"step": \xff')
    assert read_rows(path) == [{"step": 1}, {"step": 2}]


def full_disk() -> JsonlSink:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    return JsonlSink(Path("/dev/full"))


def test_a_full_disk_is_told_and_closing_stays_quiet():
    sink = full_disk()
    with pytest.raises(UserError) as caught:
        sink.write({"step": 1})
    assert str(caught.value) == (
        "reports cannot be written to /dev/full (No space left on device): mend that, then use "
        "--resume"
    )
    sink.close()


class Memory:
    """Remembers; fails as it is told."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.reports: list[dict] = []
        self.closed = False
        self._failure = failure

    def write(self, report) -> None:
        self.reports.append(dict(report))
        if self._failure:
            raise self._failure

    def close(self) -> None:
        self.closed = True
        if self._failure:
            raise self._failure


def test_a_sink_that_fails_keeps_nothing_from_the_others():
    broken = Memory(OSError(errno.ENOSPC, "No space left on device"))
    sinks = [Memory(), full_disk(), broken, Memory()]
    fanout = Fanout(sinks)
    with pytest.raises(UserError, match=r"^reports cannot be written to /dev/full \(No space"):
        fanout.write({"step": 1})
    with pytest.raises(UserError, match=r"^reports cannot be written to Memory \(No space"):
        fanout.close()
    assert sinks[0].reports == sinks[3].reports == broken.reports == [{"step": 1}]
    assert sinks[0].closed and sinks[3].closed


def test_a_bug_in_a_sink_stays_a_bug():
    fanout = Fanout([Memory(KeyError("x")), last := Memory()])
    with pytest.raises(KeyError):
        fanout.write({"step": 1})
    assert last.reports
    with pytest.raises(KeyError):
        fanout.close()
    assert last.closed


def test_nothing_comes_of_the_null_sink():
    sink = NullSink()
    sink.write({"step": 1})
    sink.close()


def events(folder: Path) -> list:
    """Reads event files as TensorBoard does: length, its checksum, the event, its checksum."""
    event_pb2 = importlib.import_module("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    return [(v.tag, e.step, v.simple_value) for e in events(folder) for v in e.summary.value]


def test_tensorboard_gets_the_numbers(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write({"step": 5, "wall_s": 1.0, "loss": 0.5, "eval_success": 1, "task": "tmaze"})
    # readable while the run goes on
    assert scalars(tmp_path) == [("train/loss", 5, 0.5), ("eval/success", 5, 1.0)]
    sink.close()
    assert events(tmp_path)[0].file_version == "brain.Event:2"


def test_tensorboard_is_told_to_forget_what_came_after_the_checkpoint(tmp_path):
    for keep_until_step in (None, 5):
        sink = TensorBoardSink(tmp_path, keep_until_step)
        sink.write({"step": 6, "loss": 0.5})
        sink.close()
    assert len(list(tmp_path.iterdir())) == 2  # also within one second
    (start,) = [event for event in events(tmp_path) if event.session_log.status]
    assert start.step == 6
    assert start.session_log.status == start.session_log.START


def test_tensorboard_in_an_impossible_place_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="reports cannot be written to"):
        TensorBoardSink(tmp_path / "file" / "events")


def test_tensorboardx_is_imported_by_its_sink_only():
    program = "import sys, snaprl.training.sinks; sys.exit('tensorboardX' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# ---- Weights & Biases ------------------------------------------------------------------------


class FakeWandb:
    """Stands for the module: what it was told."""

    class Error(Exception):
        """As wandb's own."""

    def __init__(self, *, broken: bool = False):
        self.begun: list[dict] = []
        self.logged: list[tuple[int, dict]] = []
        self.finished = 0
        self._broken = broken

    def init(self, **options):
        if self._broken:
            raise self.Error("no API key")
        self.begun.append(options)
        return self

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self):
        self.finished += 1


def test_wandb_is_told_the_same_and_a_run_goes_on_as_itself(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (5, 10):
        sink = WandbSink("memory", tmp_path, "tmaze-3", {"seed": 3})
        sink.write({"step": step, "wall_s": 1.0, "loss": 0.5, "eval_success": 1.0, "task": "x"})
        sink.close()
    assert fake.logged == [(k, {"train/loss": 0.5, "eval/success": 1.0}) for k in (5, 10)]
    first, second = fake.begun
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == ("memory", "tmaze-3", "allow")
    assert (first["config"], first["dir"]) == ({"seed": 3}, tmp_path)
    assert fake.finished == 2


def test_wandb_that_does_not_come_to_an_end_is_not_waited_for(tmp_path, monkeypatch, capsys):
    fake, asked = FakeWandb(), []
    fake.finish = threading.Event().wait
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(sinks, "HURRIED_S", 0.2)
    sink = WandbSink("memory", tmp_path, "tmaze-3", {}, hurried=lambda: bool(asked))
    asked.append(True)
    begin_s = time.monotonic()
    sink.close()
    assert time.monotonic() - begin_s < 5
    assert "`wandb sync" in capsys.readouterr().err


def test_wandb_that_is_absent_or_does_not_start_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"^training.wandb = 'p' needs wandb: pip install"):
        WandbSink("p", tmp_path, "name", {})
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(broken=True))
    with pytest.raises(UserError, match=r"^wandb does not start: no API key; log in there, set"):
        WandbSink("p", tmp_path, "name", {})
