"""Copying: what is read is what is due, lengths are what the level allows, and the level moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from unit.training.supervised.pieces import drawn, made, sequences

from snaprl.training.supervised import curriculum
from snaprl.training.supervised.types import Totals


@pytest.mark.parametrize("symbols", [2, 5])
def test_a_string_is_read_and_then_due(symbols):
    task = made("copy", symbols=symbols, start_level=7, spread=5)
    piece = drawn(task, steps=600)
    lengths = []
    for b in range(4):
        for one in sequences(piece, b):
            length = len(one.inputs) // 2
            lengths.append(length)
            read, asked = one.inputs[:length, 0], one.inputs[length:, 0]
            assert read.max() < symbols
            assert asked.tolist() == [symbols + 1] + [symbols] * (length - 1)
            np.testing.assert_array_equal(one.targets[length:, 0], read)
            np.testing.assert_array_equal(one.mask, np.arange(2 * length) >= length)
    assert set(lengths) == {2, 3, 4, 5, 6, 7}
    seen = np.concatenate([one.inputs[: len(one.inputs) // 2, 0] for one in sequences(piece, 0)])
    share = np.bincount(seen, minlength=symbols) / len(seen)
    assert np.abs(share - 1 / symbols).max() < 4 * np.sqrt(1 / symbols / len(seen))


def test_strings_fit_whole_into_segments_or_wait_for_the_next():
    task = made("copy", start_level=4, spread=3, within=9)
    piece = drawn(task, steps=9 * 40)
    waited = 0
    for b in range(4):
        starts = np.flatnonzero(piece.first[:, b])
        assert set(range(0, 360, 9)) <= set(starts.tolist())
        for one, start in zip(sequences(piece, b), starts, strict=False):
            length = int(one.mask.sum())
            assert one.mask.tolist() == [length <= t < 2 * length for t in range(len(one.mask))]
            assert start // 9 == (start + 2 * length - 1) // 9  # no segment's edge lies within
            assert one.inputs[2 * length :, 0].tolist() == [2] * (len(one.mask) - 2 * length)
            waited += len(one.mask) > 2 * length
    assert waited > 20
    # a string of two steps always fits where there are two, so that no more than one is left
    short = drawn(made("copy", start_level=1, within=9), steps=90)
    assert (np.asarray(short.mask).sum(0) == 40).all()


def test_a_string_that_no_segment_holds_is_cut():
    piece = drawn(made("copy", start_level=6, spread=0, within=9), steps=90)
    assert piece.first[:, 0].tolist() == ([True] + [False] * 8) * 10
    assert piece.mask[:9, 0].tolist() == [False] * 6 + [True] * 3


def test_streams_and_strings_differ():
    piece = drawn(made("copy", start_level=40, spread=0), steps=160)
    first, second = (sequences(piece, b)[0].inputs[:40, 0] for b in (0, 1))
    assert (first != second).any()
    again = drawn(made("copy", start_level=40, spread=0), steps=160, seed=1)
    assert (again.inputs != piece.inputs).any()
    one = piece.inputs[:40, 0, 0], piece.inputs[80:120, 0, 0]
    assert (one[0] != one[1]).any()


def test_the_level_that_a_string_begins_with_holds_for_the_string():
    """A string that was begun does not change when the level does."""
    task = made("copy", start_level=4, spread=0)
    place, _ = task.draw((), task.init((), jax.random.key(0), 2), task.shared, 3)
    _, piece = task.draw((), place, task.shared._replace(level=jnp.int32(9)), 23)
    assert np.flatnonzero(piece.first[:, 0]).tolist() == [5]
    assert np.asarray(piece.mask[:5, 0]).tolist() == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("name", "kwargs"), [("copy", {}), ("copy", {"within": 16}), ("delayed_copy", {})]
)
def test_pieces_of_any_length_are_one_stream(name, kwargs):
    task = made(name, **kwargs)
    shared = task.shared._replace(level=jnp.int32(6)) if name == "copy" else ()
    whole = drawn(task, steps=50, shared=shared)
    cut = drawn(task, steps=50, shared=shared, cuts=(1, 2, 10, 37))
    jax.tree.map(np.testing.assert_array_equal, whole, cut)


def test_a_delayed_copy_is_the_stream_itself_a_while_ago():
    piece = drawn(made("delayed_copy", symbols=3, delay=4), steps=300)
    np.testing.assert_array_equal(piece.targets[4:], piece.inputs[:-4])
    assert piece.mask.tolist() == [[t >= 4] * 4 for t in range(300)]
    assert piece.first[0].all()
    assert not piece.first[1:].any()
    assert len(np.unique(piece.inputs)) == 3


def totals(targets: float, bits: float, sequences: float) -> Totals:
    error = bits * targets * np.log(2)
    return Totals(*map(jnp.float32, (targets, error, 0, sequences)))


def test_the_level_rises_when_a_whole_window_was_learnt():
    state = curriculum.start(3)

    def after(state, *news):
        for one in news:
            state = curriculum.advance(state, totals(*one), threshold_bits=0.15, window=10)
        return state

    assert after(state, (8, 0.0, 9)).level == 3  # the window is not full
    assert after(state, (8, 0.0, 9), (8, 0.0, 1)).level == 4
    # (8 * 0.05 + 8 * 0.24) / 16 = 0.145 bits, and 0.155 with 0.26
    assert after(state, (8, 0.05, 5), (8, 0.24, 5)).level == 4
    assert after(state, (8, 0.05, 5), (8, 0.26, 5)).level == 3
    # a window that was judged is over, learnt or not
    missed = after(state, (8, 0.9, 10))
    assert (missed.level, missed.targets, missed.sequences) == (3, 0, 0)
    assert after(missed, (8, 0.0, 10)).level == 4
    assert after(state, (0, 0.0, 50)).level == 3  # nothing was due yet
    assert curriculum.told(state) == {"level": 3}


def test_a_threshold_of_nothing_keeps_the_level():
    task = made("copy", threshold_bits=0.0, window=1)
    assert task.advance(task.shared, totals(5, 0.0, 9)).level == 1


def test_chance_is_what_a_guess_costs():
    assert made("copy", symbols=4).references() == {"chance.bits_per_char": 2.0}
