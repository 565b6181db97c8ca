"""Adding: two numbers are marked among many, and their sum is due at the end.

Reference: Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 1997, 5.4.
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from snaprl.training.supervised import episodes
from snaprl.training.supervised.types import Array, Exam, Numbers, PyTree, Task
from snaprl.training.typed import Within


@dataclass(frozen=True)
class Adding:
    """Adds two marked numbers of a sequence, one in its first half and one in its second.

    Numbers are drawn from [0, 1); the sum is due at the last step. Who always says 1 has a squared
    error of 1/6.

    Attributes:
      length: steps of a sequence.
    """

    length: Annotated[int, Within(2)] = 50

    def make(self) -> Task:
        """The task as pure functions."""
        half = self.length // 2

        def draw_length(key: Array, shared: PyTree) -> Array:
            del key, shared
            return jnp.int32(self.length)

        def emit(key: Array, length: Array, t: Array) -> tuple[Array, Array, Array]:
            del length
            values_key, first_key, second_key = jax.random.split(key, 3)

            def value(t: Array) -> Array:
                return jax.random.uniform(jax.random.fold_in(values_key, t))

            first = jax.random.randint(first_key, (), 0, half)
            second = jax.random.randint(second_key, (), half, self.length)
            marked = ((t == first) | (t == second)).astype(jnp.float32)
            seen = jnp.stack([value(t), marked])
            return seen, (value(first) + value(second))[None], t == self.length - 1

        return Task(
            inputs=Numbers(2),
            targets=Numbers(1),
            data=(),
            init=episodes.init,
            draw=episodes.drawing(draw_length, lambda length: length, emit),
            exams={"": Exam((), 64, None)},
            references=lambda: {"constant.loss": 1 / 6},
        )
