"""Both ways through a backward recurrence, against each other and against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snaprl.cores import recurrence

pytestmark = pytest.mark.usefixtures("x64")

B, N = 2, 3
WAYS = pytest.mark.parametrize("way", [recurrence.by_steps, recurrence.by_halves])


def drawn(steps, states, rows, *, resets=True, seed=0):
    rng = np.random.default_rng(seed)

    def arrays(*shape, lead):
        drawn = rng.normal(size=(*shape, *lead, B, N))
        return tuple(tuple(jnp.asarray(x) for x in row) for row in drawn)

    d = arrays(states, states, lead=(steps,))
    c, end = arrays(rows, states, lead=(steps,)), arrays(rows, states, lead=())
    return steps, d, c, end, jnp.asarray(rng.random((steps, B)) < 0.3) if resets else None


def looped(steps, d, c, end, resets):
    """The definition, row by row and step by step."""
    del steps
    d, c, end = (np.array(x) for x in (d, c, end))  # [U, U, T, B, N], [R, U, T, B, N], [R, U, B, N]
    xs, after = np.zeros_like(c), end
    for t in reversed(range(d.shape[2])):
        xs[:, :, t] = after + c[:, :, t]
        after = np.einsum("ruBN,uvBN->rvBN", xs[:, :, t], d[:, :, t])
        if resets is not None:
            after = np.where(np.asarray(resets)[t][:, None], 0.0, after)
    return after, xs


@WAYS
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 7, 8])
@pytest.mark.parametrize(("states", "rows"), [(1, 1), (2, 1), (2, 2)])
def test_both_ways_are_the_recurrence(way, steps, states, rows, resets):
    arguments = drawn(steps, states, rows, resets=resets)
    found = jax.jit(way, static_argnums=0)(*arguments)
    for x, expected in zip(found, looped(*arguments), strict=True):
        np.testing.assert_allclose(np.array(x), expected, rtol=1e-12, atol=1e-12)


@WAYS
def test_what_is_zero_by_structure_is_zero(way):
    """An LSTM's block has such entries, and only one of its state variables is read."""
    _, ((a, zero), (b, _)), ((ct, _),), end, resets = drawn(5, 2, 1)
    zero = jnp.zeros_like(zero)
    expected = way(5, ((a, zero), (b, zero)), ((zero, ct),), end, resets)
    found = way(5, ((a, None), (b, None)), ((None, ct),), end, resets)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@WAYS
def test_everything_may_be_zero_by_structure(way):
    """A unit that keeps nothing of itself: RFLO on a plain cell."""
    ((start,),), ((x,),) = way(5, ((None,),), ((None,),), ((jnp.ones((B, N)),),), None)
    assert not np.any(start)
    np.testing.assert_array_equal(x, np.eye(5)[-1][:, None, None] * np.ones((5, B, N)))


@WAYS
def test_nan_does_not_pass_a_reset(way):
    """By `where`: 0 x NaN is NaN. The other stream does not hear of it at all."""
    _, d, c, end, _ = drawn(6, 2, 1)
    resets = jnp.zeros((6, B), bool).at[3, 0].set(True)
    clean = way(6, d, c, end, resets)
    for poisoned in (
        (jax.tree.map(lambda x: x.at[4, 0].set(jnp.nan), d), c, end),
        (d, jax.tree.map(lambda x: x.at[5, 0].set(jnp.nan), c), end),
        (d, c, jax.tree.map(lambda x: x.at[0].set(jnp.nan), end)),
    ):
        (start,), (xs,) = way(6, *poisoned, resets)
        for u in range(2):
            np.testing.assert_allclose(start[u], clean[0][0][u], rtol=1e-12)
            np.testing.assert_allclose(xs[u][:3], clean[1][0][u][:3], rtol=1e-12)
            np.testing.assert_allclose(xs[u][:, 1], clean[1][0][u][:, 1], rtol=1e-12)


@pytest.mark.parametrize(("backend", "way"), [("cpu", "by_steps"), ("gpu", "by_halves")])
def test_the_device_decides(monkeypatch, backend, way):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(recurrence, way, lambda *arguments: way)
    assert recurrence.backward(1, (), (), (), None) == way
