"""Blocks with structural zeros against numpy's dense algebra."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaprl.cores import unitwise as uw

pytestmark = pytest.mark.usefixtures("x64")

N = 3


@st.composite
def rows(draw, length):
    """Entries, some of them None."""
    seed = draw(st.integers(0, 999))
    rng = np.random.default_rng(seed)
    there = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    return tuple(rng.normal(size=N) if here else None for here in there)


@st.composite
def blocks(draw, height, width):
    return tuple(draw(rows(width)) for _ in range(height))


def dense(entries):
    """`[length, N]`."""
    return np.stack([np.zeros(N) if x is None else np.asarray(x) for x in entries])


def dense_block(block):
    """`[height, width, N]`."""
    return np.stack([dense(row) for row in block])


@given(vector=rows(2), block=blocks(2, 4))
def test_vector_block(vector, block):
    found = uw.vector_block(vector, block)
    expected = np.einsum("un,ugn->gn", dense(vector), dense_block(block))
    np.testing.assert_allclose(dense(found), expected, atol=1e-15)
    for k, entry in enumerate(found):  # a zero stays structural where it is one
        reaches = any(
            v is not None and row[k] is not None for v, row in zip(vector, block, strict=True)
        )
        assert (entry is not None) == reaches


@given(left=blocks(2, 3), right=blocks(3, 2))
def test_block_block(left, right):
    """The order matters: blocks do not commute."""
    expected = np.einsum("uvn,vwn->uwn", dense_block(left), dense_block(right))
    np.testing.assert_allclose(dense_block(uw.block_block(left, right)), expected, atol=1e-15)


@given(entries=rows(4))
def test_total(entries):
    found = uw.total(entries)
    if all(entry is None for entry in entries):
        assert found is None
    else:
        np.testing.assert_allclose(found, dense(entries).sum(0), atol=1e-15)


def test_total_of_an_array_and_zeros_is_the_array_itself():
    x = np.ones(N)
    assert uw.total((x, None, None)) is x
    assert uw.plain_total([x]) is x


def test_times():
    x, y = np.arange(3.0), np.full(3, 2.0)
    np.testing.assert_array_equal(uw.times(x, y), [0, 2, 4])
    assert uw.times(None, y) is uw.times(x, None) is uw.times(None, None) is None


@given(entries=rows(3))
def test_join_and_split(entries):
    joined = uw.join(entries, np.zeros(N))
    np.testing.assert_array_equal(joined, dense(entries).reshape(-1))
    np.testing.assert_array_equal(np.stack(uw.split(joined, 3)), dense(entries))


def test_split_into_one_is_no_operation():
    x = jnp.ones((2, 3))
    assert uw.split(x, 1)[0] is x


def test_joined_layer():
    """The bias of a gate that alone has none is zero; where none has one, there is none."""
    rng = np.random.default_rng(1)
    params = {
        "hr": {"kernel": rng.normal(size=(N, N))},
        "hn": {"kernel": rng.normal(size=(N, N)), "bias": rng.normal(size=N)},
    }
    kernel, bias = uw.joined_layer(params, ("hr", "hn"))
    np.testing.assert_array_equal(kernel[:, :N], params["hr"]["kernel"])
    np.testing.assert_array_equal(kernel[:, N:], params["hn"]["kernel"])
    np.testing.assert_array_equal(bias, [0, 0, 0, *params["hn"]["bias"]])
    assert uw.joined_layer(params, ("hr",))[1] is None


def test_over_units():
    row = np.arange(3.0)
    assert uw.over_units(row, np.zeros((2, 4, 3))).shape == (1, 1, 3)
    assert uw.over_units(row, np.zeros((2, 3))).shape == (1, 3)


@pytest.mark.parametrize("read", [0, 1])
def test_diagonal_block_is_the_diagonal_of_the_whole(read):
    """(8) written out: D = sum_g sigma W + delta, of which each unit keeps its own block."""
    rng = np.random.default_rng(2)
    params = {name: {"kernel": rng.normal(size=(N, N))} for name in ("hf", "ho")}
    sigma = ((rng.normal(size=N), None), (rng.normal(size=N), rng.normal(size=N)))
    delta = ((rng.normal(size=N), None), (rng.normal(size=N), None))
    cell = uw.UnitwiseCell(N, ("if", "io"), ("hf", "ho"), 2, None, read, None, None)
    found = dense_block(uw.diagonal_block(cell, params, uw.Derivatives((), sigma, delta)))
    for u in range(2):
        for v in range(2):
            for i in range(N):
                entry = delta[u][v][i] if delta[u][v] is not None else 0.0
                if v == read:
                    for g, name in enumerate(("hf", "ho")):
                        if sigma[u][g] is not None:
                            entry += sigma[u][g][i] * params[name]["kernel"][i, i]
                np.testing.assert_allclose(found[u, v, i], entry, atol=1e-15)
