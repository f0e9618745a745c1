"""n-gram language models of texts: fitting, scoring, predicting, sampling. The tables are models/ngram_tables.py's.

A word model pays for a word it does not know twice: the price of ``<unk>``, and its spelling under a character model of the rare words
(with an end, so it is a distribution over all words). So its bits are those of a code that can write every word; spaces between words
are not paid for. Models over characters and over the tokens of a byte-level tokenizer pay for every byte.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from luban.corpus.documents import Document
from luban.fitting.ngram_counting import NgramCounter
from luban.fitting.units import Stream, Units
from luban.foundation.errors import DataError
from luban.metrics.language import DocumentScores
from luban.models.ngram import UNICODE
from luban.models.ngram_tables import END, FIRST_UNIT, START, UNKNOWN, NgramTables, read_config

SPELLING_ORDER = 4


def fit_ngram(
    stream: Stream, units: Units, order: int, minimum_counts: Sequence[int], folder: Path, work: Path, memory: int
) -> tuple[NgramModel, list[dict[str, int]]]:
    """Fit tables to a stream and write the model to ``folder``; ``work`` takes files that are removed again.

    ``minimum_counts``: how often a k-gram of each order must occur to stay; the last holds for all longer ones.
    Returns the model and how many k-grams each order saw and kept. Raises DataError when there is no text.
    """
    if not stream.units:
        raise DataError("there is no text to fit", "", "look at what the sources hold: luban curate SOURCES")
    minimums = [*minimum_counts, *[minimum_counts[-1]] * order][:order] if minimum_counts else [1] * order
    word = units.unit == "word"
    names = [UNKNOWN, *(name for name in stream.names if name != UNKNOWN)] if word else stream.names
    shift = FIRST_UNIT + (1 if word else 0)
    number = {name: index for index, name in enumerate(names)}
    symbol = (
        np.array([number[name] + FIRST_UNIT for name in stream.names], np.int64) if word and UNKNOWN in stream.names else np.arange(len(stream.names)) + shift
    )
    radix = FIRST_UNIT + len(names) + 1
    outcomes = {"character": UNICODE, "word": len(names), "token": units.tokenizer.vocabulary_size if units.tokenizer else 0}[units.unit] + 1
    work.mkdir(parents=True, exist_ok=True)
    _write_symbols(stream, symbol, FIRST_UNIT if word else radix - 1, order, work / "symbols.u32")
    counter = NgramCounter(work / "symbols.u32", order, radix, work / "tables", memory)
    counter.fit()
    folder.mkdir(parents=True, exist_ok=True)
    sizes = counter.write(folder, minimums)
    shutil.rmtree(work / "tables")
    (work / "symbols.u32").unlink()
    empty = [np.zeros(1, np.int64)] * order
    tables = NgramTables(empty, empty, empty, units=names, outcomes=outcomes, facts=units.save(folder) | {"minimum_counts": minimums, "runs": counter.runs})
    _save_without_arrays(tables, folder)
    if word:
        _fit_spelling(stream, folder / "spelling", work, memory)
    return NgramModel.load(folder), sizes


def _save_without_arrays(tables: NgramTables, folder: Path) -> None:
    """Vocabulary and config beside tables that are already written."""
    loaded = [
        [np.load(folder / f"{name}-{k}.npy", mmap_mode="r", allow_pickle=False) for k in range(1, tables.order + 1)] for name in ("keys", "direct", "backoff")
    ]
    NgramTables(*loaded, units=tables.units, outcomes=tables.outcomes, facts=tables.facts).save(folder)


def _write_symbols(stream: Stream, symbol: np.ndarray, unknown: int, order: int, file: Path) -> None:
    """Every document between its start symbols and its end, as uint32."""
    starts, end = np.full(order - 1, START, np.uint32), np.array([END], np.uint32)
    table = np.append(symbol, unknown).astype(np.uint32)  # index -1 is the unknown one
    with file.open("wb") as out:
        for documents in stream.documents():
            np.concatenate([part for document in documents for part in (starts, table[document], end)]).tofile(out)


def _fit_spelling(stream: Stream, folder: Path, work: Path, memory: int) -> None:
    """A character model of the words that became unknown; of the once-seen, or of all, where none did."""
    words = stream.rare or [name for name, count in zip(stream.names, stream.counts, strict=True) if count == 1] or stream.names
    words = [word for word in words if word][:50_000] or ["a"]
    letters = sorted(set("".join(words)))
    symbol_of = {letter: index + FIRST_UNIT for index, letter in enumerate(letters)}
    rows = [symbol for word in words for symbol in (*[START] * (SPELLING_ORDER - 1), *(symbol_of[letter] for letter in word), END)]
    np.array(rows, np.uint32).tofile(work / "spelling.u32")
    counter = NgramCounter(work / "spelling.u32", SPELLING_ORDER, FIRST_UNIT + len(letters) + 1, work / "spelling", memory)
    counter.fit()
    folder.mkdir(exist_ok=True)
    counter.write(folder, [1] * SPELLING_ORDER)
    shutil.rmtree(work / "spelling")
    (work / "spelling.u32").unlink()
    empty = [np.zeros(1, np.int64)] * SPELLING_ORDER
    _save_without_arrays(NgramTables(empty, empty, empty, units=letters, outcomes=UNICODE + 1, facts={"unit": "character"}), folder)


class NgramModel:
    """A fitted n-gram model that reads and writes texts."""

    def __init__(self, tables: NgramTables, units: Units, spelling: NgramTables | None = None):
        self.tables, self.units, self.spelling = tables, units, spelling

    @classmethod
    def load(cls, folder: Path) -> NgramModel:
        """Open a folder of `luban fit`. Raises DataError when it is damaged or of another kind."""
        folder = Path(folder)
        tables = NgramTables.load(folder)
        spelling = NgramTables.load(folder / "spelling") if tables.facts.get("unit") == "word" else None
        return cls(tables, Units.load(folder, read_config(folder, "luban-ngram")), spelling)

    def log_probabilities(self, text: str) -> list[tuple[str, float]]:
        """Each unit of a text, then ``</s>``, with its natural log-probability given those before it (spelling included)."""
        names = self.units.split(text)
        symbols = self.tables.symbols(names)
        nats = -np.log(self.tables.probabilities(symbols))
        spelled = [self._spelling_nats(name) for name in names]
        return [(name, -float(cost) - extra) for name, cost, extra in zip([*names, "</s>"], nats, [*spelled, 0.0], strict=True)]

    def _spelling_nats(self, name: str) -> float:
        if self.spelling is None or name in self.tables.symbol_of:
            return 0.0
        return self.spelling.nats(list(name))[0]

    def score(self, texts: Iterable[str | Document]) -> tuple[DocumentScores, int]:
        """What each document costs, its end included, and how many units were not in the vocabulary."""
        nats, counts, sizes, unknown = [], [], [], 0
        spelled: dict[str, float] = {}
        for item in texts:
            text = item if isinstance(item, str) else item.text
            names = self.units.split(text)
            cost, missing = self.tables.nats(names)
            if missing and self.spelling is not None:
                for name in names:
                    if name not in self.tables.symbol_of:
                        if name not in spelled:
                            spelled[name] = self._spelling_nats(name)
                        cost += spelled[name]
            unknown += missing
            nats.append(cost)
            counts.append(len(names) + 1)
            sizes.append(len(text.encode("utf-8", "surrogatepass")))
        return DocumentScores(np.array(nats), np.array(counts), np.array(sizes)), unknown

    def perplexity(self, texts: Iterable[str | Document]) -> float:
        """Of a unit (the end counts as one). Never infinite: every unit has some probability."""
        scores, _ = self.score(texts)
        return math.exp(scores.nats.sum() / max(scores.tokens.sum(), 1))

    def bits_per_byte(self, texts: Iterable[str | Document]) -> float:
        """Bits for a byte of UTF-8; a word model does not pay for the spaces between words."""
        scores, _ = self.score(texts)
        return float(scores.nats.sum() / math.log(2) / max(scores.bytes.sum(), 1))

    def next_words(self, prompt: str, count: int = 5) -> list[tuple[str, float]]:
        """The likeliest units after a prompt, with probabilities; the prompt begins a document."""
        return self.tables.next_units(self.units.split(prompt), count)

    def sample(self, maximum: int = 100, *, seed: int = 0, temperature: float = 1.0, prompt: str = "") -> str:
        """A text drawn from the model, without the prompt: until the document's end or ``maximum`` units."""
        return self.units.join(self.tables.sample(maximum, seed=seed, temperature=temperature, history=self.units.split(prompt)))
