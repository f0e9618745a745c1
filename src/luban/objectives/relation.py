"""The relation between two marked stretches of a text ("Matching the Blanks", arXiv:1906.03158)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from luban.examples.reading import ExampleSet
from luban.examples.tasks import RelationText
from luban.foundation.errors import DataError
from luban.inference.relations import mark
from luban.models.base import Model
from luban.models.heads import Head
from luban.objectives.base import DataRequest, Term
from luban.objectives.config import RelationConfig
from luban.objectives.losses import wide
from luban.objectives.tasks import require_labels
from luban.objectives.windowed import WindowedObjective
from luban.tokenizer.special import ENTITY_MARKERS, with_entity_markers
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch, Row


class Relation(WindowedObjective):
    """Cross-entropy over the relations, read from the states of the two opening markers or from the first token."""

    config: RelationConfig
    name = reads = "relation"

    def adapt_tokenizer(self, tokenizer: Tokenizer) -> Tokenizer:
        return with_entity_markers(tokenizer)[0]

    def make_head(self, found: ExampleSet, data: DataRequest) -> Head:
        require_labels(found)
        if len(found.labels) < 2:
            raise DataError("there is only one label to learn: {labels}", "a model that always gives it is right", "add examples of other labels, or name the column of the label in mapping", labels=", ".join(map(str, found.labels)))
        labels = tuple(map(str, found.labels))
        self.numbers = {label: number for number, label in enumerate(labels)}
        typed = self.config.entity_types and any(_type(span.label) for example in found.examples for span in (example.head, example.tail))
        # A decoder's opening markers have not seen the entities: its own head reads the last token, which has.
        pooling = "first" if data.shape.kind == "decoder" else self.config.pooling
        settings = {"maximum_tokens": data.sequence_length, "pooling": pooling, "markers": list(ENTITY_MARKERS), "entity_types": typed}
        return Head("sequence", self.name, labels, "single_label", settings)

    def rows_of(self, examples: list[RelationText], tokenizer: Tokenizer) -> list[Row]:
        return [row for example in examples if (row := self._row(example, tokenizer)) is not None]

    def _row(self, example: RelationText, tokenizer: Tokenizer) -> Row | None:
        if example.label is None:
            self.refuse("it has no label")
            return None
        if str(example.label) not in self.numbers:
            self.refuse("a label that no training example has")
            return None
        head, tail = ((span.start, span.end, _type(span.label)) for span in (example.head, example.tail))
        marked = mark(tokenizer, example.text, head, tail, self.head.settings)
        self.notice("texts are cut around their entities", int(marked.framed.truncated > 0))
        self.notice("entities do not fit whole into sequence_length, and are seen in part", int(marked.cut))
        self.notice("entities begin or end inside a token: all of it is marked", marked.misaligned)
        extra = {"labels": np.int64(self.numbers[str(example.label)]), "markers": np.array(marked.markers, np.int64)}
        return Row(np.array(marked.framed.ids), np.ones(1, np.float32), types=np.array(marked.framed.types), extra=extra, source=example.source)

    def item_of(self, example: RelationText) -> dict[str, Any]:
        return {"text": example.text, **{name: {"start": span.start, "end": span.end, "label": _type(span.label)} for name, span in (("head", example.head), ("tail", example.tail))}}

    def outputs(self, model: Model, batch: Batch) -> torch.Tensor:
        """[rows, labels]"""
        return wide(model.scores(model(batch.inputs, **batch.context()), batch.inputs, batch.segments, batch.extra))

    def terms_of(self, outputs: torch.Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        nats = functional.cross_entropy(outputs, batch.extra["labels"], reduction="none", label_smoothing=self.config.label_smoothing)
        return {"loss": Term((nats * batch.weights[:, 0]).sum())}


def _type(label: str) -> str:
    """An entity's type; "" for names that only say which of the two it is."""
    return "" if label.lower() in ("", "head", "tail", "e1", "e2", "entity", "subj", "obj") else label
