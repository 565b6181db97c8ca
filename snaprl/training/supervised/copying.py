"""Copying: symbols are read, and given back later.

Reference: Graves et al., "Neural Turing Machines", 2014 (arXiv 1410.5401); with the curriculum,
Menick et al., ICLR 2021, section 5.2.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp

from snaprl.training.supervised import curriculum, episodes
from snaprl.training.supervised.curriculum import Level
from snaprl.training.supervised.types import Array, Exam, Symbols, Task
from snaprl.training.typed import Within


@dataclass(frozen=True)
class Copy:
    """Gives back a string as soon as it is over, ever longer ones as it is learnt.

    A string of l symbols takes 2 l steps: l to read it; then a marker is read and the first symbol
    is due, and at l - 1 blanks the others. Lengths are drawn from [max(L - spread, 1), L], and the
    level L rises by one when a window's mean loss falls under a threshold. Each string starts the
    stream anew.

    Attributes:
      symbols: how many a string is made of.
      start_level: L at the start.
      threshold_bits: mean loss per symbol under which L rises; 0 for a fixed L.
      window: strings that are judged together, over all streams.
      spread: how much shorter than L a string may be.
      within: steps into which strings have to fit whole, blanks behind the last: with
        `training.unroll` as many, each segment holds whole strings, and truncation cuts none. A
        string that is longer is cut off. 0 for strings back to back.
    """

    symbols: Annotated[int, Within(2)] = 2
    start_level: Annotated[int, Within(1)] = 1
    threshold_bits: Annotated[float, Within(0)] = 0.15
    window: Annotated[int, Within(1)] = 64
    spread: Annotated[int, Within(0)] = 5
    within: Annotated[int, Within(0)] = 0

    def make(self) -> Task:
        """The task as pure functions."""
        blank, marker = self.symbols, self.symbols + 1

        def draw_length(key: Array, level: Level) -> Array:
            least = jnp.maximum(level.level - self.spread, 1)
            return jax.random.randint(key, (), least, level.level + 1)

        def emit(key: Array, length: Array, t: Array) -> tuple[Array, Array, Array]:
            read = episodes.symbol(key, t, self.symbols)
            due = episodes.symbol(key, t - length, self.symbols)
            seen = jnp.where(t < length, read, jnp.where(t == length, marker, blank))
            return seen[None], due[None], (t >= length) & (t < 2 * length)

        return Task(
            inputs=Symbols(self.symbols + 2),
            targets=Symbols(self.symbols),
            data=(),
            init=episodes.init,
            draw=episodes.drawing(draw_length, lambda length: 2 * length, emit, within=self.within),
            exams={"": Exam((), 64, None)},
            references=lambda: {"chance.bits_per_char": math.log2(self.symbols)},
            shared=curriculum.start(self.start_level),
            advance=partial(
                curriculum.advance, threshold_bits=self.threshold_bits, window=self.window
            ),
            told=curriculum.told,
        )


@dataclass(frozen=True)
class DelayedCopy:
    """Gives back the symbol that was read a fixed number of steps ago, in a stream without an end.

    Attributes:
      symbols: how many there are.
      delay: steps from reading a symbol to giving it back.
    """

    symbols: Annotated[int, Within(2)] = 2
    delay: Annotated[int, Within(0)] = 10

    def make(self) -> Task:
        """The task as pure functions."""

        def emit(key: Array, length: Array, t: Array) -> tuple[Array, Array, Array]:
            del length
            seen = episodes.symbol(key, t, self.symbols)
            due = episodes.symbol(key, t - self.delay, self.symbols)
            return seen[None], due[None], t >= self.delay

        return Task(
            inputs=Symbols(self.symbols),
            targets=Symbols(self.symbols),
            data=(),
            init=episodes.init,
            draw=episodes.endless(emit),
            exams={"": Exam((), 64, None)},
            references=lambda: {"chance.bits_per_char": math.log2(self.symbols)},
        )
