"""Characters: the next one is foretold, in a text of the user's or the one that comes along."""

import gzip
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from snaprl.training.errors import UserError
from snaprl.training.supervised import corpus
from snaprl.training.supervised.types import Array, Exam, Piece, PyTree, Symbols, Task

CHUNK = 2**24  # symbols that are counted at a time
MOST = 2**30  # symbols that cursors of 32 bits, and a segment more, get by


class Cursor(NamedTuple):
    """Where streams read."""

    position: Array  # [B] int32  of what is read next
    fresh: Array  # [B] bool  nothing was read yet


@dataclass(frozen=True)
class Characters:
    """Foretells the next character of a text, in bits per character.

    Streams begin at places spread evenly over the training text, and each goes on to its end, and
    then from its beginning: a state is carried for ever, and starts anew only there.

    Attributes:
      path: a file or folder, see `snaprl.training.supervised.corpus`; '' for a text that comes
        along.
      vocabulary: what a symbol is.
    """

    path: str = ""
    vocabulary: Literal["character", "byte"] = "character"

    def make(self) -> Task:
        """The task as pure functions.

        Raises:
          UserError: the path leads to no text.
        """
        text = corpus.read(self.path, as_bytes=self.vocabulary == "byte")
        size = len(text.vocabulary)
        if len(text.splits["train"]) >= MOST:
            raise UserError(
                f"{text.source} has {len(text.splits['train']):,} symbols to train on, and there "
                f"must be fewer than {MOST:,}: name a part of it"
            )
        exams = {
            name: Exam(text.splits[name], 1, len(text.splits[name]) - 1)
            for name in ("valid", "test")
        }
        return Task(
            inputs=Symbols(size),
            targets=Symbols(size),
            data=text.splits["train"],
            init=_init,
            draw=_draw,
            exams=exams,
            references=lambda: references(text),
            length=len(text.splits["train"]) - 1,
            facts={"vocabulary": corpus.words_of(text.vocabulary), "text": text.digest},
        )


def _init(data: Array, key: Array, streams: int) -> Cursor:
    del key
    # in Python's numbers: streams times a long text does not fit into 32 bits
    starts = [b * len(data) // streams for b in range(streams)]
    return Cursor(jnp.array(starts, jnp.int32), jnp.ones(streams, bool))


def _draw(data: Array, cursor: Cursor, shared: PyTree, steps: int) -> tuple[Cursor, Piece]:
    del shared
    size = len(data)
    ahead = jnp.arange(steps + 1, dtype=jnp.int32)[:, None]
    at = (cursor.position[None] + ahead) % size  # [T+1, B]
    read = data[at].astype(jnp.int32)[..., None]
    first = (at[:-1] == 0) | ((ahead[:-1] == 0) & cursor.fresh[None])
    piece = Piece(read[:-1], read[1:], at[1:] != 0, first)
    return Cursor(at[-1], jnp.zeros_like(cursor.fresh)), piece


def references(text: corpus.Corpus) -> dict[str, float]:
    """Bits per character of simpler models on the test split, counted on the training split.

    `unigram` knows how frequent each character is, `bigram` how frequent after the one before,
    which is all that a net without a memory could know. Both count each case once more than it was
    seen, so that none is impossible. `gzip` is the size of the compressed split.
    """
    train, test = text.splits["train"], text.splits["test"]
    size = len(text.vocabulary)
    often = sum(np.bincount(train[k : k + CHUNK], minlength=size) for k in _chunks(train))
    unigram = np.log2(often + 1) - math.log2(len(train) + size)
    seen = _pairs(train, test, size)
    before = (often - (np.arange(size) == train[-1]))[test[:-1]]
    bigram = np.log2((seen + 1) / (before + size))
    symbols = text.vocabulary[test]
    content = symbols.tobytes()
    if symbols.dtype != np.uint8:
        content = content.decode("utf-32-le").encode()
    return {
        "uniform.bits_per_char": math.log2(size),
        "unigram.bits_per_char": float(-unigram[test[1:]].mean()),
        "bigram.bits_per_char": float(-bigram.mean()),
        "gzip.bits_per_char": 8 * len(gzip.compress(content, mtime=0)) / len(test),
    }


def _pairs(train: np.ndarray, test: np.ndarray, size: int) -> np.ndarray:
    """How often each pair of neighbours of `test [n]` stands in `train`: `[n - 1]`."""
    wanted, where = np.unique(_paired(test, size), return_inverse=True)
    counts = np.zeros(len(wanted), np.int64)
    for start in _chunks(train[:-1]):
        found = _paired(train[start : start + CHUNK + 1], size)
        place = np.minimum(np.searchsorted(wanted, found), len(wanted) - 1)
        counts += np.bincount(place[wanted[place] == found], minlength=len(wanted))
    return counts[where]


def _chunks(symbols: np.ndarray) -> range:
    return range(0, len(symbols), CHUNK)


def _paired(symbols: np.ndarray, size: int) -> np.ndarray:
    return symbols[:-1].astype(np.int64) * size + symbols[1:]
