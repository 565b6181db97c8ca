"""Schedules: the papers' formulas, transcribed, and their ends."""

import math
import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.cores.sparsity import trees

from snaprl.cores import sparsity


def says(sentence):
    return pytest.raises(ValueError, match=f"^{re.escape(sentence)}$")


def paper_sparsity(t, s_i, s_f, t_0, n, delta):
    """Zhu and Gupta's (1), for t among t_0, t_0 + delta, ..., t_0 + n delta."""
    assert t in [t_0 + k * delta for k in range(n + 1)]
    return s_f + (s_i - s_f) * (1 - (t - t_0) / (n * delta)) ** 3


@given(
    s_i=st.floats(0, 0.5),
    s_f=st.floats(0.5, 1),
    t_0=st.integers(0, 50),
    n=st.integers(1, 20),
    delta=st.integers(1, 10),
)
def test_the_cubic_schedule_is_the_papers(s_i, s_f, t_0, n, delta):
    end = t_0 + n * delta
    schedule = sparsity.cubic_schedule(
        1 - s_f, begin=t_0, end=end, every=delta, initial_density=1 - s_i
    )
    for k in range(n + 1):
        t = t_0 + k * delta
        expected = 1 - paper_sparsity(t, s_i, s_f, t_0, n, delta)
        np.testing.assert_allclose(schedule(t), expected, rtol=1e-5, atol=1e-6)
        # it stays until the next pruning
        np.testing.assert_array_equal(schedule(t + delta - 1), schedule(t))
    np.testing.assert_array_equal(schedule(end + 1000), schedule(end))


def test_the_ends_of_the_cubic_schedule():
    schedule = sparsity.cubic_schedule(0.1, begin=100, end=500, every=50, initial_density=0.9)
    steps = np.arange(700)
    densities = jax.vmap(schedule)(steps)
    np.testing.assert_allclose(densities[:150], 0.9, rtol=1e-6)
    np.testing.assert_allclose(densities[500:], 0.1, rtol=1e-6)
    falls = np.flatnonzero(np.diff(densities)) + 1
    np.testing.assert_array_equal(falls, range(150, 501, 50))
    # fast first, then ever more slowly
    steps_down = densities[falls - 1] - densities[falls]
    assert (np.diff(steps_down) < 0).all()


def test_the_cosine_schedule_is_the_papers():
    schedule = sparsity.cosine_schedule(0.3, end=40)
    for t in range(41):
        expected = 0.3 / 2 * (1 + math.cos(t * math.pi / 40))
        np.testing.assert_allclose(schedule(t), expected, atol=1e-7)
    assert schedule(0) == np.float32(0.3)
    assert schedule(40) == schedule(1000) == 0


def test_the_step_may_be_traced():
    for schedule in (
        sparsity.cubic_schedule(0.1, begin=2, end=8, every=3),
        sparsity.cosine_schedule(end=8),
    ):
        compiled = jax.jit(schedule)
        np.testing.assert_allclose(
            [compiled(t) for t in range(12)], [schedule(t) for t in range(12)], rtol=1e-6, atol=1e-7
        )
        assert trees.programs(compiled) == 1


def test_what_a_mistake_is_told():
    with says("final_density is 1.5; it must lie in [0, 1]"):
        sparsity.cubic_schedule(1.5, begin=0, end=8)
    with says("initial_density is -1; it must lie in [0, 1]"):
        sparsity.cubic_schedule(0.5, begin=0, end=8, initial_density=-1)
    with says("initial_fraction is 2; it must lie in [0, 1]"):
        sparsity.cosine_schedule(2, end=8)
    with says("end is 0; it must be at least 1"):
        sparsity.cosine_schedule(end=0)
    with says(
        "final_density is 0.5, above initial_density 0.2; pruning only removes weights",
    ):
        sparsity.cubic_schedule(0.5, begin=0, end=8, initial_density=0.2)
    for begin, end, every in [(0, 8, 3), (8, 8, 1), (-1, 8, 1), (0, 8, 0)]:
        with says(
            f"begin is {begin}, end is {end}, every is {every}; it must be 0 <= begin < end, and "
            "every must divide end - begin"
        ):
            sparsity.cubic_schedule(0.5, begin=begin, end=end, every=every)
