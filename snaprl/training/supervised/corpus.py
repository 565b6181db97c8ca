"""Texts: read from a path, split as published, and turned into numbers.

What a path may be:

- nothing: a text that comes along, Herman Melville's "Moby-Dick" (1851, public domain).
- A file, gzipped or not. Its first 90 % train, the next 5 % are `valid`, the last 5 % `test`: for
  text8, and for enwik8 read as bytes, these are the published splits (90, 5 and 5 million).
- A folder with `wiki.train.tokens` or `.raw` (WikiText), `ptb.char.train.txt` or `ptb.train.txt`
  (Penn Treebank), `train.txt`, and the like for `valid` and `test`: the splits are these files.
  In `ptb.char` blanks stand between the characters, and `_` for a blank: they are read as that.
- Any other folder: its files in the order of their paths, as one text.
"""

import gzip
import hashlib
import importlib.resources
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from snaprl.training.errors import UserError

SPLITS = ("train", "valid", "test")
SPACED = "ptb.char.{}.txt"
PUBLISHED = (  # names of a split's file, {} being the split's
    *("wiki.{}.tokens", "wiki.{}.raw", SPACED, "ptb.{}.txt"),
    *("{}.txt", "{}.txt.gz", "{}.raw"),
)
CHUNK = 2**24  # symbols that are looked up at a time: numpy makes 8 bytes of each
VALID_SHARE = TEST_SHARE = 0.05


class Corpus(NamedTuple):
    """A text in numbers."""

    splits: dict[str, np.ndarray]  # [n] each, of the smallest type that holds the vocabulary
    vocabulary: np.ndarray  # [V] code points or bytes, rising; a number is a place in here
    source: str  # where it is from, for people

    @property
    def digest(self) -> str:
        """Of every split, in numbers, and of the vocabulary."""
        found = hashlib.sha256(self.vocabulary.tobytes())
        for name in SPLITS:
            found.update(np.ascontiguousarray(self.splits[name]).tobytes())
        return found.hexdigest()[:16]


def read(path: str, *, as_bytes: bool) -> Corpus:
    """Reads a text.

    The vocabulary is what occurs in any of the splits, as is the custom.

    Args:
      path: see above; '' for the text that comes along.
      as_bytes: whether a symbol is a byte, or a character of UTF-8.

    Raises:
      UserError: there is nothing at the path, or it is empty or no text.
    """
    source = path or "the text that comes along"
    texts = _split_files(Path(path)) if path else None
    if texts is None:
        whole = _whole(Path(path)) if path else _bundled()
        symbols = _symbols(whole, source, as_bytes)
        train_end = round(len(symbols) * (1 - VALID_SHARE - TEST_SHARE))
        valid_end = round(len(symbols) * (1 - TEST_SHARE))
        parts = np.split(symbols, [train_end, valid_end])
    else:
        parts = [_symbols(text, source, as_bytes) for text in texts]
    for name, part in zip(SPLITS, parts, strict=True):
        if len(part) < 2:
            raise UserError(
                f"{source} is too short: its split '{name}' has {len(part)} symbols, and at least "
                "2 are needed"
            )
    # by tables: sorting what has half a thousand million symbols takes minutes and many GiB
    occurs = np.zeros(1 + max(int(part.max()) for part in parts), bool)
    for part in parts:
        for k in range(0, len(part), CHUNK):
            occurs[part[k : k + CHUNK]] = True
    vocabulary = np.flatnonzero(occurs).astype(parts[0].dtype)
    kind = np.uint8 if len(vocabulary) <= 256 else np.uint16 if len(vocabulary) <= 65536 else "u4"
    number = (np.cumsum(occurs) - 1).astype(kind)
    numbers = []
    for part in parts:
        pieces = [number[part[k : k + CHUNK]] for k in range(0, len(part), CHUNK)]
        numbers.append(np.concatenate(pieces))
    return Corpus(dict(zip(SPLITS, numbers, strict=True)), vocabulary, source)


def _bundled() -> bytes:
    folder = importlib.resources.files("snaprl.training.supervised") / "texts"
    return gzip.decompress((folder / "moby_dick.txt.gz").read_bytes())


def _split_files(folder: Path) -> list[bytes] | None:
    """The three files of a folder that has a file per split; None where it has not."""
    try:
        if not folder.is_dir():
            return None
    except OSError as error:  # what is above it may not be read
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None
    for pattern in PUBLISHED:
        files = [folder / pattern.format(name) for name in SPLITS]
        found = [file for file in files if file.is_file()]
        if len(found) == len(files):
            texts = [_bytes_of(file) for file in files]
            if pattern == SPACED:
                texts = [text.replace(b" ", b"").replace(b"_", b" ") for text in texts]
            return texts
        if found:
            missing = next(file for file in files if file not in found)
            raise UserError(f"{folder} has {found[0].name}, but no {missing.name}: put it there")
    return None


def _whole(path: Path) -> bytes:
    """A file, or the files of a folder in the order of their paths."""
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
        )
        if not files:
            raise UserError(f"the folder {path} is empty: task.kwargs.path must lead to a text")
        texts = [_bytes_of(file) for file in files]
        for file, text in zip(files, texts, strict=True):  # once they are one, it has no name
            _refuse_binary(text, str(file))
        return b"\n".join(texts)
    return _bytes_of(path)


def _bytes_of(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except FileNotFoundError:
        raise UserError(f"there is no text at {path}: name one by task.kwargs.path") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _refuse_binary(content: bytes, source: str) -> None:
    if content.startswith(b"PK\x03\x04"):
        raise UserError(f"{source} is a zip archive: unpack it")
    if b"\0" in content:
        raise UserError(f"{source} is no text: it holds zero bytes")


def _symbols(content: bytes, source: str, as_bytes: bool) -> np.ndarray:
    """Bytes or code points."""
    if not content:
        raise UserError(f"{source} is empty: task.kwargs.path must lead to a text")
    _refuse_binary(content, source)
    if as_bytes:
        return np.frombuffer(content, np.uint8)
    try:
        return np.frombuffer(content.decode("utf-8").encode("utf-32-le"), np.uint32)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source} is no text in UTF-8 (byte {error.start}): task.kwargs.vocabulary = "
            "'byte' takes text in any other encoding"
        ) from None


def words_of(vocabulary: np.ndarray) -> str:
    """A vocabulary for people and for comparison: how many, and a digest."""
    digest = hashlib.sha256(vocabulary.astype(np.uint32).tobytes()).hexdigest()[:16]
    return f"{len(vocabulary)} symbols ({digest})"
