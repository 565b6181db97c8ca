"""What a person sees of a run: on a terminal, in a log, and after Ctrl-C."""

import io
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from snaprl.training.progress import BARS, Progress, duration, number, sparkline


class Clock:
    """Passes time by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    """A file that calls itself a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def lines_of(reports, *, total=2_000_000, seconds=10.0, first_step=0, waiting="") -> list[str]:
    clock = Clock()
    log = io.StringIO()
    console = Console(file=log, width=80)
    with Progress(total, "tmaze, seed 0", first_step, console, clock, waiting) as progress:
        for report in reports:
            clock.now_s += seconds
            progress.report(report)
    return log.getvalue().splitlines()


def test_without_a_terminal_each_report_is_a_line_of_aligned_columns():
    lines = lines_of(
        {"step": step, "success": success, "episode_return": -0.5, "grad_norm": 1.0}
        for step, success in ((100_000, 0.5), (1_100_000, 0.75), (2_000_000, 1.0))
    )
    assert lines == [
        "tmaze, seed 0",
        # what it took says more of starting and compiling than of speed
        "  5 %    100k of 2.00M                                success 0.500    return -0.500",
        " 55 %   1.10M of 2.00M    100k steps/s     0:09 left  success 0.750    return -0.500",
        "100 %   2.00M of 2.00M   96.1k steps/s                success 1.00     return -0.500",
    ]


def test_what_is_counted_has_no_fractions():
    (_, line) = lines_of([{"step": 1, "loss": 2.0, "lag": 3.25, "restarts": 2.0, "level": 12.0}])
    assert re.search(r"level 12 +loss 2.00 +lag 3.25 +restarts 2$", line), line


def test_what_a_run_waits_for_is_said():
    assert lines_of([], waiting="2 actors are starting") == [
        "tmaze, seed 0",
        "2 actors are starting",
    ]


def test_lines_are_rare_where_reports_are_many_but_the_first_and_the_last_are_there():
    reports = [{"step": step, "loss": 1.0} for step in range(1, 1001)]
    lines = lines_of(reports, total=1000, seconds=0.1)  # 100 s
    assert 15 <= len(lines) <= 22
    assert lines[1].startswith("  0 %       1 of")
    assert lines[-1].startswith("100 %   1.00k of 1.00k")
    assert len(lines) == len(set(lines))
    hours = lines_of(reports, total=1000, seconds=36)
    assert 500 < len(hours) < 700  # a minute apart: 10 h make no more than 600


def test_a_redirected_stream_gets_lines_even_where_colours_are_forced():
    log = io.StringIO()
    console = Console(file=log, force_terminal=True)
    with Progress(10, "title", console=console) as progress:
        progress.report({"step": 5})
    assert "\x1b[?25l" not in log.getvalue()


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    console = Console(file=terminal)
    with Progress(10, "title", console=console) as progress:
        progress.report({"step": 5})
    assert terminal.getvalue().count("\n") == 2
    assert "\x1b" not in terminal.getvalue()


def screen(width: int, reports, *, total=2_000_000, encoding="utf-8", after_s=0.0) -> list[str]:
    """What the display shows after some reports."""
    clock = Clock()
    file = Terminal()
    file.encoding = encoding
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    progress = Progress(total, "tmaze, seed 0", console=console, clock=clock)
    for report in reports:
        clock.now_s += 10
        progress.report(report)
    clock.now_s += after_s
    with console.capture() as capture:
        console.print(progress._display())
    return capture.get().splitlines()


RICH = [
    {
        "step": 100_000 * i,
        "success": i / 10,
        "episode_return": -1 / 3,
        "episode_length": 12.3456,
        "loss": -0.0123,
        "entropy": 0.69,
        "policy_loss": 1.0,
    }
    for i in range(1, 11)
]


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_the_display_has_three_lines_that_fit_the_terminal(width):
    lines = screen(width, RICH)
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith("tmaze, seed 0")
    assert lines[0].endswith("1:40 elapsed")
    if width >= 80:
        assert lines[1].endswith("50 %  1.00M of 2.00M  10.0k steps/s  1:40 left")
        for words in ("success 1.00", "return -0.333", "length 12.3", "loss -0.0123"):
            assert words in lines[2]
        assert "entropy 0.690" in lines[2]
    assert any(bar in lines[2] for bar in BARS)
    assert "policy" not in lines[2]


def test_actors_have_a_line_of_their_own():
    actors = {"lag": 3.5, "queue": 1.0, "restarts": 2.0, "missing": 0.0}
    rates = {"slowest_actor_steps_per_s": 1234.0, "fastest_actor_steps_per_s": 4321.0}
    lines = screen(80, [row | actors | rates for row in RICH])
    assert lines[:3] == screen(80, RICH)
    assert lines[3].split("  ") == [
        *("lag 3.50", "queue 1.00", "restarts 2", "missing 0"),
        *("slowest actor 1.23k", "fastest 4.32k"),
    ]


def test_gaps_are_added_up_and_told_from_the_first_one_on():
    def row(step, gaps):
        return {"step": step, "lag": 1.0, "gaps": gaps}

    assert "gaps" not in screen(80, [row(1, 0.0)])[-1]
    assert "gaps 32" in screen(80, [row(1, 0.0), row(2, 32.0)])[-1]
    assert "gaps 32" in screen(80, [row(1, 32.0), row(2, 0.0)])[-1]
    assert "gaps 40" in screen(80, [row(1, 32.0), row(2, 8.0)])[-1]


def test_time_goes_on_between_reports():
    assert screen(80, RICH, after_s=30)[1].endswith("1:10 left")
    assert screen(80, RICH, after_s=300)[1].endswith("0:00 left")


def test_before_the_first_report_the_display_says_so():
    assert screen(80, [])[2] == "no report yet"


def test_a_terminal_without_unicode_gets_none():
    text = "\n".join(screen(80, RICH, encoding="ascii"))
    assert text.isascii()


def test_a_loss_that_is_no_number_is_shown_and_a_success_that_is_none_is_not():
    reports = [
        {"step": 1, "success": 0.5, "loss": 1.0},
        {"step": 2, "success": math.nan, "loss": math.nan},
    ]
    assert "success 0.500 ▅  loss nan" in screen(80, reports)[2]


def test_the_speed_forgets_the_first_report_which_pays_for_compilation():
    slow_then_fast = [{"step": 1000}, {"step": 101_000}]
    assert "10.0k steps/s" in screen(80, slow_then_fast)[1]


def test_a_continued_run_counts_its_own_steps():
    reports = [{"step": 1_100_000}, {"step": 1_200_000}]
    (_, _, line) = lines_of(reports, first_step=1_000_000)
    assert "10.0k steps/s" in line


def test_numbers_of_arrays_are_taken():
    assert "success 0.500" in screen(80, [{"step": np.int64(5), "success": np.float32(0.5)}])[2]


def test_reporting_costs_little():
    console = Console(file=Terminal(), width=80, force_terminal=True)
    with Progress(10_000, "title", console=console) as progress:
        begin_s = time.perf_counter()
        for step in range(10_000):
            progress.report({**RICH[0], "step": step})
        assert (time.perf_counter() - begin_s) / 10_000 < 2e-4


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_after_ctrl_c_the_cursor_is_back():
    program = (
        "import signal, time\n"
        # a shell's background jobs are born deaf to it
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from snaprl.training.progress import Progress\n"
        "with Progress(10, 'title') as progress:\n"
        "    progress.report({'step': 5})\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    main, terminal = os.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stderr=terminal,
        stdout=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(terminal)
    watchdog = threading.Timer(30, child.kill)
    watchdog.start()
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"  # and not on the terminal
    child.send_signal(signal.SIGINT)
    shown = b""
    with pytest.raises(OSError):  # the end of a pseudo-terminal, on Linux
        while chunk := os.read(main, 4096):
            shown += chunk
        raise OSError  # the end elsewhere
    os.close(main)
    child.stdout.close()
    watchdog.cancel()
    assert child.wait(timeout=30) == -signal.SIGINT
    assert b"\x1b[?25l" in shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    assert b"50 %" in shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00k"),
        (1_160_000, "1.16M"),
        (0.03123, "0.0312"),
        (0.5, "0.500"),
        (100.0, "100"),
        (999.9, "1.00k"),
        (-2e9, "-2.00G"),
        (1e13, "10.0T"),
        (math.nan, "nan"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


@given(st.floats(-1e14, 1e14))
def test_a_short_number_is_the_number_to_three_digits(value):
    text = number(value)
    assert len(text) <= 10
    factor = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1)
    assert float(text.rstrip("kMGT")) * factor == pytest.approx(value, rel=6e-3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9, "0:00"), (17, "0:17"), (3723, "1:02:03"), (183_845, "2 d 03:04:05")],
)
def test_durations_read_as_a_clock(seconds, text):
    assert duration(seconds) == text


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.integers(1, 40))
def test_a_sparkline_has_at_most_the_width_and_shows_the_highest_mean(values, width):
    bars = sparkline(values, width)
    assert len(bars) == min(len(values), width)
    if len(values) <= width and max(values) - min(values) > 1:
        assert bars[values.index(max(values))] == BARS[-1]
        assert bars[values.index(min(values))] == BARS[0]


def test_a_sparkline_can_have_a_scale_and_takes_means():
    assert sparkline([0.0, 0.5, 1.0, 2.0], 9, (0.0, 1.0)) == "▁▅██"
    assert sparkline([0.0, 1.0, 0.0, 1.0], 2, (0.0, 1.0)) == "▅▅"
    assert sparkline([3.0, 3.0], 9) == "▁▁"
