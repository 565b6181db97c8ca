"""Digits, pixel by pixel: from files of MNIST's form, every test image once."""

import gzip
import struct
import sys

import jax
import numpy as np
import pytest
from unit.training.supervised.pieces import drawn, made, sequences

from snaprl.training.errors import UserError
from snaprl.training.supervised.digits import IDX

RNG = np.random.default_rng(0)
TRAIN, VALID = [0, 1, 2, 3, 4, 6], 5  # of the seven to train on, one is kept apart
ARRAYS = {
    "x_train": RNG.integers(0, 256, (7, 3, 2), np.uint8),
    "y_train": RNG.integers(0, 10, 7).astype(np.uint8),
    "x_test": RNG.integers(0, 256, (6, 3, 2), np.uint8),
    "y_test": np.array([1, 2, 2, 9, 0, 5], np.uint8),
}


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(params=["npz", "idx", "idx.gz"])
def path(request, tmp_path):
    if request.param == "npz":
        np.savez(tmp_path / "digits.npz", **ARRAYS)
        return tmp_path / "digits.npz"
    for name, array in zip(IDX, ARRAYS.values(), strict=True):
        if request.param == "idx":
            (tmp_path / name).write_bytes(idx(array))
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return tmp_path


def test_pixels_come_row_by_row_and_the_digit_is_due_at_the_last(path):
    task = made("digits", path=str(path))
    piece = drawn(task, steps=6 * 9, streams=2, cuts=(1, 8, 20))
    for b in range(2):
        for k, one in enumerate(sequences(piece, b)):
            image = TRAIN[(b * 6 // 2 + k) % 6]
            pixels = ARRAYS["x_train"][image].reshape(-1) / 255
            np.testing.assert_allclose(one.inputs[:, 0], pixels, rtol=1e-6)
            assert one.targets[-1, 0] == ARRAYS["y_train"][image]
            assert one.mask.tolist() == [False] * 5 + [True]


def test_the_exam_sees_every_test_image_once(path):
    task = made("digits", path=str(path))
    exam = task.exams["test"]
    place = task.init(exam.data, jax.random.key(0), exam.streams)
    _, piece = task.draw(exam.data, place, (), exam.steps)
    due = np.asarray(piece.targets[..., 0])[np.asarray(piece.mask)]
    assert sorted(due) == sorted(ARRAYS["y_test"])
    assert task.references()["chance.accuracy"] == pytest.approx(2 / 6)


def test_what_is_kept_apart_is_never_trained_on(path):
    task = made("digits", path=str(path))
    valid = task.exams["valid"]
    assert (valid.streams, valid.steps) == (1, 6)
    np.testing.assert_array_equal(np.asarray(valid.data.labels), ARRAYS["y_train"][[VALID]])
    np.testing.assert_array_equal(np.asarray(task.data.labels), ARRAYS["y_train"][TRAIN])


def test_a_run_knows_its_digits_again(tmp_path):
    for name, other in (("a", 0), ("b", 0), ("c", 1)):
        labels = ARRAYS["y_test"] ^ other
        np.savez(tmp_path / f"{name}.npz", **ARRAYS | {"y_test": labels})
    a, b, c = (made("digits", path=str(tmp_path / f"{n}.npz")).facts["digits"] for n in "abc")
    assert a == b != c


BROKEN = {
    "labels": ({"y_train": ARRAYS["y_train"][:3]}, "do not fit"),
    "floats": ({"x_test": ARRAYS["x_test"] / 255}, "do not fit"),
    "eleven": ({"y_test": ARRAYS["y_test"] + 5}, "a label is none of 0 to 9"),
    "sizes": ({"x_test": ARRAYS["x_test"][:, :2]}, "images of"),
    "none": ({"x_test": ARRAYS["x_test"][:0], "y_test": ARRAYS["y_test"][:0]}, "too few digits"),
}


@pytest.mark.parametrize(("changed", "words"), BROKEN.values(), ids=BROKEN)
def test_arrays_that_do_not_fit_are_said(tmp_path, changed, words):
    np.savez(tmp_path / "x.npz", **ARRAYS | changed)
    with pytest.raises(UserError, match=words):
        made("digits", path=str(tmp_path / "x.npz"))


def test_files_that_are_cut_short_are_said(tmp_path):
    np.savez(tmp_path / "x.npz", **ARRAYS)
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[: len(whole) // 2])
    packed = bytearray(gzip.compress(idx(ARRAYS["x_train"])))
    packed[15:25] = bytes(10)
    (tmp_path / f"{IDX[0]}.gz").write_bytes(packed)
    for path in (tmp_path / "x.npz", tmp_path):
        with pytest.raises(UserError, match=f"{path} holds no digits"):
            made("digits", path=str(path))


def test_what_holds_no_digits_is_said(tmp_path):
    for path in (tmp_path, tmp_path / "x.npz"):
        with pytest.raises(UserError, match=f"{path} holds no digits .*task.kwargs.path must"):
            made("digits", path=str(path))
    for name in IDX:
        (tmp_path / name).write_bytes(b"no such thing")
    with pytest.raises(UserError, match="does not begin as MNIST's files do"):
        made("digits", path=str(tmp_path))


def test_without_scikit_learn_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="pip install scikit-learn, or name MNIST's"):
        made("digits")


def test_scikit_learns_digits():
    pytest.importorskip("sklearn")
    task = made("digits")
    assert task.data.pixels.shape == (1199, 64)
    assert [len(task.exams[name].data.labels) for name in ("valid", "test")] == [239, 359]
    assert 0 <= task.data.pixels.min() < task.data.pixels.max() == 1
