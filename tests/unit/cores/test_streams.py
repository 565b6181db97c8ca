"""Sums over streams, however many there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaprl.cores import streams

SUMS = {"one by one": streams.total, "side by side": streams.total_of_elements}


@pytest.mark.parametrize("total", SUMS.values(), ids=SUMS)
@given(count=st.integers(1, 3 * streams.TERMS**2))
def test_every_stream_is_in_the_sum_once(total, count):
    """Whole numbers, which add up exactly in any order."""
    rng = np.random.default_rng(count)
    a, b = (rng.integers(-99, 99, (count, *shape)).astype(np.float32) for shape in ((2, 3), (1, 3)))
    found = total(lambda a, b: {"product": a * b, "sum": a + b}, a, b)
    np.testing.assert_array_equal(found["product"], (a * b).sum(0))
    np.testing.assert_array_equal(found["sum"], (a + b).sum(0))


def test_what_is_none_stays_none():
    found = streams.total_of_elements(
        lambda a, b: a if b is None else a + b, jnp.ones((40, 2)), None
    )
    np.testing.assert_array_equal(found, [40.0, 40.0])


def test_no_loop_goes_over_streams():
    """XLA would copy what it reads."""
    jaxpr = jax.make_jaxpr(lambda x: streams.total_of_elements(jnp.square, x))(jnp.ones((300, 2)))
    assert not any(e.primitive.name in ("while", "scan") for e in jaxpr.jaxpr.eqns)
