"""Files of word vectors from elsewhere: word2vec's text and binary formats, GloVe's text; gzip of each."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import BinaryIO

import numpy as np

from luban.foundation.errors import DataError
from luban.models.vectors import WordVectors

_LONGEST_WORD = 10_000  # bytes; more without a space is no word but a damaged file


def read_vectors(path: Path, maximum_words: int | None = None) -> WordVectors:
    """Vectors from a folder of `luban fit`, or a file of word2vec (text or binary) or GloVe, recognised by content.

    ``maximum_words`` reads only the first so many. Duplicate words keep their first vector. Raises DataError with the line of what is wrong.
    """
    path = Path(path)
    if path.is_dir():
        return WordVectors.load(path)
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            return _read(stream, path, maximum_words)  # type: ignore[arg-type]
    except (OSError, EOFError) as error:
        raise DataError("{path} cannot be read: {error}", path=path, error=getattr(error, "strerror", None) or error) from None


def _read(stream: BinaryIO, path: Path, maximum_words: int | None) -> WordVectors:
    first = stream.readline(1 << 20)
    head = first.split()
    if len(head) == 2 and all(part.isdigit() for part in head):
        words, dimension = int(head[0]), int(head[1])
        if dimension < 1:
            raise DataError("{path}:{line}: vectors of dimension {dimension}", path=path, line=1, dimension=dimension)
        wanted = min(words, maximum_words or words)
        probe = stream.read(1 << 16)
        stream.seek(len(first))
        if _is_text(probe, dimension):
            return _text(stream, path, dimension, wanted, 2, declared=wanted)
        return _binary(stream, path, dimension, wanted)
    if len(head) < 2:
        raise DataError("{path} is no file of word vectors", "its first line has no word with figures", "give a file of word2vec or GloVe", path=path)
    stream.seek(0)
    return _text(stream, path, len(first.rstrip(b" \r\n").split(b" ")) - 1, maximum_words, 1)


def _is_text(probe: bytes, dimension: int) -> bool:
    line = probe.split(b"\n", 1)[0].rstrip(b" \r")
    try:
        return len([float(part) for part in line.split(b" ")[-dimension:]]) == dimension and len(line.split(b" ")) > dimension
    except ValueError:
        # A line longer than what was looked at: its beginning tells.
        parts = probe.split(b" ", 8)[1:8]
        return (
            len(line) == len(probe) and len(parts) > 2 and all(part.replace(b".", b"").replace(b"-", b"").replace(b"e", b"").isdigit() for part in parts[:-1])
        )


def _text(stream: BinaryIO, path: Path, dimension: int, wanted: int | None, number: int, declared: int | None = None) -> WordVectors:
    words: list[str] = []
    rows: list[np.ndarray] = []
    for line in stream:
        if wanted is not None and len(words) >= wanted:
            break
        parts = line.rstrip(b" \r\n").split(b" ")
        if len(parts) > 1:
            try:
                rows.append(np.array(parts[-dimension:], dtype=np.float32))
            except ValueError as error:
                raise DataError("{path}:{line}: {error}", "", "restore the file", path=path, line=number, error=error) from None
            if len(parts) <= dimension:
                raise DataError(
                    "{path}:{line}: {found} figures, and {dimension} are needed",
                    "",
                    "restore the file",
                    path=path,
                    line=number,
                    found=len(parts) - 1,
                    dimension=dimension,
                )
            words.append(b" ".join(parts[:-dimension]).decode("utf-8", "replace"))
        number += 1
    if declared is not None and len(words) < declared:
        raise DataError("{path} ends after {found} of {declared} words", "", "restore the file", path=path, found=len(words), declared=declared)
    return _made(words, np.array(rows, np.float32).reshape(len(rows), dimension))


def _binary(stream: BinaryIO, path: Path, dimension: int, wanted: int) -> WordVectors:
    words: list[str] = []
    size = dimension * 4
    vectors = []
    buffer = b""
    while len(words) < wanted:
        while b" " not in buffer or len(buffer) < buffer.index(b" ") + 1 + size:
            more = stream.read(1 << 20)
            if not more or (b" " not in buffer and len(buffer) > _LONGEST_WORD):
                raise DataError("{path} ends after {found} of {declared} words", "", "restore the file", path=path, found=len(words), declared=wanted)
            buffer += more
        position = 0
        while len(words) < wanted and (space := buffer.find(b" ", position)) >= 0 and len(buffer) >= space + 1 + size:
            words.append(buffer[position:space].lstrip(b"\n").decode("utf-8", "replace"))
            vectors.append(np.frombuffer(buffer, "<f4", count=dimension, offset=space + 1))
            position = space + 1 + size
        buffer = buffer[position:]
    return _made(words, np.array(vectors, np.float32).reshape(len(words), dimension))


def _made(words: list[str], vectors: np.ndarray) -> WordVectors:
    first: dict[str, int] = {}
    for place, word in enumerate(words):
        first.setdefault(word, place)
    return WordVectors(list(first), vectors[list(first.values())] if len(first) < len(words) else vectors)


def write_word2vec(vectors: WordVectors, path: Path) -> None:
    """Word2vec's text format, which gensim, fastText's tools and spaCy read. Whitespace inside a word becomes ``▁``: the format has none."""
    with Path(path).open("w", encoding="utf-8", errors="replace", newline="\n") as stream:
        stream.write(f"{len(vectors)} {vectors.dimension}\n")
        for word, row in zip(vectors.words, vectors.vectors, strict=True):
            name = "".join("▁" if character.isspace() else character for character in word) or "▁"
            stream.write(name + " " + " ".join(f"{value:.6g}" for value in row) + "\n")
