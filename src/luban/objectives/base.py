"""What every objective says of itself, and how the loop finds one.

An objective returns named terms (sum, count, weight). The count of each term is known from the batch before
the forward pass and is summed over the whole step and all ranks, so accumulation, packing, padding and ranks
do not change the mathematics: every backward is scaled once, by weight over count.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from luban.foundation.config import Config
from luban.foundation.custom import is_custom, load_custom
from luban.foundation.errors import ConfigError, nearest
from luban.metrics.score import Score
from luban.models.base import Model
from luban.models.heads import Head
from luban.models.shape_base import BaseShapeConfig
from luban.objectives.config import NAMES
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch


@dataclass
class Term:
    """One part of a loss: a sum over units (nats) and its weight; weight 0 is only logged. The step's count of units it is divided by is the
    one of its own name, or of ``counted_by``: "loss", or "tokens" for all tokens that are no padding."""

    sum: torch.Tensor  # []
    weight: float = 1.0
    counted_by: str = "loss"


class ShareOut(Protocol):
    """How ranks share the work on so many units. ``work(first, last)`` gives what is made of some of them, as tensors [rows, …] on the processor; each rank works on its own,
    and all get all, in the order of units. Where second dimensions differ, the shorter end in zeros."""

    def __call__(self, units: int, work: Callable[[int, int], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]: ...


class Loader(Protocol):
    """Batches as a pure function of the step, so that a position is all there is to resume."""

    def step(self, index: int) -> Batch: ...

    @property
    def epoch_steps(self) -> int:
        """Steps in one pass over the data."""
        ...


class Objective:
    """Base of every objective. ``unit`` is what its mean is over; ``scope`` says what must never be split
    between micro-batches. The user's own derives from it or from a shipped one.

    The order of calls: ``adapt_tokenizer``, ``loaders`` (which sets ``head``), then the model is made with that head, ``before_training``, then
    the loop.
    """

    name: str = ""
    unit: str = "token"  # or "example", "pair", "group"
    scope: str = "example"  # or "group", "batch"
    learns: bool = True  # False: nothing is trained, the model is only given what the objective knows
    judged_by: str = ""  # which of its own terms says what weights are the best, where it has no metrics (``score``); "": the loss
    conversational: bool = False  # samples are asked as a user's turn rather than continued
    kinds: ClassVar[tuple[str, ...]] = ("decoder", "encoder", "encoder_decoder")  # of models that can learn it
    head: Head | None = None  # what the model must put out; None leaves it a language model

    def __init__(self, config: Config | None = None):
        self.config = config

    @property
    def by_example(self) -> bool:
        """Whether a step is so many examples (``batch_examples``), each in rows of its own, rather than so many tokens."""
        return self.unit != "token"

    def adapt_tokenizer(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer with what the objective needs added: a mask, sentinels, markers. As it is, as a rule."""
        return tokenizer

    def loaders(self, data: DataRequest) -> Loaders:
        """The training loader, the validation batches, and what to report."""
        raise AssertionError(f"{type(self).__name__} defines no loaders")

    def before_training(self, model: Model, loaders: Loaders, folder: Path, precision: torch.dtype) -> None:
        """What must be known of the weights that training starts from (a resumed run's too): reference log-likelihoods. What it takes time to
        make is kept in ``folder``, the run's own; ``precision`` is the arithmetic of the steps. Nothing, as a rule."""

    def prepare(self, batch: Batch, model: Model) -> Batch:
        """What must be made without gradients before the step, or before a validation batch: rollouts, a figure of the whole batch. Nothing, as a rule."""
        return batch

    def prepare_step(self, batch: Batch, model: Model, share_out: ShareOut) -> Batch:
        """As :meth:`prepare`, for a step that all ranks take together: what takes long may be shared out among them. All must get the same."""
        return self.prepare(batch, model)

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must bring back beside the weights, the same on all ranks: answers that were written and are learned from again. Nothing, as a rule."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what :meth:`state` gave."""

    def counts(self, batch: Batch) -> dict[str, float]:
        """Units of each term in a batch, known before any forward pass."""
        return {"loss": batch.count}

    def terms(self, model: Model, batch: Batch) -> dict[str, Term]:
        """The named sums of one micro-batch. The user's own objective may define this alone."""
        return self.terms_of(self.outputs(model, batch), model, batch)

    def outputs(self, model: Model, batch: Batch) -> torch.Tensor:
        """[units, …] what the loss is made of, logits as a rule: what R-Drop, SMART, mixup and distillation compare and mix."""
        raise ConfigError("the objective {objective} does not show its outputs", "what was asked for compares them", "leave it out of regularization, or define outputs and terms_of in the objective", objective=self.name)

    def terms_of(self, outputs: torch.Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        """The named sums from what :meth:`outputs` gave."""
        raise AssertionError(f"{type(self).__name__} defines neither terms nor terms_of")

    def divergence(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """[units] how far ``second`` is from ``first`` (same shape as the outputs), in nats: KL(first ‖ second) of categories."""
        known, other = first.log_softmax(-1), second.log_softmax(-1)
        return (known.exp() * (known - other)).sum(-1)

    def unit_weights(self, batch: Batch) -> torch.Tensor:
        """[units] the weight of each unit of the outputs."""
        weights = batch.weights.reshape(-1)
        return weights[weights != 0] if self.unit == "token" else batch.weights[:, 0]

    def score(self, model: Model, tokenizer: Tokenizer, examples: list[Any]) -> dict[str, Score]:
        """The task's metrics on held-out examples (``Loaders.held_out``), the main one first; none where the loss says it all."""
        return {}


@dataclass
class DataRequest:
    """What a loader is made from: the stage's inputs and the plain numbers of its config."""

    data: list[Any]  # Artifact or Path
    validation: list[Any]
    replay: list[Any]
    replay_share: float
    tokenizer: Tokenizer
    shape: BaseShapeConfig
    sequence_length: int
    rows_per_step: int
    examples_per_step: int
    seed: int
    packing: str
    validation_share: float
    mapping: dict[str, Any]
    mixture: list[float]
    work: Path
    teachers: list[Path] = field(default_factory=list)  # model directories that the objective names
    model_head: Head | None = None  # of the model that training starts from
    fold: tuple[int, int] | None = None  # hold out this one of so many folds of the data
    named: dict[str, Path] = field(default_factory=dict)  # what else the objective names, by its field: model directories, functions of the user


@dataclass
class Loaders:
    train: Loader
    validation: list[Batch]
    report: dict[str, Any]  # for the manifest: documents, tokens, supervised share…
    licences: list[str]
    held_out: list[Any] = field(default_factory=list)  # validation examples for ``Objective.score``


SHIPPED = {
    "tagging": "tagging:Tagging",
    "relation": "relation:Relation",
    "joint_relation": "joint_relation:JointRelation",
    "question_answering": "question_answering:QuestionAnswering",
    "causal": "causal:Causal",
    "masked": "masked:Masked",
    "span_corruption": "span_corruption:SpanCorruption",
    "denoising": "denoising:Denoising",
    "prefix": "prefix:Prefix",
    "fill_in_middle": "fill_in_middle:FillInMiddle",
    "instruction": "instruction:Instruction",
    "classification": "classification:Classification",
    "multi_label": "classification:Classification",
    "regression": "classification:Classification",
    "embedding": "embedding:Embedding",
    "ranking": "ranking:Ranker",
    "multiple_choice": "multiple_choice:MultipleChoice",
    "translation": "text_pairs:TextPairs",
    "summarization": "text_pairs:TextPairs",
    "generation": "text_pairs:TextPairs",
    "pattern": "pattern:Pattern",
    "distillation": "distillation:Distillation",
    "reward": "reward:Reward",
    "dpo": "dpo:DPO",
    "kto": "kto:KTO",
    "orpo": "orpo:ORPO",
    "simpo": "simpo:SimPO",
    "grpo": "grpo:GRPO",
}


def load_objective(chosen: Config | str, folder: Path = Path(".")) -> Objective:
    """A shipped objective by its config (or name, with defaults), or the user's own (``my_objective.py:Name``)."""
    if isinstance(chosen, str) and is_custom(chosen):
        return load_custom(chosen, folder)()
    name = chosen if isinstance(chosen, str) else chosen.name
    if name not in SHIPPED:
        guess = nearest(name, SHIPPED)
        raise ConfigError("there is no objective {name!r}", "", "did you mean {guess}?" if guess else "known objectives: {known}; or your own, my_file.py:Name", name=name, guess=guess, known=", ".join(SHIPPED))
    module, _, cls = SHIPPED[name].partition(":")
    return getattr(importlib.import_module(f"luban.objectives.{module}"), cls)(NAMES[name](name=name) if isinstance(chosen, str) else chosen)
