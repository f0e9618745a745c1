"""Texts as units (characters, words, tokens), and the units of a whole corpus as a file of numbers with a vocabulary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luban.corpus.documents import Document
from luban.examples.segmentation import stop_words, words
from luban.foundation.console import progress
from luban.models.ngram import code_points
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.encoding import encode_documents

_DENSE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7a3\uff00-\uffef\u3000-\u303f]")
_NO_SPACE_BEFORE = re.compile(r"[.,;:!?)\]}%'’”]")
_BATCH_CHARACTERS = 2_000_000
_FLUSH = 1_000_000  # unit numbers held before they are written
_WORD_BYTES = 250  # of a word in a dictionary with its number, about


@dataclass
class Units:
    """How texts are cut: ``unit`` is ``character``, ``word`` (segmentation, Chinese by jieba) or ``token`` (of ``tokenizer``)."""

    unit: str
    tokenizer: Tokenizer | None = None
    lowercase: bool = False
    remove_stop_words: bool = False
    punctuation: bool = True  # signs are words too

    def split(self, text: str) -> list[str]:
        """The units of a text."""
        if self.unit == "character":
            return list(text.lower() if self.lowercase else text)
        if self.unit == "token":
            return [self.token_name(index) for index in self.tokenizer.encode(text)]
        return words(text, lower=self.lowercase, punctuation=self.punctuation, stop=stop_words() if self.remove_stop_words else ())

    def token_name(self, index: int) -> str:
        """What the tokenizer calls a token; its number in brackets where it has no name."""
        return self.tokenizer.core.id_to_token(index) or f"[{index}]"

    def join(self, units: list[str]) -> str:
        """A text of units; words of Latin script get spaces between them."""
        if self.unit == "character":
            return "".join(units)
        if self.unit == "token":
            ids = [self.tokenizer.core.token_to_id(unit) for unit in units]
            return self.tokenizer.decode([index for index in ids if index is not None])
        text = ""
        for unit in units:
            closed = not text or _DENSE.match(text[-1]) or _DENSE.match(unit) or _NO_SPACE_BEFORE.match(unit)
            text += unit if closed else " " + unit
        return text

    def save(self, folder: Path) -> dict[str, Any]:
        """What config.json says of the units; a tokenizer is written beside it."""
        if self.tokenizer is not None:
            self.tokenizer.save(folder / "tokenizer")
        return {"unit": self.unit, "lowercase": self.lowercase, "remove_stop_words": self.remove_stop_words, "punctuation": self.punctuation}

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any]) -> Units:
        """The units of a saved model."""
        unit = str(facts.get("unit", "word"))
        tokenizer = Tokenizer.load(folder / "tokenizer") if unit == "token" else None
        return cls(unit, tokenizer, bool(facts.get("lowercase")), bool(facts.get("remove_stop_words")), bool(facts.get("punctuation", True)))


@dataclass
class Stream:
    """A corpus as numbers on disk. ``number`` maps what stands in the file to the vocabulary's index, -1 for what is not in it."""

    file: Path  # uint32, documents end to end
    lengths: np.ndarray  # [documents]
    names: list[str]  # [vocabulary] in the order of counts, then of the texts
    counts: np.ndarray  # [vocabulary]
    number: np.ndarray  # [numbers in the file] int64
    bytes: int  # UTF-8 bytes of the texts
    forgotten: int  # words dropped while reading since their dictionary was full
    rare: list[str]  # words that stand in the text and not in the vocabulary, a sample in order of appearance

    @property
    def units(self) -> int:
        """How many units there are, known or not."""
        return int(self.lengths.sum())

    def documents(self, block: int = _FLUSH) -> Iterator[list[np.ndarray]]:
        """Vocabulary indices of the documents [units], some documents at a time; a long one may come in parts only here and there whole."""
        position, batch, size = 0, [], 0
        for length in self.lengths:
            found = np.fromfile(self.file, np.uint32, count=int(length), offset=position * 4)
            batch.append(self.number[found] if len(self.number) else np.zeros(0, np.int64))
            position, size = position + int(length), size + int(length)
            if size >= block:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch


def write_stream(documents: Iterable[Document], units: Units, folder: Path, *, minimum_count: int, vocabulary_size: int | None, memory: int) -> Stream:
    """Read every document once, write its units as numbers, and make the vocabulary.

    The dictionary of words is kept under a quarter of ``memory`` by dropping the rarest when it is full; such words count as unknown up to there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = _Numbers(units, max(memory // 4 // _WORD_BYTES, 1000))
    lengths: list[int] = []
    waiting: list[np.ndarray] = []
    size = total_bytes = 0
    with (folder / "units.u32").open("wb") as out, progress("reading text (bytes)") as advance:
        for numbers, byte_count in writer.numbered(documents):
            waiting.append(numbers)
            lengths.append(len(numbers))
            total_bytes, size = total_bytes + byte_count, size + len(numbers)
            advance(byte_count)
            if size >= _FLUSH:
                _write(out, waiting, writer)
                waiting, size = [], 0
        _write(out, waiting, writer)
    names, counts, number = writer.vocabulary(minimum_count, vocabulary_size)
    return Stream(folder / "units.u32", np.array(lengths, np.int64), names, counts, number, total_bytes, writer.forgotten, writer.rare(number))


def _write(out: Any, waiting: list[np.ndarray], writer: _Numbers) -> None:
    if waiting:
        numbers = np.concatenate(waiting)
        writer.count(numbers)
        numbers.tofile(out)


class _Numbers:
    """Gives each unit a number as it appears: words by a dictionary, characters by code point, tokens by id."""

    def __init__(self, units: Units, most_words: int):
        self.units, self.most_words = units, most_words
        self.index: dict[str, int] = {}
        self.counts = np.zeros(0, np.int64)
        self.next = self.forgotten = 0
        self.floor = 1

    def numbered(self, documents: Iterable[Document]) -> Iterator[tuple[np.ndarray, int]]:
        """(numbers uint32 [units], UTF-8 bytes) of each document."""
        if self.units.unit == "token":
            for document, ids in encode_documents(self.units.tokenizer, documents, _BATCH_CHARACTERS):
                yield np.array(ids, np.uint32), len(document.text.encode("utf-8", "surrogatepass"))
            return
        for document in documents:
            size = len(document.text.encode("utf-8", "surrogatepass"))
            if self.units.unit == "character":
                yield code_points(document.text.lower() if self.units.lowercase else document.text).astype(np.uint32), size
                continue
            numbers = []
            for word in self.units.split(document.text):
                found = self.index.get(word)
                if found is None:
                    found = self.index[word] = self.next
                    self.next += 1
                numbers.append(found)
            yield np.array(numbers, np.uint32), size

    def count(self, numbers: np.ndarray) -> None:
        """Add to the counts; a full dictionary loses its rarest words."""
        found = np.bincount(numbers, minlength=max(self.next, len(self.counts)))
        found[: len(self.counts)] += self.counts
        self.counts = found
        while len(self.index) > self.most_words:
            kept = {word: number for word, number in self.index.items() if self.counts[number] > self.floor}
            self.forgotten += len(self.index) - len(kept)
            self.index = kept
            self.floor += 1

    def vocabulary(self, minimum_count: int, size: int | None) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Names and counts, the most frequent first (ties by text), and the map from numbers to places."""
        if self.units.unit == "word":
            pairs = [(name, number) for name, number in self.index.items() if self.counts[number] >= minimum_count]
        else:
            name_of = chr if self.units.unit == "character" else self.units.token_name
            pairs = [(name_of(int(number)), int(number)) for number in np.flatnonzero(self.counts >= max(minimum_count, 1))]
        pairs.sort(key=lambda pair: (-self.counts[pair[1]], pair[0]))
        pairs = pairs[:size]
        number = np.full(len(self.counts), -1, np.int64)
        number[[found for _, found in pairs]] = np.arange(len(pairs))
        return [name for name, _ in pairs], self.counts[[found for _, found in pairs]] if pairs else np.zeros(0, np.int64), number

    def rare(self, number: np.ndarray, most: int = 50_000) -> list[str]:
        """Words left out of the vocabulary, as they came."""
        return [name for name, found in self.index.items() if number[found] < 0][:most]
