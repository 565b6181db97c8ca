"""Characters: texts, their splits and vocabulary, streams over them, and what is no text."""

import gzip
import re

import jax
import numpy as np
import pytest
from unit.training.supervised.pieces import drawn, made

from snaprl.training.errors import UserError
from snaprl.training.supervised import characters, corpus

TEXT = "the cat sat on the mat and so did the other cat; " * 20


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "cat.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def decoded(found: corpus.Corpus) -> dict[str, str]:
    return {k: "".join(map(chr, found.vocabulary[v])) for k, v in found.splits.items()}


def test_a_file_is_split_ninety_five_five(text):
    found = corpus.read(str(text), as_bytes=False)
    parts = decoded(found)
    assert "".join(parts.values()) == TEXT
    n = len(TEXT)
    assert [len(parts[k]) for k in corpus.SPLITS] == [
        round(0.9 * n),
        round(0.95 * n) - round(0.9 * n),
        n - round(0.95 * n),
    ]
    assert "".join(map(chr, found.vocabulary)) == "".join(sorted(set(TEXT)))


def test_the_published_splits_of_a_hundred_million_follow_from_the_shares():
    n = 10**8
    ends = [round(n * (1 - corpus.VALID_SHARE - corpus.TEST_SHARE)), round(n * 0.95)]
    assert ends == [90_000_000, 95_000_000]


@pytest.mark.parametrize(("as_bytes", "sizes"), [(True, [900, 50, 50]), (False, [765, 43, 42])])
def test_a_file_is_split_by_what_its_symbols_are(tmp_path, as_bytes, sizes):
    """As enwik8 is, whose published splits are of bytes."""
    (tmp_path / "text").write_bytes("aé".encode() * 100 + b"ab" * 300 + "é".encode() * 50)
    found = corpus.read(str(tmp_path / "text"), as_bytes=as_bytes)
    assert [len(found.splits[name]) for name in corpus.SPLITS] == sizes


def test_a_path_that_cannot_be_looked_at_is_said():
    with pytest.raises(UserError, match=r"x{300} cannot be read: File name too long"):
        corpus.read("x" * 300, as_bytes=True)


@pytest.mark.parametrize("pattern", corpus.PUBLISHED)
def test_files_of_splits_are_the_splits(tmp_path, pattern):
    for name in corpus.SPLITS:
        text = f"this is for {name}"
        content = (" ".join(text.replace(" ", "_")) if "char" in pattern else text).encode()
        file = tmp_path / pattern.format(name)
        file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    found = decoded(corpus.read(str(tmp_path), as_bytes=False))
    assert found == {name: f"this is for {name}" for name in corpus.SPLITS}
    (tmp_path / pattern.format("valid")).unlink()
    sentence = f"{tmp_path} has {pattern.format('train')}, but no {pattern.format('valid')}: put"
    with pytest.raises(UserError, match=re.escape(sentence)):
        corpus.read(str(tmp_path), as_bytes=False)


def test_a_folder_of_texts_is_one_text(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_text("c" * 50)
    (tmp_path / "a.md").write_text("b" * 50)
    (tmp_path / ".hidden").write_text("x")
    found = decoded(corpus.read(str(tmp_path), as_bytes=False))
    assert "".join(found.values()) == "b" * 50 + "\n" + "c" * 50


def test_bytes_and_characters_differ_where_utf8_does(tmp_path):
    path = tmp_path / "x"
    path.write_text("häßlich " * 50, encoding="utf-8")
    letters, octets = (corpus.read(str(path), as_bytes=b) for b in (False, True))
    assert (len(letters.vocabulary), len(octets.vocabulary)) == (7, 8)
    assert sum(map(len, octets.splits.values())) == 500
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert corpus.read(str(path), as_bytes=True).digest == octets.digest
    assert octets.digest != letters.digest


NO_TEXT = {
    "missing": (None, "there is no text at {}: name one by task.kwargs.path"),
    "empty": (b"", "{} is empty: task.kwargs.path must lead to a text"),
    "zeros": (b"ab\0cd" * 99, "{} is no text: it holds zero bytes"),
    "utf-8": (
        b"abc\xff" * 99,
        "{} is no text in UTF-8 (byte 3): task.kwargs.vocabulary = 'byte' takes text in any other "
        "encoding",
    ),
    "zip": (b"PK\x03\x04" + bytes(99), "{} is a zip archive: unpack it"),
    "short": (
        b"short",
        "{} is too short: its split 'valid' has 1 symbols, and at least 2 are needed",
    ),
    "packed": (b"\x1f\x8bnonsense", "{} cannot be read: "),
}


@pytest.mark.parametrize(("content", "sentence"), NO_TEXT.values(), ids=NO_TEXT)
def test_what_is_no_text_is_said(tmp_path, content, sentence):
    path = tmp_path / "x.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        made("characters", path=str(path))
    assert str(caught.value).startswith(sentence.format(path))


def test_of_many_files_the_one_that_is_no_text_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("words " * 50)
    (tmp_path / "z.png").write_bytes(b"\x89PNG\0\0")
    with pytest.raises(UserError, match=f"^{tmp_path}/z.png is no text: it holds zero bytes$"):
        made("characters", path=str(tmp_path))


def test_an_empty_folder_is_said(tmp_path):
    with pytest.raises(UserError, match=f"the folder {tmp_path} is empty"):
        made("characters", path=str(tmp_path))


def test_streams_read_on_from_places_spread_evenly_and_around(text):
    task = made("characters", path=str(text))
    train = task.data.astype(int)
    n = len(train)
    piece = drawn(task, steps=2 * n, streams=3, cuts=(5, 6, n))
    for b in range(3):
        at = (b * n // 3 + np.arange(2 * n + 1)) % n
        np.testing.assert_array_equal(piece.inputs[:, b, 0], train[at[:-1]])
        np.testing.assert_array_equal(piece.targets[:, b, 0], train[at[1:]])
        # the first character does not follow from the last one, and nothing is kept for it
        np.testing.assert_array_equal(piece.mask[:, b], at[1:] != 0)
        wanted = at[:-1] == 0
        wanted[0] = True
        np.testing.assert_array_equal(piece.first[:, b], wanted)


def test_an_exam_is_a_whole_split(text):
    task = made("characters", path=str(text))
    for name in ("valid", "test"):
        exam = task.exams[name]
        place = task.init(exam.data, jax.random.key(0), exam.streams)
        _, piece = task.draw(exam.data, place, (), exam.steps)
        np.testing.assert_array_equal(piece.inputs[:, 0, 0], exam.data[:-1])
        np.testing.assert_array_equal(piece.targets[:, 0, 0], exam.data[1:])
        assert np.asarray(piece.mask).all()
        assert np.asarray(piece.first).sum() == 1


@pytest.mark.parametrize("chunk", [2**24, 7])
def test_references_are_what_counting_gives(text, chunk, monkeypatch):
    monkeypatch.setattr(characters, "CHUNK", chunk)
    found = made("characters", path=str(text)).references()
    parts = decoded(corpus.read(str(text), as_bytes=False))
    train, test = parts["train"], parts["test"]
    size = len(set(TEXT))
    bits = [-np.log2((train.count(c) + 1) / (len(train) + size)) for c in test[1:]]
    np.testing.assert_allclose(found["unigram.bits_per_char"], np.mean(bits))
    pairs = [train[k : k + 2] for k in range(len(train) - 1)]
    bits = [
        -np.log2((pairs.count(a + b) + 1) / (train[:-1].count(a) + size))
        for a, b in zip(test, test[1:], strict=False)
    ]
    np.testing.assert_allclose(found["bigram.bits_per_char"], np.mean(bits))
    packed = len(gzip.compress(test.encode(), mtime=0))
    np.testing.assert_allclose(found["gzip.bits_per_char"], 8 * packed / len(test))
    np.testing.assert_allclose(found["uniform.bits_per_char"], np.log2(size))


def test_the_text_that_comes_along():
    found = corpus.read("", as_bytes=False)
    assert decoded(found)["train"].startswith("CHAPTER 1. Loomings.\n\nCall me Ishmael.")
    assert sum(map(len, found.splits.values())) == 1_191_295
    assert len(found.vocabulary) == 81
