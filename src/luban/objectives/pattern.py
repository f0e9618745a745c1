"""Labels as words in a pattern: a language model classifies with what it knows, with no example or a handful (arXiv:2001.07676, 2009.07118)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from luban.examples.reading import ExampleSet
from luban.examples.tasks import LabeledText
from luban.foundation.errors import ConfigError, DataError
from luban.inference.patterns import Asker, asked, label_scores
from luban.models.base import Model
from luban.models.heads import Head
from luban.objectives.base import DataRequest, Term
from luban.objectives.config import PatternConfig
from luban.objectives.losses import wide
from luban.objectives.tasks import TaskObjective, require_labels
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch, Row


class Pattern(TaskObjective):
    """Cross-entropy over the labels, whose scores are those of their words. The language model's output stays as it is."""

    name = "pattern"
    reads = measured_as = "classification"
    kinds = ("decoder", "encoder")
    config: PatternConfig

    @property
    def learns(self) -> bool:
        return not self.config.zero_shot

    def read(self, data: DataRequest) -> tuple[ExampleSet, list[Any]]:
        found, held_out = super().read(data)
        if self.config.zero_shot and not data.validation and data.fold is None:  # nothing is learned, so that nothing need be kept apart
            held_out = found.examples = [*found.examples, *held_out]
        return found, held_out

    def make_head(self, found: ExampleSet, data: DataRequest) -> Head:
        require_labels(found)
        labels = list(self.config.words) or found.labels
        if missing := [label for label in found.labels if label not in labels]:
            raise ConfigError(
                "objective.words: the label {label!r} has no word", "the data has: {known}", "give each label a word", label=missing[0],
                known=", ".join(found.labels),
            )  # fmt: skip
        if len(labels) < 2:
            raise DataError(
                "there is only one label to learn: {labels}", "a model that always gives it is right",
                "add examples of other labels, or name the column of the label in mapping", labels=", ".join(labels),
            )  # fmt: skip
        settings = {
            "maximum_tokens": data.sequence_length, "pattern": self.config.pattern, "words": self.config.words, "normalize": self.config.normalize, "calibrate": self.config.calibrate,
        }  # fmt: skip
        self.asker = Asker(data.tokenizer, labels, settings, data.shape.kind)
        self.group = len(self.asker.groups)
        self.numbers = {label: number for number, label in enumerate(labels)}
        return Head("language_model", self.name, tuple(labels), settings=settings)

    def unit_of(self, example: LabeledText, tokenizer: Tokenizer) -> list[Row] | None:
        if example.label is None:
            self.refuse("it has no label")
            return None
        if str(example.label) not in self.numbers:
            self.refuse("a label that no training example has")
            return None
        questions = self.asker.rows(example.text, example.pair)
        self.notice_cut([questions[0].framed])
        places, words = (values.numpy() for values in asked(questions, self.asker.most))
        label = np.int64(self.numbers[str(example.label)])
        # The unit is the example: its first row carries its weight.
        return [
            Row(
                np.array(question.framed.ids), np.array([float(number == 0)], np.float32), types=np.array(question.framed.types),
                extra={"places": places[number], "words": words[number], "labels": label}, source=example.source,
            )  # fmt: skip
            for number, question in enumerate(questions)
        ]

    def item_of(self, example: LabeledText) -> dict[str, Any]:
        return {"text": example.text, "pair": example.pair}

    def outputs(self, model: Model, batch: Batch) -> torch.Tensor:
        """[examples, labels] log-probabilities of the labels' words."""
        hidden = model(batch.inputs, **batch.context())  # [rows, seq, dim]
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        scores = label_scores(wide(model.logits(hidden[rows, batch.extra["places"]])), batch.extra["words"], self.config.normalize)  # [rows, labels]
        return scores.view(-1, batch.group, scores.shape[-1]).sum(1)

    def terms(self, model: Model, batch: Batch) -> dict[str, Term]:
        return self.terms_of(self.outputs(model, batch), model, batch)

    def terms_of(self, outputs: torch.Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        nats = functional.cross_entropy(outputs, batch.extra["labels"][:: batch.group], reduction="none")
        return {"loss": Term((nats * self.unit_weights(batch)).sum())}

    def unit_weights(self, batch: Batch) -> torch.Tensor:
        return batch.weights[:: batch.group, 0]
