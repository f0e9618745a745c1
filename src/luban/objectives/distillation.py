"""Learn from a teacher's probabilities beside the data's own labels (Hinton, Vinyals & Dean 2015, arXiv:1503.02531)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from luban.adapters.files import open_model
from luban.foundation.config import build
from luban.foundation.console import say
from luban.foundation.errors import ConfigError
from luban.metrics.score import Score
from luban.models.base import Model
from luban.models.heads import Head
from luban.objectives.base import DataRequest, Loaders, Objective, Term, load_objective
from luban.objectives.config import NAMES, DistillationConfig
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch


class Distillation(Objective):
    """Another objective's data, head and loss, and beside the loss KL(teacher ‖ student) of the outputs at a temperature T, times T² so
    that its gradients keep their size whatever T is. Several teachers count as one with the mean of their probabilities."""

    name = "distillation"
    config: DistillationConfig

    def __init__(self, config: DistillationConfig):
        super().__init__(config)
        if config.of not in NAMES or config.of == self.name:
            raise ConfigError(
                "objective.of: there is no objective {name!r} to distil", "", "known objectives: {known}", name=config.of,
                known=", ".join(name for name in NAMES if name != self.name),
            )  # fmt: skip
        self.inner = load_objective(build(NAMES[config.of], {"name": config.of, **config.settings}))
        self.teachers: list[Model] = []
        self.unit, self.scope, self.kinds, self.conversational = self.inner.unit, self.inner.scope, self.inner.kinds, self.inner.conversational

    @property
    def head(self) -> Head | None:
        return self.inner.head

    @property
    def by_example(self) -> bool:
        return self.inner.by_example

    def adapt_tokenizer(self, tokenizer: Tokenizer) -> Tokenizer:
        return self.inner.adapt_tokenizer(tokenizer)

    def loaders(self, data: DataRequest) -> Loaders:
        if not data.teachers:
            raise ConfigError(
                "objective.teacher: there is no teacher", "its probabilities are what is learned",
                "name a model directory or a train stage",
            )  # fmt: skip
        made = self.inner.loaders(data)
        for folder in data.teachers:
            self.teachers.append(self._teacher(folder, data))
        say("{count} teachers: {names}", count=len(self.teachers), names=", ".join(folder.name for folder in data.teachers))
        return made

    def _teacher(self, folder: Path, data: DataRequest) -> Model:
        """A teacher, checked to read the same ids and to give the same outputs as the student."""
        theirs = self.inner.adapt_tokenizer(Tokenizer.load(folder)).core.get_vocab(with_added_tokens=True)
        if theirs != data.tokenizer.core.get_vocab(with_added_tokens=True):
            raise ConfigError(
                "objective.teacher: the tokenizer of {teacher} is not the student's",
                "it would read other words than the student, or name its outputs otherwise",
                "train the student with the teacher's tokenizer; or let `luban predict` label texts and train on them", teacher=folder,
            )  # fmt: skip
        model = open_model(folder)
        model.requires_grad_(False)
        own, known = self.head, model.head
        structure = (known.structure, known.problem) if known else ("language_model", "")
        if structure != ((own.structure, own.problem) if own else ("language_model", "")):
            raise ConfigError(
                "objective.teacher: {teacher} was not trained for {objective}", "its outputs mean something else",
                "choose a teacher of the same task", teacher=folder, objective=self.inner.name,
            )  # fmt: skip
        if own is None or own.structure == "language_model":
            if model.shape.vocabulary_size < data.shape.vocabulary_size:
                raise ConfigError(
                    "objective.teacher: {teacher} has {theirs} outputs, the student {own}", "", "leave vocabulary_size out of shape",
                    teacher=folder, theirs=model.shape.vocabulary_size, own=data.shape.vocabulary_size,
                )  # fmt: skip
        elif own.structure != "sequence" and own.labels != known.labels:
            raise ConfigError(
                "objective.teacher: {teacher} has other labels than the data, or another order of them", "it knows: {known}",
                "train both on the same labels", teacher=folder, known=", ".join(known.labels),
            )  # fmt: skip
        elif own.problem != "regression" and (missing := [label for label in own.labels if label not in known.labels]):
            raise ConfigError(
                "objective.teacher: {teacher} does not know the label {label!r}", "it knows: {known}", "train both on the same labels",
                teacher=folder, label=missing[0], known=", ".join(known.labels),
            )  # fmt: skip
        return model

    def prepare(self, batch: Batch, model: Model) -> Batch:
        return self.inner.prepare(batch, model)

    def counts(self, batch: Batch) -> dict[str, float]:
        known = self.inner.counts(batch)
        return {**known, "distillation": known["loss"]}

    def terms(self, model: Model, batch: Batch) -> dict[str, Term]:
        return self.terms_of(self.outputs(model, batch), model, batch)

    def outputs(self, model: Model, batch: Batch) -> torch.Tensor:
        return self.inner.outputs(model, batch)

    def terms_of(self, outputs: torch.Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        share, temperature = self.config.weight, self.config.temperature
        apart = self.divergence(self.taught(outputs, model, batch), outputs / temperature)  # [units]
        own = {name: replace(term, weight=term.weight * (1 - share)) for name, term in self.inner.terms_of(outputs, model, batch).items()}
        return {**own, "distillation": Term((apart * self.unit_weights(batch)).sum() * temperature**2, share)}

    @torch.no_grad()
    def taught(self, outputs: torch.Tensor, model: Model, batch: Batch) -> torch.Tensor:
        """What the teachers say at the temperature, as outputs [units, …] of the same kind as the student's: of categories logits
        whose softmax is the mean of the teachers' probabilities, of yes and no their sigmoid, of numbers the mean divided by T."""
        said = []
        for teacher in self.teachers:
            teacher.to(device=outputs.device)
            said.append(self._ordered(self.inner.outputs(teacher.eval(), batch), teacher, outputs) / self.config.temperature)
        every = torch.stack(said)  # [teachers, units, …]
        problem = self.head.problem if self.head else ""
        if len(said) == 1 or problem == "regression":
            return every.mean(0)
        if problem == "multi_label":
            return torch.logit(every.sigmoid().mean(0).clamp(1e-6, 1 - 1e-6))
        return every.log_softmax(-1).logsumexp(0)

    def _ordered(self, said: torch.Tensor, teacher: Model, outputs: torch.Tensor) -> torch.Tensor:
        """A teacher's outputs in the student's order of labels; of a vocabulary, its rows without a token cut off."""
        labels = self.head.labels if self.head else ()
        if self.head and self.head.structure == "sequence" and self.head.problem != "regression" and tuple(teacher.head.labels) != tuple(labels):
            return said[..., [teacher.head.labels.index(label) for label in labels]]
        return said[..., : outputs.shape[-1]]

    def divergence(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.inner.divergence(first, second)

    def unit_weights(self, batch: Batch) -> torch.Tensor:
        return self.inner.unit_weights(batch)

    def score(self, model: Model, tokenizer: Tokenizer, examples: list[Any]) -> dict[str, Score]:
        return self.inner.score(model, tokenizer, examples)
