"""Counting: as many b as there were a.

Reference: Gers and Schmidhuber, "LSTM recurrent networks learn simple context-free and
context-sensitive languages", IEEE Transactions on Neural Networks 2001.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from snaprl.training.supervised import episodes
from snaprl.training.supervised.types import Array, Exam, PyTree, Symbols, Task
from snaprl.training.typed import Within

A, B = 0, 1


@dataclass(frozen=True)
class AnBn:
    """Foretells the next letter of a string of n times a and then n times b, n drawn anew.

    Targets are due where they follow from what was read, that is from the first b on: n - 1 more,
    and then the a of the next string. Each string starts the stream anew.

    Attributes:
      most: n is drawn from 1 to this.
    """

    most: Annotated[int, Within(1)] = 10

    def make(self) -> Task:
        """The task as pure functions."""

        def draw_length(key: Array, shared: PyTree) -> Array:
            del shared
            return jax.random.randint(key, (), 1, self.most + 1)

        def emit(key: Array, length: Array, t: Array) -> tuple[Array, Array, Array]:
            del key
            seen = jnp.where(t < length, A, B)
            due = jnp.where(t == 2 * length - 1, A, B)
            return seen[None], due[None], t >= length

        return Task(
            inputs=Symbols(2),
            targets=Symbols(2),
            data=(),
            init=episodes.init,
            draw=episodes.drawing(draw_length, lambda length: 2 * length, emit),
            exams={"": Exam((), 64, None)},
            references=lambda: {"memoryless.bits_per_char": _memoryless((self.most + 1) / 2)},
        )


def _memoryless(mean: float) -> float:
    """Bits per target of who knows only that one in `mean` targets is an a."""
    p = 1 / mean
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p) if p < 1 else 0.0
