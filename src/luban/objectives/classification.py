"""A label, any number of labels, or a number for a text or a pair of texts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from luban.examples.reading import ExampleSet
from luban.examples.tasks import LabeledText
from luban.foundation.errors import DataError
from luban.inference.labels import frame_text
from luban.models.base import Model
from luban.models.heads import Head
from luban.objectives.base import DataRequest, Term
from luban.objectives.config import ClassificationConfig
from luban.objectives.losses import wide
from luban.objectives.tasks import TaskObjective, require_labels
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch, Row


class Classification(TaskObjective):
    """Cross-entropy over one label, binary cross-entropy over many, or squared error of a number in units of its deviation."""

    config: ClassificationConfig

    def __init__(self, config: ClassificationConfig):
        super().__init__(config)
        self.name = self.reads = config.name
        self.problem = {"classification": "single_label"}.get(config.name, config.name)

    def make_head(self, found: ExampleSet, data: DataRequest) -> Head:
        require_labels(found)
        settings: dict[str, Any] = {"maximum_tokens": data.sequence_length}
        if self.problem == "regression":
            values = np.array([float(example.label) for example in found.examples if example.label is not None])
            settings |= {"center": float(values.mean()), "scale": float(values.std()) or 1.0}
        elif len(found.labels) < 2:
            raise DataError("there is only one label to learn: {labels}", "a model that always gives it is right", "add examples of other labels, or name the column of the label in mapping", labels=", ".join(map(str, found.labels)))
        if self.problem == "multi_label":
            settings["threshold"] = self.config.threshold
        self._weights(found)
        labels = ("value",) if self.problem == "regression" else tuple(found.labels)
        self.numbers = {label: number for number, label in enumerate(labels)}
        return Head("sequence", self.name, labels, self.problem, settings)

    def _weights(self, found: ExampleSet) -> None:
        """The weight of each label in the loss, with mean 1 over the examples."""
        counts = Counter(label for example in found.examples for label in _labels(example))
        chosen = self.config.class_weights
        if chosen == "balanced":
            self.class_weights = {label: sum(counts.values()) / (len(counts) * count) for label, count in counts.items()}
        else:
            self.class_weights = {} if chosen == "none" else dict(chosen)

    def unit_of(self, example: LabeledText, tokenizer: Tokenizer) -> list[Row] | None:
        if example.label is None:
            self.refuse("it has no label")
            return None
        framed = frame_text(tokenizer, example.text, example.pair, self.head.settings)
        self.notice_cut([framed])
        if self.problem == "regression":
            target = np.float32((float(example.label) - self.head.settings["center"]) / self.head.settings["scale"])
            weight = 1.0
        else:
            unknown = [label for label in _labels(example) if label not in self.numbers]
            if unknown:
                self.refuse("a label that no training example has")
                return None
            target, weight = self._target(_labels(example))
        row = Row(np.array(framed.ids), np.array([weight], np.float32), types=np.array(framed.types), extra={"labels": target}, source=example.source)
        return [row]

    def _target(self, labels: list[str]) -> tuple[Any, float]:
        if self.problem == "multi_label":
            return np.array([label in labels for label in self.numbers], np.float32), 1.0
        return np.int64(self.numbers[labels[0]]), self.class_weights.get(labels[0], 1.0)

    def item_of(self, example: LabeledText) -> dict[str, Any]:
        return {"text": example.text, "pair": example.pair}

    def outputs(self, model: Model, batch: Batch) -> torch.Tensor:
        """[rows, labels]"""
        return wide(model.scores(model(batch.inputs, **batch.context()), batch.inputs, batch.segments, batch.extra))

    def terms_of(self, outputs: torch.Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        return {"loss": Term((self.losses(outputs, batch.extra["labels"]) * batch.weights[:, 0]).sum())}

    def divergence(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        if self.problem == "regression":
            return (first - second).square()[:, 0]
        if self.problem == "multi_label":
            known = first.sigmoid()
            return (known * (functional.logsigmoid(first) - functional.logsigmoid(second)) + (1 - known) * (functional.logsigmoid(-first) - functional.logsigmoid(-second))).sum(-1)
        return super().divergence(first, second)

    def losses(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[rows] the loss of each row. Focal loss: Lin et al. 2017, arXiv:1708.02002."""
        if self.problem == "regression":
            return (scores[:, 0] - labels).square()
        if self.problem == "multi_label":
            smooth = self.config.label_smoothing
            each = functional.binary_cross_entropy_with_logits(scores, labels * (1 - smooth) + smooth / 2, reduction="none")
            right = torch.where(labels > 0, scores.sigmoid(), 1 - scores.sigmoid())
            weights = scores.new_tensor([self.class_weights.get(label, 1.0) for label in self.numbers])
            return (each * (1 - right) ** self.config.focal_gamma * torch.where(labels > 0, weights, 1.0)).mean(1)
        nats = functional.cross_entropy(scores, labels, reduction="none", label_smoothing=self.config.label_smoothing)
        if self.config.focal_gamma:
            right = scores.softmax(-1).gather(1, labels[:, None])[:, 0]
            nats = nats * (1 - right) ** self.config.focal_gamma
        return nats


def _labels(example: LabeledText) -> list[str]:
    return example.label if isinstance(example.label, list) else [] if example.label is None else [str(example.label)]
