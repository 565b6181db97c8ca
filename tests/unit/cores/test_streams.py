"""Sums over streams, however many there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaprl.cores import streams

COUNT = st.integers(1, 3 * streams.TERMS**2)


@given(COUNT)
def test_every_stream_is_in_the_sum_once(count):
    """Whole numbers, which add up exactly in any order."""
    rng = np.random.default_rng(count)
    a, b = (rng.integers(-99, 99, (count, *shape)).astype(np.float32) for shape in ((2, 3), (1, 3)))
    found = streams.total_of_elements(lambda a, b: {"product": a * b, "sum": a + b}, a, b)
    np.testing.assert_array_equal(found["product"], (a * b).sum(0))
    np.testing.assert_array_equal(found["sum"], (a + b).sum(0))


@pytest.mark.parametrize("side_by_side", [False, True])
@given(count=COUNT)
def test_rows_are_those_of_the_stream(side_by_side, count):
    rng = np.random.default_rng(count)
    shapes = ((5, 2), (3, 2), (4,))
    x, y, a = (jnp.asarray(rng.integers(-99, 99, (count, *s)), jnp.float32) for s in shapes)
    rows = np.asarray([2, 0, 2, 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_side_by_side", lambda: side_by_side)
        found = streams.total_of_rows(
            lambda look_up, a: (look_up(0, rows + 2) + look_up(1, rows)) * a[:, None], (x, y), a
        )
    expected = (x[:, rows + 2] + y[:, rows]) * a[:, :, None]
    np.testing.assert_array_equal(found, expected.sum(0))


def test_what_is_none_stays_none():
    found = streams.total_of_elements(
        lambda a, b: a if b is None else a + b, jnp.ones((40, 2)), None
    )
    np.testing.assert_array_equal(found, [40.0, 40.0])


def test_no_loop_goes_over_streams():
    """XLA would copy what it reads."""
    jaxpr = jax.make_jaxpr(lambda x: streams.total_of_elements(jnp.square, x))(jnp.ones((300, 2)))
    assert not any(e.primitive.name in ("while", "scan") for e in jaxpr.jaxpr.eqns)
