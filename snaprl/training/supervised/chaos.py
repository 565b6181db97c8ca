"""Chaotic series, foretold a few samples ahead; integrated on the way, so that they have no end.

References: Lorenz, "Deterministic nonperiodic flow", Journal of the Atmospheric Sciences 1963;
Mackey and Glass, "Oscillation and chaos in physiological control systems", Science 1977.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snaprl.training.supervised.types import Array, Exam, Numbers, Piece, PyTree, Task
from snaprl.training.typed import Within

WARM_UP = 1000  # samples until a series is on its attractor


class Series(NamedTuple):
    """Where streams stand."""

    system: PyTree  # [B, ...]  at the time of the newest value
    values: Array  # [B, horizon]  from the one that is read next to the newest
    fresh: Array  # [B] bool  nothing was read yet


@dataclass(frozen=True)
class Lorenz:
    """Foretells the first coordinate of the Lorenz system, and reads nothing but it.

    Standardised; sigma 10, rho 28, beta 8/3.

    Attributes:
      horizon: samples ahead.
      interval: time between two samples; up to where a fifth of it is a sound step of Runge and
        Kutta's.
    """

    horizon: Annotated[int, Within(1)] = 5
    interval: Annotated[float, Within(0, 0.25, low_included=False)] = 0.05

    def make(self) -> Task:
        """The task as pure functions."""
        step_s = self.interval / 5

        def slope(s: Array) -> Array:
            x, y, z = s
            return jnp.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])

        def start(key: Array) -> Array:
            return jnp.array([1.0, 1.0, 25.0]) + jax.random.normal(key, (3,))

        def sample(state: Array) -> tuple[Array, Array]:
            state = jax.lax.fori_loop(0, 5, lambda _, s: _runge_kutta(slope, s, step_s), state)
            return state, state[0] / 7.93

        return _task(start, sample, self.horizon)


@dataclass(frozen=True)
class MackeyGlass:
    """Foretells the Mackey-Glass series, whose present depends on what was `delay` ago.

    dx/dt = 0.2 x(t - delay) / (1 + x(t - delay)^10) - 0.1 x(t), sampled once per unit of time, and
    standardised by its mean and deviation at the delay of 17.

    Attributes:
      horizon: samples ahead.
      delay: from 17 on the series is chaotic.
    """

    horizon: Annotated[int, Within(1)] = 10
    delay: Annotated[int, Within(1)] = 17

    def make(self) -> Task:
        """The task as pure functions."""
        pieces = 10  # steps of Euler's per sample

        def start(key: Array) -> Array:
            level = jax.random.uniform(key, (), minval=0.5, maxval=1.3)
            return jnp.full(self.delay * pieces + 1, level)

        def sample(past: Array) -> tuple[Array, Array]:
            def step(past: Array, _: None) -> tuple[Array, None]:
                delayed, x = past[0], past[-1]
                x += (0.2 * delayed / (1 + delayed**10) - 0.1 * x) / pieces
                return jnp.append(past[1:], x), None

            past, _ = jax.lax.scan(step, past, None, length=pieces)
            return past, (past[-1] - 0.93) / 0.23

        return _task(start, sample, self.horizon)


def _runge_kutta(slope: Callable[[Array], Array], s: Array, dt: float) -> Array:
    k_1 = slope(s)
    k_2 = slope(s + dt / 2 * k_1)
    k_3 = slope(s + dt / 2 * k_2)
    k_4 = slope(s + dt * k_3)
    return s + dt / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)


def _task(
    start: Callable[[Array], PyTree], sample: Callable[[PyTree], tuple[PyTree, Array]], horizon: int
) -> Task:
    """A task from a system: `start(key) -> state` and `sample(state) -> (state, value)`."""

    def run(state: PyTree, samples: int) -> tuple[PyTree, Array]:
        return jax.lax.scan(lambda s, _: sample(s), state, None, length=samples)

    def init(data: PyTree, key: Array, streams: int) -> Series:
        del data

        def one(key: Array) -> tuple[PyTree, Array]:
            warm, _ = run(start(key), WARM_UP)
            return run(warm, horizon)

        system, values = jax.vmap(one)(jax.random.split(key, streams))
        return Series(system, values, jnp.ones(streams, bool))

    def draw(data: PyTree, series: Series, shared: PyTree, steps: int) -> tuple[Series, Piece]:
        del data, shared
        system, news = jax.vmap(lambda state: run(state, steps))(series.system)  # [B, T]
        values = jnp.concatenate([series.values, news], axis=1)
        first = jnp.zeros((steps, len(values)), bool).at[0].set(series.fresh)
        piece = Piece(
            values[:, :steps].T[..., None], news.T[..., None], jnp.ones_like(first), first
        )
        return Series(system, values[:, steps:], jnp.zeros_like(series.fresh)), piece

    def references() -> dict[str, float]:
        return _references(
            lambda: run(run(start(jax.random.key(0)), WARM_UP)[0], 20_000)[1], horizon
        )

    return Task(
        inputs=Numbers(1),
        targets=Numbers(1),
        data=(),
        init=init,
        draw=draw,
        exams={"": Exam((), 64, None)},
        references=references,
    )


def _references(make: Callable[[], Array], horizon: int) -> dict[str, float]:
    """Squared errors of who says the mean, of who says the present value, and of a straight line.

    The line through the present value is the best that a linear net without a memory can do.
    """
    series = np.asarray(jax.jit(make)(), np.float64)
    now, due = series[:-horizon], series[horizon:]
    slope, offset = np.polyfit(now, due, 1)
    return {
        "mean.loss": float(due.var()),
        "present.loss": float(np.mean((due - now) ** 2)),
        "line.loss": float(np.mean((due - slope * now - offset) ** 2)),
    }
