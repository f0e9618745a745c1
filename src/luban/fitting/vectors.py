"""Word vectors of a stream of units: the work of word2vec.py and glove.py, and what the report shows of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luban.corpus.readers import open_stream
from luban.examples.segmentation import stop_words
from luban.fitting.config import FitConfig
from luban.fitting.glove import GloVeSettings, count_cooccurrences, train_glove
from luban.fitting.units import Stream
from luban.fitting.word2vec import Word2VecSettings, train_word2vec
from luban.foundation.console import say
from luban.foundation.errors import DataError

_SHOWN = 6  # words of each script


def fit_vectors(config: FitConfig, stream: Stream, folder: Path, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Vectors [vocabulary, dimension] float32, and facts for the report. ``folder`` takes files that are not needed afterwards."""
    options = config.vectors
    ids = _write_ids(stream, folder / "ids.i32")
    if config.method == "glove":
        settings = GloVeSettings(
            options.dimension, _auto(options.window, 10), _auto(options.epochs, 15), _auto(options.learning_rate, 0.15), options.maximum_count
        )
        entries = count_cooccurrences(ids, len(stream.names), settings.window, folder, config.maximum_memory)
        if not entries:
            raise DataError("no two words stand near each other", "each document has one known word at most", "give longer texts, or lower minimum_count")
        say("  {entries} pairs of words that occur together", entries=entries)
        vectors, losses = train_glove(folder, entries, len(stream.names), settings, seed)
        return vectors, {"losses": losses, "entries": entries}
    rate = 0.05 if options.architecture == "bag_of_words" else 0.025
    settings_word2vec = Word2VecSettings(
        options.architecture,
        options.dimension,
        _auto(options.window, 5),
        options.negatives,
        _auto(options.epochs, 5),
        _auto(options.learning_rate, rate),
        options.subsample,
    )
    vectors, losses = train_word2vec(ids, stream.counts, settings_word2vec, seed)
    return vectors, {"losses": losses, "architecture": options.architecture}


def _auto(value: Any, otherwise: Any) -> Any:
    return otherwise if value == "auto" else value


def _write_ids(stream: Stream, file: Path) -> np.ndarray:
    """The known words of all documents with -1 between them, as a memory map of int32; words outside the vocabulary are passed over."""
    end = np.array([-1], np.int32)
    with file.open("wb") as out:
        for documents in stream.documents():
            for document in documents:
                document[document >= 0].astype(np.int32).tofile(out)
                end.tofile(out)
    return np.memmap(file, np.int32, "r")


def automatic_words(names: Sequence[str], count: int = _SHOWN) -> list[str]:
    """Frequent words of Latin and of Chinese script to show the neighbours of; no stop words, no single letters."""
    stop = stop_words()
    latin = [name for name in names if name.isalpha() and name.isascii() and len(name) > 2 and name.lower() not in stop]
    han = [name for name in names if len(name) > 1 and all("\u4e00" <= letter <= "\u9fff" for letter in name) and name not in stop]
    chosen = latin[20 : 20 + count] if len(latin) > 40 else latin[:count]
    return [*chosen, *(han[20 : 20 + count] if len(han) > 40 else han[:count])]


def read_pairs(path: Path, lowercase: bool) -> list[tuple[str, str, float]]:
    """Pairs of words with a figure, one a line, between tabs, commas or spaces; a first line without a figure is a heading."""
    found: list[tuple[str, str, float]] = []
    with open_stream(path) as stream:
        for number, line in enumerate(stream.read().decode("utf-8-sig", "replace").split("\n"), 1):
            text = line.strip()
            parts = [part.strip() for part in (text.split("\t") if "\t" in text else text.split(",") if "," in text else text.split())]
            if not text or text.startswith("#"):
                continue
            try:
                first, second, figure = parts[0], parts[1], float(parts[2])
            except (IndexError, ValueError):
                if number == 1:
                    continue
                raise DataError("{path}:{line}: two words and a figure are needed, and {text!r} is there", path=path, line=number, text=text[:80]) from None
            found.append((first.lower(), second.lower(), figure) if lowercase else (first, second, figure))
    if not found:
        raise DataError("{path} holds no pairs of words", "", "write two words and a figure a line", path=path)
    return found
