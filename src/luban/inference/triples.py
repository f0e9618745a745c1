"""Entities of a text and the relations between them, in one pass: tags give the entities, scores of pairs the relations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from luban.inference.padding import padded_batches
from luban.inference.spans import collect, decode, read_items, rules_of, settings_of
from luban.models.base import Model
from luban.models.own_heads import parted
from luban.tokenizer.tokenizer import Tokenizer


def extract(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """``{"spans": […], "triples": [{"head": span, "tail": span, "label", "score"}]}`` for each item, in characters of its text.

    A pair of entities has every relation whose score is above 0. Entities that no window shows together have none.
    """
    settings = settings_of(model)
    tags = list(settings["tags"])
    readings = read_items(tokenizer, items, settings)
    windows = [window for reading in readings for window in reading.windows]
    shown = [units for reading in readings for units in reading.shown]
    tag_scores: dict[int, np.ndarray] = {}
    pair_scores: dict[int, np.ndarray] = {}
    first_of = np.cumsum([0, *(len(reading.windows) for reading in readings)])
    for batch in padded_batches(windows, tokenizer.pad_id, rows, model.device):
        named, pairs = parted(batch.scores(model).float(), len(tags))
        named = named.log_softmax(-1).cpu().numpy()
        for row, number in enumerate(batch.numbers):
            tag_scores[number] = named[row]
            # Only places where a word begins can have a relation: the rest of the square is not kept.
            places = [place for _, place in shown[number]]
            pair_scores[number] = pairs[row][places][:, places].cpu().numpy()  # [words, words, relations]
    rules = rules_of(model.head, tags)
    found = []
    for number, (reading, item) in enumerate(zip(readings, items, strict=True)):
        first = int(first_of[number])
        values = collect(reading, first, tag_scores) if reading.places else np.zeros((0, len(tags)))
        spans = decode(values, tags, reading.units, item["text"], rules)
        triples = _triples(spans, reading.shown, [pair_scores[first + window] for window in range(len(reading.windows))], model.head.labels)
        plain = [{key: value for key, value in span.items() if key not in ("first", "last")} for span in spans]
        found.append({"spans": plain, "triples": [{"head": plain[head], "tail": plain[tail], "label": label, "score": score} for head, tail, label, score in triples]})
    return found


def _triples(spans: list[dict[str, Any]], shown: list[list[tuple[int, int]]], scores: list[np.ndarray], labels: Sequence[str]) -> list[tuple[int, int, str, float]]:
    """(head, tail, label, probability) of every related pair; of several windows that show it the surest counts."""
    best: dict[tuple[int, int, int], float] = {}
    for units, pairs in zip(shown, scores, strict=True):
        row_of = {unit: row for row, (unit, _) in enumerate(units)}
        seen = [(number, row_of[span["first"]]) for number, span in enumerate(spans) if span["first"] in row_of]
        for head, row in seen:
            for tail, column in seen:
                if head != tail:
                    for relation in np.flatnonzero(pairs[row, column] > 0):
                        key = (head, tail, int(relation))
                        best[key] = max(best.get(key, 0.0), float(pairs[row, column, relation]))
    return [(head, tail, labels[relation], float(1 / (1 + np.exp(-score)))) for (head, tail, relation), score in sorted(best.items())]
