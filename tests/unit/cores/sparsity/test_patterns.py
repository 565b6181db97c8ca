"""Patterns: how many weights, where, and the same ones for the same seed."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaprl.cores import sparsity

SIDE = st.integers(1, 24)
SEED = st.integers(0, 1000)

# name -> (pattern, a shape that it takes)
PATTERNS = {
    "uniform": (sparsity.uniform(0.3), (12, 20)),
    "fixed_fan_in": (sparsity.fixed_fan_in(5), (12, 20)),
    "block": (sparsity.block(0.4, (3, 4)), (12, 20)),
    "n_of_m": (sparsity.n_of_m(2, 4), (12, 20)),
    "uniform-own": (sparsity.uniform(0.3, diagonal=True), (20, 20)),
    "fixed_fan_in-own": (sparsity.fixed_fan_in(5, diagonal=True), (20, 20)),
    "block-own": (sparsity.block(0.5, (5, 4), diagonal=True), (20, 20)),
    "n_of_m-own": (sparsity.n_of_m(1, 4, diagonal=True), (20, 20)),
}
EVERY = pytest.mark.parametrize(("pattern", "shape"), PATTERNS.values(), ids=PATTERNS)


def says(sentence):
    return pytest.raises(ValueError, match=f"^{re.escape(sentence)}$")


@EVERY
def test_a_seed_gives_one_mask_and_another_seed_another(pattern, shape):
    first = pattern(shape, 3)
    assert first.shape == shape
    assert first.dtype == bool
    np.testing.assert_array_equal(first, pattern(shape, 3))
    np.testing.assert_array_equal(first, pattern(shape, np.random.default_rng(3)))
    assert (first != pattern(shape, 4)).any()


@EVERY
def test_a_generator_moves_on(pattern, shape):
    rng = np.random.default_rng(3)
    assert (pattern(shape, rng) != pattern(shape, rng)).any()


@pytest.mark.parametrize("name", [name for name in PATTERNS if name.endswith("-own")])
def test_a_unit_keeps_its_own_weight_and_the_number_stays(name):
    with_own, shape = PATTERNS[name]
    drawn = [with_own(shape, seed) for seed in range(5)]
    for kept in drawn:
        assert kept.diagonal().all()
        assert kept.sum() == drawn[0].sum()
    # off the diagonal the weights are still drawn
    assert (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize(
    ("without", "within"),
    [
        (sparsity.uniform(0.3), sparsity.uniform(0.3, diagonal=True)),
        (sparsity.fixed_fan_in(5), sparsity.fixed_fan_in(5, diagonal=True)),
        (sparsity.block(0.3, 2), sparsity.block(0.3, 2, diagonal=True)),
        (sparsity.n_of_m(2, 4), sparsity.n_of_m(2, 4, diagonal=True)),
    ],
    ids=["uniform", "fixed_fan_in", "block", "n_of_m"],
)
def test_the_diagonal_counts_among_the_others(without, within):
    assert without((20, 20), 0).sum() == within((20, 20), 0).sum()


@given(inputs=SIDE, units=SIDE, density=st.floats(0, 1), seed=SEED)
def test_uniform_keeps_an_exact_number(inputs, units, density, seed):
    kept = sparsity.uniform(density)((inputs, units), seed)
    assert kept.sum() == round(density * inputs * units)


@given(inputs=SIDE, units=SIDE, seed=SEED, data=st.data())
def test_every_unit_has_its_fan_in(inputs, units, seed, data):
    fan_in = data.draw(st.integers(1, inputs))
    kept = sparsity.fixed_fan_in(fan_in)((inputs, units), seed)
    np.testing.assert_array_equal(kept.sum(axis=0), fan_in)


@given(groups=SIDE, m=st.integers(1, 6), units=SIDE, seed=SEED, data=st.data())
def test_n_of_every_m(groups, m, units, seed, data):
    n = data.draw(st.integers(1, m))
    kept = sparsity.n_of_m(n, m)((groups * m, units), seed)
    for start in range(0, groups * m, m):
        np.testing.assert_array_equal(kept[start : start + m].sum(axis=0), n)


@given(
    rows=SIDE,
    columns=SIDE,
    sides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    density=st.floats(0, 1),
    seed=SEED,
)
def test_blocks_are_whole(rows, columns, sides, density, seed):
    shape = (rows * sides[0], columns * sides[1])
    kept = sparsity.block(density, sides)(shape, seed)
    whole = 0
    for i in range(0, shape[0], sides[0]):
        for j in range(0, shape[1], sides[1]):
            entries = kept[i : i + sides[0], j : j + sides[1]]
            assert entries.all() or not entries.any()
            whole += entries.all()
    assert whole == round(density * rows * columns)


def test_every_weight_is_as_likely_as_another():
    """3 of 6 inputs, 2000 draws: each weight in half of them, within four standard errors."""
    rng = np.random.default_rng(0)
    patterns = [sparsity.uniform(0.5), sparsity.fixed_fan_in(3), sparsity.n_of_m(1, 2)]
    for pattern in [*patterns, sparsity.block(0.5, 2)]:
        rate = np.mean([pattern((6, 4), rng) for _ in range(2000)], axis=0)
        np.testing.assert_allclose(rate, 0.5, atol=4 * 0.5 / 2000**0.5)


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
def test_a_density_out_of_range(density):
    for make in (sparsity.uniform, lambda d: sparsity.block(d, 2)):
        with says(f"density is {density}; it must lie in [0, 1]"):
            make(density)


@pytest.mark.parametrize("number", [0, -1, 2.5])
def test_numbers_that_are_no_positive_integers(number):
    sentence = f"is {number}; it must be an integer of at least 1"
    with says(f"fan_in {sentence}"):
        sparsity.fixed_fan_in(number)
    with says(f"n {sentence}"):
        sparsity.n_of_m(number, 4)
    with says(f"m {sentence}"):
        sparsity.n_of_m(1, number)
    with says(f"block_size {sentence}"):
        sparsity.block(0.5, (2, number))
    with says(f"block_size {sentence}"):
        sparsity.block(0.5, number)


def test_patterns_that_do_not_fit_a_kernel():
    with says("fan_in is 9, but a kernel of shape (8, 4) has 8 inputs; use a smaller fan_in"):
        sparsity.fixed_fan_in(9)((8, 4), 0)
    with says(
        "m is 3, which does not divide the 8 inputs of a kernel of shape (8, 6); use an m that does"
    ):
        sparsity.n_of_m(2, 3)((8, 6), 0)
    with says("n is 5 and m is 4; n of m needs n <= m"):
        sparsity.n_of_m(5, 4)
    for rows, shape in [(2, (6, 6)), (3, (8, 4))]:
        with says(
            f"blocks of {rows} x 4 do not fill a kernel of shape {shape}; use a block_size that "
            "divides it"
        ):
            sparsity.block(0.5, (rows, 4))(shape, 0)


@pytest.mark.parametrize("shape", [(8,), (2, 3, 4), (0, 4)])
@pytest.mark.parametrize("name", ["uniform", "fixed_fan_in", "block", "n_of_m"])
def test_a_shape_that_is_no_kernel(name, shape):
    with says(f"shape is {shape}; a kernel is (inputs, units), each at least 1"):
        PATTERNS[name][0](shape, 0)


@pytest.mark.parametrize("name", [name for name in PATTERNS if name.endswith("-own")])
def test_input_kernels_have_no_diagonal(name):
    with says(
        "diagonal=True keeps a unit's own weight, but shape (40, 20) is not (units, units); for "
        "input kernels use another pattern"
    ):
        PATTERNS[name][0]((40, 20), 0)


def test_a_diagonal_without_room():
    end = "on its diagonal; raise density or leave diagonal=True out"
    with says(f"uniform keeps 10 weights of a kernel of shape (20, 20), fewer than the 20 {end}"):
        sparsity.uniform(0.025, diagonal=True)((20, 20), 0)
    with says(f"block keeps 9 blocks of a kernel of shape (20, 20), fewer than the 10 {end}"):
        sparsity.block(0.09, 2, diagonal=True)((20, 20), 0)
