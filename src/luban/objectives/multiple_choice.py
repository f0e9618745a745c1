"""The right one of several answers: all answers of a question form one group, and the loss is that of choosing among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from luban.examples.reading import ExampleSet
from luban.examples.tasks import Choice
from luban.foundation.errors import ConfigError
from luban.inference.choices import frame_choices, frame_continuation, likelihoods
from luban.models.base import Model
from luban.models.heads import Head
from luban.objectives.base import DataRequest, Term
from luban.objectives.config import MultipleChoiceConfig
from luban.objectives.losses import wide
from luban.objectives.tasks import TaskObjective
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch, Row
from luban.tokens.units import UnitLoader

NO_CHOICE = -1e9  # the score of an empty row: its share of a softmax is 0


class MultipleChoice(TaskObjective):
    """Cross-entropy over the answers of a question, by a head's score of each or by its likelihood after the prompt.

    The head is "choice" (transformers' ForMultipleChoice), on a decoder "sequence" with one output (ForSequenceClassification);
    likelihood leaves the language model as it is, so that it can be asked before any training.
    """

    name, unit, scope, reads = "multiple_choice", "group", "group", "choice"
    config: MultipleChoiceConfig

    # ---- examples to batches -----------------------------------------------------------------------------------------

    def make_head(self, found: ExampleSet, data: DataRequest) -> Head:
        decoder = data.shape.kind == "decoder"
        scoring = self.config.scoring if self.config.scoring != "auto" else "likelihood" if decoder else "head"
        settings: dict[str, Any] = {"maximum_tokens": data.sequence_length}
        if scoring == "likelihood":
            if not decoder:
                raise ConfigError("objective.scoring: {architecture} gives no likelihood of a continuation", "it is no decoder", "use scoring: head", architecture=data.shape.architecture)
            return Head("language_model", "multiple_choice", settings={**settings, "length": self.config.length})
        return Head("choice", "multiple_choice", settings=settings) if data.shape.kind == "encoder" else Head("sequence", "multiple_choice", ("right",), settings=settings)

    @property
    def by_likelihood(self) -> bool:
        return self.head.structure == "language_model"

    def unit_of(self, example: Choice, tokenizer: Tokenizer) -> list[Row] | None:
        if example.answer is None:
            self.refuse("it has no answer")
            return None
        make = self._continuations if self.by_likelihood else self._pairs
        rows = make(example, tokenizer)
        for row in rows:
            row.extra["answer"], row.source = np.int64(example.answer), example.source
        return rows

    def _pairs(self, example: Choice, tokenizer: Tokenizer) -> list[Row]:
        framed = frame_choices(tokenizer, example.prompt, example.choices, self.head.settings)
        self.notice_cut(framed)
        return [Row(np.array(one.ids), np.full(1, float(not number), np.float32), types=np.array(one.types)) for number, one in enumerate(framed)]

    def _continuations(self, example: Choice, tokenizer: Tokenizer) -> list[Row]:
        rows = []
        for choice in example.choices:
            ids, first, length = frame_continuation(tokenizer, example.prompt, choice, self.head.settings)
            weights = np.zeros(len(ids) - 1, np.float32)
            weights[first - 1 :] = 1.0
            rows.append(Row(np.array(ids[:-1]), weights, targets=np.array(ids[1:]), extra={"length": np.float32(length)}))
        return rows

    def units(self, examples: Sequence[Choice], tokenizer: Tokenizer) -> list[list[Row]]:
        """Every question's rows, padded with empty rows to the most choices that one has."""
        found = super().units(examples, tokenizer)
        most = max((len(unit) for unit in found), default=0)
        return [[*unit, *([_empty(unit[0])] * (most - len(unit)))] for unit in found]

    def loader(self, units: list[list[Row]], data: DataRequest, seed: int, shuffle: bool) -> UnitLoader:
        self.group = len(units[0])
        return super().loader(units, data, seed, shuffle)

    def item_of(self, example: Choice) -> dict[str, Any]:
        return {"prompt": example.prompt, "choices": example.choices}

    # ---- the loss ----------------------------------------------------------------------------------------------------

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"loss": len(batch.inputs) / batch.group}

    def outputs(self, model: Model, batch: Batch) -> Tensor:
        """[questions, choices] scores, very low where there is no choice."""
        hidden = model(batch.inputs, **batch.context())
        if self.by_likelihood:
            scores = likelihoods(model, hidden, batch.targets, batch.weights > 0) / batch.extra["length"]
        else:
            scores = wide(model.scores(hidden, batch.inputs, batch.segments, batch.extra))
        filled = (batch.segments >= 0).any(1).view(-1, batch.group)
        return scores.view(-1, batch.group).masked_fill(~filled, NO_CHOICE)

    def terms_of(self, outputs: Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        return {"loss": Term(functional.cross_entropy(outputs, batch.extra["answer"][:: batch.group], reduction="sum"))}

    def unit_weights(self, batch: Batch) -> Tensor:
        """[questions]"""
        return torch.ones(len(batch.inputs) // batch.group, device=batch.inputs.device)


def _empty(like: Row) -> Row:
    """A row without tokens that fits beside another."""
    return Row(np.zeros(0, np.int64), np.zeros(1, np.float32), targets=None if like.targets is None else np.zeros(0, np.int64), extra=like.extra, source=like.source)
