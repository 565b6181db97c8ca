"""What a person sees while a run goes on: how far it is, and what it is learning."""

import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

SHOWN = {  # name in reports -> words, the most telling first
    "success": "success",
    "episode_return": "return",
    "bits_per_char": "bits/char",
    "level": "level",
    "episode_length": "length",
    "loss": "loss",
    "entropy": "entropy",
    "eval_success": "eval success",
    "eval_episode_return": "eval return",
}
OF_ACTORS = {
    "lag": "lag",
    "queue": "queue",
    "restarts": "restarts",
    "gaps": "gaps",
    "missing": "missing",
    "slowest_actor_steps_per_s": "slowest actor",
    "fastest_actor_steps_per_s": "fastest",
}
COUNTS = ("level", "restarts", "gaps", "missing")
ADDED_UP = ("gaps",)  # a report tells of its own; where there never were any, nothing is shown
TRENDS = ("success", "episode_return", "bits_per_char", "loss")  # the first that is reported
OF_EPISODES = ("success", "episode_return", "episode_length")  # not a number: no episode ended
BARS = "▁▂▃▄▅▆▇█"
TREND_WIDTH = (8, 40)  # takes the room that numbers leave
REDRAWS_PER_S = 2
SPEED_MEMORY_S = 20.0
LINE_INTERVAL_S = (5.0, 60.0)  # at the start of a run, and of a long one


class Progress:
    """Shows reports as they come: live on a terminal, as lines where there is none.

    It writes to stderr, so that results on stdout stay clean. A report costs microseconds, for
    a display redraws itself from what was told last, and lines come at most every few seconds.

    Args:
        total_steps: The step at which the run is done.
        title: What is running, in a few words.
        first_step: Where a continued run takes up.
        console: Where to show it; stderr by default.
        clock: Seconds that pass.
        waiting: What there is to wait for before the first report, if that may take long.

    Example:
        with Progress(1_000_000, "tmaze, seed 0") as progress:
            progress.report({"step": 4096, "success": 0.5})
    """

    def __init__(
        self,
        total_steps: int,
        title: str,
        first_step: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        waiting: str = "",
    ) -> None:
        self._total_steps = total_steps
        self._title, self._waiting = title, waiting
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._begin_s = self._told_s = clock()
        self._step = first_step
        self._steps_per_s = 0.0
        self._reports = 0
        self._values: dict[str, float] = {}
        self._trends: dict[str, list[float]] = {name: [] for name in TRENDS}
        self._line_due_s = -math.inf
        self._line_waits = False
        self._live: Live | None = None
        # a file is no terminal, even where FORCE_COLOR makes rich believe it
        if self._console.is_interactive and self._console.file.isatty():
            self._live = Live(
                console=self._console,
                get_renderable=self._display,
                refresh_per_second=REDRAWS_PER_S,
                redirect_stdout=sys.stdout.isatty(),  # a result in a pipe stays in the pipe
            )

    def __enter__(self) -> Self:
        self._begin_s = self._told_s = self._clock()
        if self._live:
            self._live.start()
        else:
            self._print(self._title)
            if self._waiting:
                self._print(self._waiting)
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()  # draws once more and gives the cursor back
        elif self._line_waits:
            self._print(self._line())

    def report(self, report: Mapping[str, float | int | str]) -> None:
        """Takes a report: `step`, and whatever of the tables above it has."""
        now_s = self._clock()
        self._measure_speed(int(report["step"]), now_s)
        for name in SHOWN | OF_ACTORS:
            value = float(report.get(name, math.nan))
            if name in ADDED_UP and math.isfinite(value):
                value += self._values.get(name, 0)
                if not value:
                    continue
            if math.isfinite(value) or (name in report and name not in OF_EPISODES):
                counted = name in COUNTS and value.is_integer()
                self._values[name] = int(value) if counted else value
            if math.isfinite(value) and name in TRENDS:
                self._trends[name].append(value)
        if self._live:
            return
        self._line_waits = now_s < self._line_due_s
        if not self._line_waits:
            self._print(self._line())
            least_s, most_s = LINE_INTERVAL_S
            self._line_due_s = now_s + min(max(least_s, (now_s - self._begin_s) / 50), most_s)

    def _measure_speed(self, step: int, now_s: float) -> None:
        passed_s = now_s - self._told_s
        if passed_s > 0 and step > self._step:
            self._reports += 1
            speed = (step - self._step) / passed_s
            # the first report pays for compilation, so the second one's speed replaces it
            news = 1 - math.exp(-passed_s / SPEED_MEMORY_S) if self._reports > 2 else 1.0
            self._steps_per_s += news * (speed - self._steps_per_s)
            self._told_s = now_s
        self._step = step

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _line(self) -> str:
        """The state as one line whose columns stand below each other."""
        told = [*self._shown(SHOWN), *self._shown(OF_ACTORS)]
        values = [f"{word} {number(value):<7}" for _, word, value in told]
        done = f"{self._percent():3d} %  {number(self._step):>6} of {number(self._total_steps)}"
        return "  ".join(
            [done, f"{self._speed():>14}", f"{self._time_left():>12}", *values]
        ).rstrip()

    def _display(self) -> Group:
        """The state as it stands on a terminal."""
        elapsed = f"{duration(self._clock() - self._begin_s)} elapsed"
        head = Table.grid(expand=True)
        head.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        head.add_column(no_wrap=True, justify="right")
        head.add_row(Text(self._title, style="bold"), Text(elapsed, style="dim"))
        bar = Table.grid(expand=True, padding=(0, 2, 0, 0), pad_edge=False)
        bar.add_column(ratio=1)
        for _ in range(4):
            bar.add_column(no_wrap=True, justify="right")
        bar.add_row(
            ProgressBar(total=max(self._total_steps, 1), completed=self._step),
            Text(f"{self._percent()} %", style="bold"),
            f"{number(self._step)} of {number(self._total_steps)}",
            self._speed(),
            self._time_left(),
        )
        width = self._console.width
        actors = [self._fitting(OF_ACTORS, width)] if self._shown(OF_ACTORS) else []
        return Group(head, bar, self._learning(width), *actors)

    def _learning(self, width: int) -> Text:
        """What is being learnt, as much of it as fits."""
        trend = next((name for name in TRENDS if self._trends[name]), None)
        if not self._console.encoding.startswith("utf"):
            trend = None
        least, most = TREND_WIDTH
        pieces = self._pieces(SHOWN, width - (least + 1 if trend else 0))
        if trend in pieces:
            room = width - 1 - sum(map(len, pieces.values()))
            scale = (0.0, 1.0) if trend == "success" else None
            bars = sparkline(self._trends[trend], min(room, most), scale)
            pieces[trend].append(f" {bars}", style="cyan")
        return Text(no_wrap=True).join(pieces.values()) or Text(
            self._waiting or "no report yet", style="dim"
        )

    def _fitting(self, words: Mapping[str, str], width: int) -> Text:
        return Text(no_wrap=True).join(self._pieces(words, width).values())

    def _pieces(self, words: Mapping[str, str], room: int) -> dict[str, Text]:
        """Words and numbers, by the names of those that there is room for."""
        pieces: dict[str, Text] = {}
        for name, word, value in self._shown(words):
            piece = Text("  " if pieces else "").append(f"{word} ", style="dim")
            piece.append(number(value), style="bold" if math.isfinite(value) else "bold red")
            if len(piece) <= room:
                pieces[name] = piece
                room -= len(piece)
        return pieces

    def _shown(self, words: Mapping[str, str]) -> list[tuple[str, str, float]]:
        """Name, word and value of those that were reported."""
        return [(k, word, self._values[k]) for k, word in words.items() if k in self._values]

    def _settled(self) -> bool:
        """Whether the speed says anything: the first report pays for starting and compiling."""
        return self._reports > 1

    def _percent(self) -> int:
        return int(100 * self._step / max(self._total_steps, 1))

    def _speed(self) -> str:
        return f"{number(self._steps_per_s)} steps/s" if self._settled() else ""

    def _time_left(self) -> str:
        if not self._settled() or self._step >= self._total_steps:
            return ""
        left_s = (self._total_steps - self._step) / self._steps_per_s
        return f"{duration(max(left_s - (self._clock() - self._told_s), 0))} left"


def number(value: float) -> str:
    """A number by three digits: 0.0312, 12.1, 48.2k, 1.16M; a small whole number as it is."""
    if isinstance(value, int) and abs(value) < 1000:
        return str(value)
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return f"{value / factor:#.3g}".rstrip(".") + unit
    return f"{value:#.3g}".rstrip(".")


def duration(seconds: float) -> str:
    """A time as a clock shows it: 0:17, 1:02:03, 2 d 03:04:05."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02d}:{minute:02d}:{second:02d}"
    return f"{hour}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def sparkline(
    values: Sequence[float], max_width: int, scale: tuple[float, float] | None = None
) -> str:
    """Draws values as a row of bars, the mean of neighbours where there are many.

    Args:
        values: Finite numbers in the order of time.
        max_width: The most bars to draw.
        scale: What the lowest and the highest bar stand for; by default the extremes.
    """
    width = min(len(values), max_width)
    edges = [len(values) * column // width for column in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = scale or (min(means), max(means))
    reach = (high - low) or 1.0
    levels = [round((mean - low) / reach * (len(BARS) - 1)) for mean in means]
    return "".join(BARS[min(max(level, 0), len(BARS) - 1)] for level in levels)
