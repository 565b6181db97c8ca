"""Adding, parity, matching, counting and chaos: each target is what the words say."""

from pathlib import Path

import jax
import numpy as np
import pytest
from unit.training.supervised.pieces import drawn, made, sequences

from snaprl.training.errors import UserError
from snaprl.training.supervised import registry


def test_adding_sums_what_is_marked():
    piece = drawn(made("adding", length=9), steps=9 * 60)
    sums, marked = [], []
    for b in range(4):
        for one in sequences(piece, b):
            places = np.flatnonzero(one.inputs[:, 1])
            marked.append(places)
            assert len(one.inputs) == 9
            assert np.isin(one.inputs[:, 1], (0, 1)).all()
            assert one.mask.tolist() == [False] * 8 + [True]
            np.testing.assert_allclose(one.targets[-1, 0], one.inputs[places, 0].sum(), rtol=1e-6)
            sums.append(one.targets[-1, 0])
    first, second = np.array(marked).T
    assert set(first) == {0, 1, 2, 3}
    assert set(second) == {4, 5, 6, 7, 8}
    # the reference: who always says 1; standard error of a variance of n draws is about sqrt(2/n)
    error = np.mean((np.array(sums) - 1) ** 2)
    wanted = made("adding").references()["constant.loss"]
    assert abs(error - wanted) < 4 * wanted * np.sqrt(2 / len(sums))


@pytest.mark.parametrize("many_heads", [False, True])
@pytest.mark.parametrize("name", ["parity", "delayed_match"])
def test_bits_are_answered(name, many_heads):
    n = 4
    piece = drawn(made(name, n=n, many_heads=many_heads), steps=80)
    bits = piece.inputs[..., 0]
    for t in range(n - 1, 80):
        for k, m in enumerate(range(2, n + 1) if many_heads else [n]):
            last = bits[t - m + 1 : t + 1]
            wanted = last.sum(0) % 2 if name == "parity" else last[0] == last[-1]
            np.testing.assert_array_equal(piece.targets[t, :, k], wanted)
    assert piece.targets.shape[-1] == (n - 1 if many_heads else 1)
    assert piece.mask.tolist() == [[t >= n - 1] * 4 for t in range(80)]
    assert piece.first.sum() == 4
    assert 0.3 < bits.mean() < 0.7


def test_as_many_b_as_a():
    piece = drawn(made("anbn", most=4), steps=400)
    seen = set()
    for b in range(4):
        for one in sequences(piece, b):
            n = len(one.inputs) // 2
            seen.add(n)
            assert one.inputs[:, 0].tolist() == [0] * n + [1] * n
            assert one.targets[one.mask, 0].tolist() == [1] * (n - 1) + [0]
            assert one.mask.tolist() == [False] * n + [True] * n
    assert seen == {1, 2, 3, 4}


def test_the_reference_of_counting_is_the_entropy_of_its_targets():
    piece = drawn(made("anbn", most=4), steps=4000, streams=8)
    p = 1 - piece.targets[piece.mask].mean()
    entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    np.testing.assert_allclose(
        made("anbn", most=4).references()["memoryless.bits_per_char"], entropy, atol=0.01
    )
    assert made("anbn", most=1).references() == {"memoryless.bits_per_char": 0.0}


@pytest.mark.parametrize("name", ["lorenz", "mackey_glass"])
def test_a_series_is_foretold_by_its_own_future(name):
    piece = drawn(made(name, horizon=3), steps=400, streams=8, cuts=(1, 3, 9, 200))
    np.testing.assert_array_equal(piece.inputs[3:], piece.targets[:-3])
    assert piece.mask.all()
    assert piece.first[0].all()
    assert not piece.first[1:].any()
    values = piece.inputs[..., 0]
    assert abs(values.mean()) < 0.2  # standardised
    assert 0.8 < values.std() < 1.2
    assert values[:, 0].std() > 0.5  # none has come to rest
    assert np.abs(values[:, 0] - values[:, 1]).max() > 0.5


def test_lorenz_obeys_its_equations():
    """A stream's three coordinates are hidden, so an integration of our own is followed instead."""
    task = made("lorenz", horizon=1, interval=0.02)
    series = task.init((), jax.random.key(3), 1)
    _, piece = task.draw((), series, (), 25)
    state = np.asarray(series.system[0], np.float64)
    for t in range(25):
        for _ in range(2000):  # Euler with steps so small that it is exact enough
            x, y, z = state
            slope = np.array([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])
            state = state + 1e-5 * slope
        np.testing.assert_allclose(piece.targets[t, 0, 0], state[0] / 7.93, atol=5e-3)


def test_lorenz_stays_on_its_attractor_with_the_longest_interval():
    values = drawn(made("lorenz", interval=0.25), steps=2000, streams=8).inputs
    assert np.abs(values).max() < 3


@pytest.mark.parametrize("delay", [1, 17])
def test_mackey_glass_obeys_its_equation(delay):
    """By Euler's steps of a tenth, from a written-out past."""
    task = made("mackey_glass", horizon=1, delay=delay)
    series = task.init((), jax.random.key(3), 1)
    _, piece = task.draw((), series, (), 30)
    past = list(
        np.asarray(series.system[0], np.float64)
    )  # x at tenths of the time, the last is now
    for t in range(30):
        for _ in range(10):
            late = past[-1 - 10 * delay]
            past.append(past[-1] + 0.1 * (0.2 * late / (1 + late**10) - 0.1 * past[-1]))
        np.testing.assert_allclose(piece.targets[t, 0, 0], (past[-1] - 0.93) / 0.23, atol=1e-4)


@pytest.mark.parametrize("name", ["lorenz", "mackey_glass"])
def test_references_of_a_series_are_in_order(name):
    found = made(name, horizon=2).references()
    assert 0.8 < found["mean.loss"] < 1.25
    assert found["line.loss"] <= min(found["mean.loss"], found["present.loss"])


WRONG = [
    ("copy", {"symbols": 1}, "'symbols' of the task copy must be at least 2, not 1"),
    ("parity", {"n": 1}, "'n' of the task parity must be at least 2, not 1"),
    ("lorenz", {"interval": 0}, "'interval' of the task lorenz must be greater than 0 and at most"),
    ("lorenz", {"interval": 1}, "'interval' of the task lorenz must be greater than 0 and at most"),
    ("mackey_glass", {"delay": 0}, "'delay' of the task mackey_glass must be at least 1, not 0"),
    ("anbn", {"mst": 1}, "unknown key 'mst' of the task anbn: did you mean 'most'?"),
    ("adding", {"length": "a"}, "'length' of the task adding must be a whole number, not 'a'"),
    ("coppy", {}, "there is no task 'coppy': did you mean 'copy', or one of "),
]


@pytest.mark.parametrize(("name", "kwargs", "sentence"), WRONG)
def test_a_wrong_argument_is_said(name, kwargs, sentence):
    with pytest.raises(UserError) as caught:
        registry.make_task(name, kwargs)
    assert str(caught.value).startswith(sentence)


def test_every_task_is_listed_and_named_in_the_help():
    names = [name for name, *_ in registry.listing()]
    assert names == list(registry.TASKS)
    schema = Path(registry.__file__).with_name("schema.py").read_text(encoding="utf-8")
    assert all(name in schema for name in names)
    assert all(summary.endswith(".") for _, summary, _ in registry.listing())
