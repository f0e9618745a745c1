"""Kahneman–Tversky optimisation: answers that are good or bad by themselves, measured against how far the model has moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from luban.examples.preferences import unpaired
from luban.examples.reading import ExampleSet
from luban.examples.tasks import Preference
from luban.foundation.console import say
from luban.foundation.errors import DataError
from luban.metrics.preferences import labelled_measure
from luban.metrics.resampling import scores
from luban.metrics.score import Score
from luban.models.base import Model
from luban.objectives.base import DataRequest, Term
from luban.objectives.config import KTOConfig
from luban.objectives.losses import token_nats
from luban.objectives.preferences import PolicyObjective
from luban.objectives.reference import likelihoods
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch, Row


class KTO(PolicyObjective):
    """KTO (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7): a good answer loses 1 − σ(β(gain − z)), a bad one 1 − σ(β(z − gain)).

    z estimates the divergence from the reference by answers that belong to other prompts: a unit is an answer and, in a second row, its prompt
    with another example's answer. z is one number for a whole step, so :meth:`prepare` computes it from all of the step's second rows,
    without gradients (as the paper has it) and before any micro-batch; the second rows are then dropped. So micro-batches change nothing.
    """

    name, unit = "kto", "example"
    uses_reference = True
    places = ((0, "answer"),)
    config: KTOConfig

    # ---- examples to batches -----------------------------------------------------------------------------------------

    def arranged(self, examples: Sequence[Preference], speak: bool = False) -> list[Preference]:
        return unpaired(examples)

    def make_head(self, found: ExampleSet, data: DataRequest) -> None:
        super().make_head(found, data)
        good = sum(bool(example.label) for example in found.examples)
        bad = len(found.examples) - good
        if not good or not bad:
            raise DataError("there are {good} good and {bad} bad answers", "both kinds are needed", "add answers of the other kind, or check the label column", good=good, bad=bad)
        self.good_weight = max(1.0, bad / good) if self.config.desirable_weight == "auto" else self.config.desirable_weight
        self.bad_weight = max(1.0, good / bad) if self.config.undesirable_weight == "auto" else self.config.undesirable_weight
        say("{good} good answers with weight {good_weight:.3g}, {bad} bad ones with weight {bad_weight:.3g}", good=good, bad=bad, good_weight=self.good_weight, bad_weight=self.bad_weight)

    def units(self, examples: Sequence[Preference], tokenizer: Tokenizer) -> list[list[Row]]:
        """An answer's row, and the prompt's row with the answer of the example before it (of the last for the first)."""
        found: list[list[Row]] = []
        for number, example in enumerate(examples):
            other = next((examples[number - back].chosen for back in range(1, len(examples)) if examples[number - back].chosen != example.chosen), example.chosen)
            own = self.row_of(example, example.chosen, tokenizer)
            if own is None:
                continue
            counted, self.refused, self.cut = (self.refused, self.cut), {}, 0
            mismatched = self.row_of(example, other, tokenizer) or own  # one that cannot be read: its own then says how far the model moved
            self.refused, self.cut = counted
            found.append([replace(row, extra={"label": np.bool_(example.label)}) for row in (own, mismatched)])
        return found

    # ---- before a step -----------------------------------------------------------------------------------------------

    def prepare(self, batch: Batch, model: Model) -> Batch:
        """The answers' rows alone, with z, and with what a margin over the step's answers needs."""
        if "divergence" in batch.extra:
            return batch
        own, others = _every_second(batch, 0), _every_second(batch, 1)
        moved = likelihoods(model, others, self.precision).to(batch.inputs.device) - others.extra["reference"]
        good = own.extra["label"]
        shares = torch.where(good, 1.0 / good.sum().clamp(min=1), -1.0 / (~good).sum().clamp(min=1))
        own.extra |= {"divergence": moved.mean().clamp(min=0).expand(len(good)), "share": shares.to(moved.dtype)}
        return own

    # ---- the loss ----------------------------------------------------------------------------------------------------

    def counts(self, batch: Batch) -> dict[str, float]:
        good = float(batch.extra["label"][:: batch.group].sum())
        rows = len(batch.inputs) / batch.group
        return {"loss": rows, "rewards/chosen": good, "rewards/rejected": rows - good, "length/chosen": good, "length/rejected": rows - good, "rewards/margin": 1.0}

    def terms(self, model: Model, batch: Batch) -> dict[str, Term]:
        batch = self.prepare(batch, model)  # as it is, in a step
        answers = batch.weights > 0  # [rows, seq]
        sums, lengths = -(token_nats(model, batch, answers) * answers).sum(1), answers.sum(1)
        good, gain, moved = batch.extra["label"], sums - batch.extra["reference"], batch.extra["divergence"]
        sign = torch.where(good, 1.0, -1.0).to(gain.dtype)
        losses = 1 - torch.sigmoid(self.config.beta * sign * (gain - moved))
        weights = torch.where(good, self.good_weight, self.bad_weight).to(gain.dtype)
        rewards = self.config.beta * gain.detach()
        right = (torch.sign(sign * (rewards - self.config.beta * moved)) + 1) / 2  # an untouched model is half right
        logged = {
            "rewards/accuracy": right, "rewards/margin": rewards * batch.extra["share"], "rewards/chosen": rewards * good, "rewards/rejected": rewards * ~good,
            "length/chosen": lengths * good, "length/rejected": lengths * ~good, "divergence": moved,
        }  # fmt: skip
        return {"loss": Term((weights * losses).sum()), **{name: Term(values.sum(), 0.0) for name, values in logged.items()}}

    @torch.no_grad()
    def score(self, model: Model, tokenizer: Tokenizer, examples: list[Preference]) -> dict[str, Score]:
        """How often a good held-out answer is rewarded more than a bad one, and by how much more on average."""
        rewards: list[Tensor] = []
        labels: list[Tensor] = []
        for batch in self.validation:
            own = _every_second(batch, 0)
            rewards.append(self.config.beta * (likelihoods(model, own, self.precision) - own.extra["reference"]))
            labels.append(own.extra["label"])
        return scores(labelled_measure(torch.cat(rewards).double().numpy(), torch.cat(labels).numpy()), resamples=0) if rewards else {}


def _every_second(batch: Batch, first: int) -> Batch:
    """The first or the second row of every unit, as units of one row."""
    parts = {name: getattr(batch, name)[first::2] for name in ("inputs", "targets", "weights", "positions", "segments")}
    return replace(batch, **parts, extra={name: value[first::2] for name, value in batch.extra.items()}, sources=batch.sources[first::2], row_sources=batch.row_sources[first::2], group=1)
