"""Bits without an end: parity of the last N, and whether a bit is what it was N - 1 steps ago.

Reference: Khajehabdollahi, Zeraati, Giannakakis, Schäfer, Martius, Levina, "Emergent mechanisms for
long timescales depends on training curriculum and affects performance in memory tasks", ICLR 2024
(arXiv 2309.12927), for both tasks and for many heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from snaprl.training.supervised import episodes
from snaprl.training.supervised.types import Array, Exam, Symbols, Task
from snaprl.training.typed import Within


@dataclass(frozen=True)
class Parity:
    """Tells whether the number of ones among the last N bits is odd.

    Attributes:
      n: N.
      many_heads: asks for 2, 3, ..., N at once, each with a head of its own.
    """

    n: Annotated[int, Within(2)] = 5
    many_heads: bool = False

    def make(self) -> Task:
        """The task as pure functions."""
        return _task(self.n, self.many_heads, lambda bits: jnp.cumsum(bits) % 2)


@dataclass(frozen=True)
class DelayedMatch:
    """Tells whether a bit is the same as the one N - 1 steps before it.

    Attributes:
      n: N.
      many_heads: asks for 2, 3, ..., N at once, each with a head of its own.
    """

    n: Annotated[int, Within(2)] = 5
    many_heads: bool = False

    def make(self) -> Task:
        """The task as pure functions."""
        return _task(self.n, self.many_heads, lambda bits: (bits == bits[0]).astype(jnp.int32))


def _task(n: int, many_heads: bool, answer: Callable[[Array], Array]) -> Task:
    """`answer` takes the last n bits `[n]`, the newest first, and answers for 1, 2, ..., n."""

    def emit(key: Array, length: Array, t: Array) -> tuple[Array, Array, Array]:
        del length
        bits = jax.vmap(lambda t: episodes.symbol(key, t, 2))(t - jnp.arange(n))
        due = answer(bits)
        return bits[:1], due[1:] if many_heads else due[-1:], t >= n - 1

    return Task(
        inputs=Symbols(2),
        targets=Symbols(2, n - 1 if many_heads else 1),
        data=(),
        init=episodes.init,
        draw=episodes.endless(emit),
        exams={"": Exam((), 64, None)},
        references=lambda: {"chance.bits_per_char": 1.0},
    )
