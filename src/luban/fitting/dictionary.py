"""The baseline of tagging: a dictionary of the training spans, matched longest first."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luban.examples.tasks import Span, TaggedText
from luban.foundation.artifacts import write_bytes, write_json
from luban.foundation.errors import DataError
from luban.foundation.messages import t
from luban.models.ngram_tables import FORMAT, read_config

MODEL_TYPE = "luban-linear"
_DENSE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7a3]")


class DictionaryTagger:
    """Tags the words of a dictionary wherever they stand: the longest match from left to right, its most frequent label."""

    def __init__(self, entries: dict[str, str]):
        self.entries = entries
        self._lengths: dict[str, list[int]] = {}
        for entry in entries:
            self._lengths.setdefault(entry[:1], []).append(len(entry))
        self._lengths = {first: sorted(set(lengths), reverse=True) for first, lengths in self._lengths.items()}

    def matches(self, text: str) -> list[tuple[int, int, str]]:
        """(start, end, entry) of the matches; none begins or ends inside a word of letters with spaces around it."""
        found, place = [], 0
        while place < len(text):
            lengths = self._lengths.get(text[place], ())
            length = next((size for size in lengths if text[place : place + size] in self.entries and _is_whole(text, place, place + size)), 0)
            if length:
                found.append((place, place + length, text[place : place + length]))
            place += length or 1
        return found

    def predict(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """``{"spans": [{"start", "end", "label"}]}`` of each text."""
        return [{"spans": [{"start": start, "end": end, "label": self.entries[entry]} for start, end, entry in self.matches(text)]} for text in texts]

    def save(self, folder: Path) -> None:
        """Write config.json and entries.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "entries.json", json.dumps(self.entries).encode())
        write_json(folder / "config.json", {"model_type": MODEL_TYPE, "format": FORMAT, "task": "tagging", "kind": "dictionary"})

    @classmethod
    def load(cls, folder: Path) -> DictionaryTagger:
        """Open a folder that `save` wrote. Raises DataError for what is missing or damaged."""
        folder = Path(folder)
        read_config(folder, MODEL_TYPE)
        try:
            entries = json.loads((folder / "entries.json").read_bytes())
            if not isinstance(entries, dict) or not all(isinstance(label, str) for label in entries.values()):
                raise ValueError(t("its dictionary does not map texts to labels"))
        except (OSError, ValueError) as error:
            raise DataError(
                "{path} is no linear model that can be read: {error}", "", "restore the folder, or fit the model again", path=folder, error=error
            ) from None
        return cls(entries)


def fit_dictionary(examples: Sequence[TaggedText]) -> DictionaryTagger:
    """Every text of a span with its most frequent label, where it has a span more often than none. Raises DataError without a span."""
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        for span in example.spans:
            if example.text[span.start : span.end].strip():
                labels[example.text[span.start : span.end]][span.label] += 1
    if not labels:
        raise DataError("the examples hold no span to learn from", "", "look at the data's columns (mapping)")
    everything = DictionaryTagger({entry: min(counts, key=lambda name: (-counts[name], name)) for entry, counts in labels.items()})
    seen, tagged = Counter(), Counter()
    for example in examples:
        spans = {(span.start, span.end) for span in example.spans}
        for start, end, entry in everything.matches(example.text):
            seen[entry] += 1
            tagged[entry] += (start, end) in spans
    return DictionaryTagger({entry: label for entry, label in everything.entries.items() if tagged[entry] * 2 > seen[entry]})


def spans_of(answer: dict[str, Any]) -> list[Span]:
    """The spans of a prediction as plain data."""
    return [Span(span["start"], span["end"], span["label"]) for span in answer["spans"]]


def _is_whole(text: str, start: int, end: int) -> bool:
    return not (_joined(text, start) or _joined(text, end))


def _joined(text: str, place: int) -> bool:
    """True where a cut would part a word that is written with spaces around it."""
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    return before.isalnum() and after.isalnum() and not _DENSE.match(before) and not _DENSE.match(after)
