"""Handwritten digits, one pixel at a time: scikit-learn's, or MNIST from a path.

Reference: Le, Jaitly, Hinton, "A simple way to initialize recurrent networks of rectified linear
units", 2015 (arXiv 1504.00941), for the pixel-by-pixel task.
"""

import gzip
import hashlib
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from snaprl.training.errors import UserError
from snaprl.training.supervised.types import Array, Exam, Numbers, Piece, PyTree, Symbols, Task

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte") + (
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
UNREADABLE = (OSError, EOFError, KeyError, ValueError, struct.error, zipfile.BadZipFile, zlib.error)


class Images(NamedTuple):
    """Digits and what they are."""

    pixels: Any  # [n, P] float32, from 0 to 1
    labels: Any  # [n] int32


class Reading(NamedTuple):
    """Where streams stand."""

    image: Array  # [B] int32
    pixel: Array  # [B] int32  that is read next


@dataclass(frozen=True)
class Digits:
    """Tells a digit from its pixels, which are read one by one, row by row; due at the last one.

    Streams go through the images in a fixed order, each from another place on.

    Attributes:
      path: a folder with MNIST's four files, gzipped or not, or an `.npz` with `x_train`,
        `y_train`, `x_test`, `y_test`; '' for the 1797 digits of 8 x 8 pixels that scikit-learn
        brings, of which every fifth is for the test. Of those to train on every sixth, of MNIST's
        60 000 so 10 000, is kept apart for `valid`.
    """

    path: str = ""

    def make(self) -> Task:
        """The task as pure functions.

        Raises:
          UserError: the path leads to no digits, or scikit-learn is not installed.
        """
        known, test = _read(Path(self.path)) if self.path else _scikit_learn()
        kept = np.arange(len(known.labels)) % 6 == 5
        train, valid = (Images(*(x[part] for x in known)) for part in (~kept, kept))
        for images in (train, valid, test):
            if not len(images.labels):
                raise UserError(
                    f"{self.path} has too few digits: at least 6 to train on, 1 to test"
                )
        share = np.bincount(test.labels, minlength=10).max() / len(test.labels)
        return Task(
            inputs=Numbers(1),
            targets=Symbols(10),
            data=train,
            init=_init,
            draw=_draw,
            exams={"valid": _exam(valid), "test": _exam(test)},
            references=lambda: {
                "chance.bits_per_char": float(np.log2(10)),
                "chance.accuracy": float(share),
            },
            facts={"digits": _digest(train, valid, test)},
        )


def _exam(images: Images) -> Exam:
    """As many streams as share the images evenly, so that each is seen once."""
    count, size = images.pixels.shape
    streams = max(k for k in range(1, 129) if count % k == 0)
    return Exam(images, streams, count // streams * size)


def _digest(*parts: Images) -> str:
    found = hashlib.sha256()
    for images in parts:
        found.update(np.ascontiguousarray(images.pixels).tobytes())
        found.update(images.labels.tobytes())
    return found.hexdigest()[:16]


def _init(data: Images, key: Array, streams: int) -> Reading:
    del key
    starts = [b * len(data.labels) // streams for b in range(streams)]
    return Reading(jnp.array(starts, jnp.int32), jnp.zeros(streams, jnp.int32))


def _draw(data: Images, reading: Reading, shared: PyTree, steps: int) -> tuple[Reading, Piece]:
    del shared
    count, size = data.pixels.shape
    ahead = reading.pixel[None] + jnp.arange(steps + 1, dtype=jnp.int32)[:, None]
    image, pixel = (reading.image[None] + ahead // size) % count, ahead % size
    piece = Piece(
        inputs=data.pixels[image[:-1], pixel[:-1]][..., None],
        targets=data.labels[image[:-1]][..., None],
        mask=pixel[:-1] == size - 1,
        first=pixel[:-1] == 0,
    )
    return Reading(image[-1], pixel[-1]), piece


def _scikit_learn() -> tuple[Images, Images]:
    try:
        from sklearn.datasets import load_digits  # type: ignore
    except ModuleNotFoundError:
        raise UserError(
            "the 8 x 8 digits come with scikit-learn: pip install scikit-learn, or name MNIST's "
            "files by task.kwargs.path"
        ) from None
    found: Any = load_digits()
    test = np.arange(len(found.target)) % 5 == 4
    train, test = (_images(found.data[part], found.target[part], 16) for part in (~test, test))
    return train, test


def _read(path: Path) -> tuple[Images, Images]:
    """MNIST, or anything of its form."""
    try:
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file) as held:
                arrays = [held[f"{kind}_{part}"] for part in ("train", "test") for kind in "xy"]
        else:
            arrays = [_idx(path / name) for name in IDX]
        x_train, y_train, x_test, y_test = arrays
        for pixels, labels in ((x_train, y_train), (x_test, y_test)):
            if pixels.ndim < 2 or labels.shape != pixels.shape[:1] or pixels.dtype != np.uint8:
                raise ValueError(
                    f"images {pixels.dtype} {pixels.shape} and labels {labels.shape} do not fit: "
                    "images are uint8 [n, ...], and each has its label"
                )
            if labels.dtype.kind not in "iu" or (
                labels.size and not 0 <= labels.min() <= labels.max() <= 9
            ):
                raise ValueError("a label is none of 0 to 9")
        if x_train.shape[1:] != x_test.shape[1:]:
            raise ValueError(f"images of {x_train.shape[1:]} and of {x_test.shape[1:]} pixels")
    except UNREADABLE as error:
        raise UserError(
            f"{path} holds no digits ({error}): task.kwargs.path must lead to an .npz or to a "
            f"folder with {', '.join(IDX)}"
        ) from None
    return _images(x_train, y_train, 255), _images(x_test, y_test, 255)


def _idx(path: Path) -> np.ndarray:
    """A file of MNIST's own format: two zeros, the type (8: bytes), the number of axes, sizes."""
    packed = path.with_name(path.name + ".gz")
    content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    zeros, kind, axes = struct.unpack_from(">HBB", content)
    if zeros or kind != 8:
        raise ValueError(f"{path.name} does not begin as MNIST's files do")
    shape = struct.unpack_from(f">{axes}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _images(pixels: np.ndarray, labels: np.ndarray, scale: float) -> Images:
    flat = pixels.reshape(len(pixels), math.prod(pixels.shape[1:])).astype(np.float32) / scale
    return Images(flat, labels.astype(np.int32))
