"""What every objective says of itself, and how the loop finds one.

An objective returns named terms (sum, count, weight). The count of each term is known from the batch before
the forward pass and is summed over the whole step and all ranks, so accumulation, packing, padding and ranks
do not change the mathematics: every backward is scaled once, by weight over count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from luban.foundation.custom import is_custom, load_custom
from luban.foundation.errors import ConfigError, nearest
from luban.models.decoder import Decoder
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch


@dataclass
class Term:
    """One part of a loss: a sum over units (nats), how many units the whole step has, and its weight."""

    sum: torch.Tensor  # []
    weight: float = 1.0


class Loader(Protocol):
    """Batches as a pure function of the step, so that a position is all there is to resume."""

    def step(self, index: int) -> Batch: ...

    @property
    def epoch_steps(self) -> int:
        """Steps in one pass over the data."""
        ...


class Objective:
    """Base of every objective. ``unit`` is what its mean is over; ``scope`` says what must never be split
    between micro-batches. The user's own derives from it or from a shipped one."""

    name: str = ""
    unit: str = "token"  # or "example", "pair", "group"
    scope: str = "example"  # or "group", "batch"
    conversational: bool = False  # samples are asked as a user's turn rather than continued

    def loaders(self, data: DataRequest) -> Loaders:
        """The training loader, the validation batches, and what to report."""
        raise AssertionError(f"{type(self).__name__} defines no loaders")

    def prepare(self, batch: Batch, model: Decoder) -> Batch:
        """What must be made without gradients before the step: rollouts, a teacher's words. Nothing, as a rule."""
        return batch

    def counts(self, batch: Batch) -> dict[str, float]:
        """Units of each term in a batch, known before any forward pass."""
        return {"loss": batch.count}

    def terms(self, model: Decoder, batch: Batch) -> dict[str, Term]:
        """The named sums of one micro-batch."""
        raise AssertionError(f"{type(self).__name__} defines no terms")


@dataclass
class DataRequest:
    """What a loader is made from: the stage's inputs and the plain numbers of its config."""

    data: list[Any]  # Artifact or Path
    validation: list[Any]
    replay: list[Any]
    replay_share: float
    tokenizer: Tokenizer
    sequence_length: int
    rows_per_step: int
    seed: int
    packing: str
    validation_share: float
    mapping: dict[str, str]
    mixture: list[float]
    work: Path


@dataclass
class Loaders:
    train: Loader
    validation: list[Batch]
    report: dict[str, Any]  # for the manifest: documents, tokens, supervised share…
    licences: list[str]


def load_objective(name: str, folder: Path = Path(".")) -> Objective:
    """A shipped objective by name, or the user's own (``my_objective.py:Name``)."""
    if is_custom(name):
        return load_custom(name, folder)()
    from luban.objectives.causal import Causal
    from luban.objectives.instruction import Instruction

    shipped = {kind.name: kind for kind in (Causal, Instruction)}
    if name not in shipped:
        guess = nearest(name, shipped)
        raise ConfigError("there is no objective {name!r}", "", "did you mean {guess}?" if guess else "known objectives: {known}; or your own, my_file.py:Name", name=name, guess=guess, known=", ".join(shipped))
    return shipped[name]()
