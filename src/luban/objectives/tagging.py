"""Labelled spans of a text, written as tags on its words: named entities and the like.

A word's tag is read at its first token, as BERT does (arXiv:1810.04805), or every token has one (``subwords: all``). Long texts are read in
overlapping windows; each word is scored once, in the window that shows most around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from luban.examples.reading import ExampleSet
from luban.examples.tasks import TaggedText
from luban.foundation.errors import DataError
from luban.inference.spans import Reading, read_texts
from luban.models.base import Model
from luban.models.heads import Head
from luban.objectives.base import DataRequest, Term
from luban.objectives.config import TaggingConfig
from luban.objectives.losses import wide
from luban.objectives.windowed import WindowedObjective, window_stride
from luban.tokenizer.alignment import Aligned, align_spans, tag_names
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch, Row


class Tagging(WindowedObjective):
    """Cross-entropy over the tags of words."""

    config: TaggingConfig
    name = reads = "tagging"

    def make_head(self, found: ExampleSet, data: DataRequest) -> Head:
        self.labels = span_labels(found)
        tags = tag_names(self.labels, self.config.scheme)
        self.numbers = {tag: number for number, tag in enumerate(tags)}
        settings = {"maximum_tokens": data.sequence_length, "stride": window_stride(data.sequence_length), "scheme": self.config.scheme, "subwords": self.config.subwords}
        return Head("token", self.name, tuple(tags), settings=settings)

    def metric_labels(self, head: Head) -> list[str]:
        return list(dict.fromkeys(tag[2:] for tag in head.labels if tag[1:2] == "-"))

    def rows_of(self, examples: Sequence[TaggedText], tokenizer: Tokenizer) -> list[Row]:
        readings = read_texts(tokenizer, [example.text for example in examples], [example.words for example in examples], self.head.settings)
        return [row for example, reading in zip(examples, readings, strict=True) for row in self._rows(example, reading)]

    def _rows(self, example: TaggedText, reading: Reading) -> list[Row]:
        if not reading.places:
            self.refuse("a text without a word")
            return []
        targets, weights = tag_rows(reading, self.tags_of(example, reading).tags, self.numbers)
        return [
            Row(np.array(window.ids), weight, target, np.array(window.types), source=example.source)
            for window, target, weight in zip(reading.windows, targets, weights, strict=True)
        ]

    def tags_of(self, example: TaggedText, reading: Reading) -> Aligned:
        """A tag for each unit; "" where the label is unknown. What cannot be written as it is given is counted."""
        aligned = align_spans(reading.units, example.spans, scheme=self.config.scheme)
        self.notice("spans begin or end inside a word or token: all of it is labelled", len(aligned.misaligned))
        self.notice("spans overlap others, and are not learned", len(aligned.overlapping))
        self.notice("spans hold no word, and are not learned", len(aligned.lost))
        strange = [tag for tag in aligned.tags if tag not in self.numbers]
        self.notice("words have a label that no training example has: no loss is taken on them", len(strange))
        return replace(aligned, tags=[tag if tag in self.numbers else "" for tag in aligned.tags])

    def item_of(self, example: TaggedText) -> dict[str, Any]:
        return {"text": example.text, "words": example.words}

    def outputs(self, model: Model, batch: Batch) -> torch.Tensor:
        """[scored, tags]"""
        scores = model.scores(model(batch.inputs, **batch.context()), batch.inputs, batch.segments, batch.extra)
        return wide(scores[batch.weights != 0])

    def terms_of(self, outputs: torch.Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        scored = batch.weights != 0
        nats = functional.cross_entropy(outputs, batch.targets[scored], reduction="none", label_smoothing=self.config.label_smoothing)
        return {"loss": Term((nats * batch.weights[scored]).sum())}

    def unit_weights(self, batch: Batch) -> torch.Tensor:
        return batch.weights[batch.weights != 0]


def span_labels(found: ExampleSet) -> list[str]:
    """The labels of the spans, in the order in which the data lists them. Raises DataError where there is no span."""
    seen = {span.label for example in found.examples for span in example.spans}
    if not seen:
        raise DataError("there is no span to learn in {files}", "every text is without one", "name the column of the spans or tags in mapping", files=", ".join(found.files))
    return [label for label in found.labels if label in seen] + sorted(seen - set(found.labels))


def tag_rows(reading: Reading, tags: Sequence[str], numbers: dict[str, int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Targets and weights of each window's tokens: one where a unit is judged there and has a tag, none elsewhere."""
    targets = [np.zeros(len(window.ids), np.int64) for window in reading.windows]
    weights = [np.zeros(len(window.ids), np.float32) for window in reading.windows]
    for (window, place), tag in zip(reading.places, tags, strict=True):
        if tag:
            targets[window][place], weights[window][place] = numbers[tag], 1.0
    return targets, weights
