"""What the objectives on preferences share: reading, the rows of prompts with their answers, reference values, and the figures in the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from luban.examples import preview
from luban.examples.preferences import paired
from luban.examples.reading import ExampleSet
from luban.examples.tasks import Preference
from luban.foundation.config import Config
from luban.foundation.console import say, warn
from luban.foundation.errors import ConfigError, LubanError
from luban.inference.predictor import Predictor
from luban.metrics.preferences import pair_measure
from luban.metrics.resampling import scores
from luban.metrics.score import Score
from luban.models.base import Model
from luban.models.heads import Head
from luban.models.huggingface import load_model
from luban.objectives.base import DataRequest, Loaders, Term
from luban.objectives.losses import token_nats
from luban.objectives.reference import FILE, known_likelihoods, likelihoods
from luban.objectives.tasks import TaskObjective
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch, Example, Row, batch_of

ROWS_AT_ONCE = 256  # of a file that is scored


class Preferences(TaskObjective):
    """Pairs of a better and a worse answer: a unit is two rows, the better one first."""

    unit, scope, reads, group = "pair", "group", "preference", 2

    def read(self, data: DataRequest) -> tuple[ExampleSet, list[Preference]]:
        """The examples in the form that the objective learns from: pairs. Single answers to one prompt are paired first."""
        found, held_out = super().read(data)
        found.examples, held_out = self.arranged(found.examples, True), self.arranged(held_out)
        return found, held_out

    def arranged(self, examples: Sequence[Preference], speak: bool = False) -> list[Preference]:
        """Pairs of what was read; what is left over is counted."""
        pairs, left = paired(examples)
        if left and speak:
            warn("{count} answers are not learned from: their prompt has no answer of the other kind (kto learns from single answers)", count=left)
        return pairs

    def item_of(self, example: Preference) -> dict[str, Any]:
        tools = {"tools": example.tools} if example.tools else {}
        if example.rejected is None:
            return {"messages": [*example.messages, *example.chosen], **tools}
        return {"messages": example.messages, "chosen": example.chosen, "rejected": example.rejected, **tools}

    def metric_labels(self, head: Head | None) -> list[str]:
        return []

    def statistics(self, better: Tensor, worse: Tensor, batch: Batch, lengths: Tensor) -> dict[str, Term]:
        """What is logged beside the loss, from rewards [pairs] and lengths [rows] in tokens: sums over pairs. Equal rewards are half right."""
        better, worse = better.detach(), worse.detach()
        right = (better > worse).to(better.dtype) + 0.5 * (better == worse)
        logged = {
            "rewards/accuracy": right, "rewards/margin": better - worse, "rewards/chosen": better, "rewards/rejected": worse,
            "length/chosen": lengths[::2].to(better.dtype), "length/rejected": lengths[1::2].to(better.dtype),
        }  # fmt: skip
        return {name: Term(values.sum(), 0.0) for name, values in logged.items()}

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"loss": len(batch.inputs) / batch.group}


@dataclass
class Side:
    """The better or the worse answers of a micro-batch: [pairs] each."""

    log_likelihood: Tensor  # of the whole answer, in nats
    length: Tensor  # tokens
    reference: Tensor | None  # the reference's log-likelihood

    @property
    def mean(self) -> Tensor:
        """Log-likelihood a token."""
        return self.log_likelihood / self.length

    @property
    def gain(self) -> Tensor:
        """How much likelier the answer is than for the reference, in nats."""
        return self.log_likelihood - self.reference


class PolicyObjective(Preferences):
    """Base of the objectives that train a language model on preferences. A subclass gives the loss of a pair (``compare``)."""

    kinds: ClassVar[tuple[str, ...]] = ("decoder",)
    conversational = True
    uses_reference = False

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.maximum, self.precision, self.teachers, self.pad_id = 0, torch.float32, [], 0
        self.refused: dict[str, int] = {}
        self.cut = 0

    # ---- what a subclass defines -----------------------------------------------------------------------------------

    def compare(self, chosen: Side, rejected: Side) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of each pair, and the rewards of the better and of the worse answer: [pairs] each."""
        raise NotImplementedError

    @property
    def imitation(self) -> float:
        """Weight of the better answers' own cross-entropy beside the loss."""
        return getattr(self.config, "sft_weight", 0.0)

    def imitated(self, batch: Batch) -> Tensor:
        """[rows, seq] where that cross-entropy is taken."""
        places = batch.weights > 0
        places[1::2] = False
        return places

    # ---- examples to batches -----------------------------------------------------------------------------------------

    def make_head(self, found: ExampleSet, data: DataRequest) -> None:
        """None: a language model stays one."""
        self.maximum, self.pad_id, self.cut = data.sequence_length, data.tokenizer.pad_id, 0
        self.teachers = list(data.teachers)
        for teacher in self.teachers:
            theirs = Tokenizer.load(teacher).core.get_vocab(with_added_tokens=True)
            if theirs != data.tokenizer.core.get_vocab(with_added_tokens=True):
                raise ConfigError("objective.reference: the tokenizer of {reference} is not the model's", "it would read other words", "name a model with the same tokenizer, or leave it out: then it is the model that training starts from", reference=teacher)

    def loaders(self, data: DataRequest) -> Loaders:
        made = super().loaders(data)
        self.training, self.validation = made.train.units, made.validation
        rows = [row for unit in self.training for row in unit]
        shown = [unit[0] for unit in self.training[:: max(1, len(self.training) // 3)][:3]]
        preview.show([Example(np.append(row.ids[:1], row.targets), np.append(0, row.weights).astype(np.float32), row.source) for row in shown], data.tokenizer)
        if self.cut:
            warn("{count} answers are cut at their end: with their prompt they are longer than sequence_length {length}", count=self.cut, length=self.maximum)
        made.report |= {f"mean_{name}_tokens": round(float(np.mean([(row.weights > 0).sum() for row in rows[place :: self.group]])), 1) for place, name in self.places}
        return made

    places: ClassVar[tuple[tuple[int, str], ...]] = ((0, "chosen"), (1, "rejected"))

    def unit_of(self, example: Preference, tokenizer: Tokenizer) -> list[Row] | None:
        rows: list[Row] = []
        for answer in (example.chosen, example.rejected):
            row = self.row_of(example, answer, tokenizer)
            if row is None:
                return None
            rows.append(row)
        if np.array_equal(rows[0].targets, rows[1].targets):
            self.refuse("cut at sequence_length its answers are the same")
            return None
        return rows

    def row_of(self, example: Preference, answer: list[dict], tokenizer: Tokenizer) -> Row | None:
        """The prompt with an answer; None (and the reason counted) where nothing of the answer is left or the template refuses it."""
        try:
            ids, weights = answered(tokenizer, example, answer)
        except LubanError as error:
            reason = error.text().partition("\n")[0]  # translated already
            self.refuse(reason)
            return None
        self.cut += len(ids) > self.maximum + 1
        ids, weights = ids[: self.maximum + 1], weights[: self.maximum + 1]
        if not any(weights[1:]):
            self.refuse("its prompt alone fills sequence_length, or the chat template writes earlier turns anew")
            return None
        return Row(np.array(ids[:-1]), np.array(weights[1:], np.float32), targets=np.array(ids[1:]), source=example.source)

    # ---- before the first step ---------------------------------------------------------------------------------------

    def before_training(self, model: Model, loaders: Loaders, folder: Path, precision: torch.dtype) -> None:
        """The reference's log-likelihood of every answer, from the weights that training starts with or from ``objective.reference``."""
        self.precision = precision
        if not self.uses_reference:
            return
        reference = load_model(self.teachers[0]).to(model.device, model.dtype) if self.teachers else model
        held_out = [(batch, [_row_of(batch, number) for number in range(len(batch.inputs))]) for batch in self.validation]
        rows = [row for unit in self.training for row in unit]
        known = known_likelihoods(reference, [*rows, *(row for _, some in held_out for row in some)], self.pad_id, folder / FILE, precision)
        for row, value in zip(rows, known, strict=False):
            row.extra["reference"] = value
        place = len(rows)
        for batch, some in held_out:
            batch.extra["reference"] = torch.from_numpy(known[place : place + len(some)].copy())
            place += len(some)

    # ---- the loss ----------------------------------------------------------------------------------------------------

    def counts(self, batch: Batch) -> dict[str, float]:
        known = super().counts(batch)
        return {**known, "sft": float(self.imitated(batch).sum())} if self.imitation else known

    def terms(self, model: Model, batch: Batch) -> dict[str, Term]:
        answers = batch.weights > 0  # [rows, seq]
        learned = self.imitated(batch) if self.imitation else None
        nats = token_nats(model, batch, answers if learned is None else answers | learned)  # [rows, seq]
        sums, lengths = -(nats * answers).sum(1), answers.sum(1)
        reference = batch.extra.get("reference")
        chosen, rejected = (Side(sums[place::2], lengths[place::2], None if reference is None else reference[place::2]) for place in (0, 1))
        losses, better, worse = self.compare(chosen, rejected)
        found = {"loss": Term(losses.sum())}
        if learned is not None:
            found["sft"] = Term((nats * learned).sum(), self.imitation)
        return found | self.statistics(better, worse, batch, lengths)

    # ---- figures -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, model: Model, tokenizer: Tokenizer, examples: list[Preference]) -> dict[str, Score]:
        """Preference accuracy and margin by the objective's own rewards, on the held-out batches."""
        found: list[tuple[Tensor, Tensor]] = []
        for batch in self.validation[: -(-len(examples) // max(1, len(self.validation[0].inputs) // self.group))] if self.validation else []:
            sums, lengths, reference = likelihoods(model, batch, self.precision), (batch.weights > 0).sum(1), batch.extra.get("reference")
            _, better, worse = self.compare(*(Side(sums[place::2], lengths[place::2], None if reference is None else reference[place::2]) for place in (0, 1)))
            found.append((better, worse))
        if not found:
            return {}
        better, worse = (torch.cat(side).double().numpy() for side in zip(*found, strict=True))
        return scores(pair_measure(better, worse), resamples=0)

    def predictions(self, predictor: Predictor, examples: Sequence[Preference]) -> list[dict[str, Any]]:
        """How likely a model finds both answers, in nats a token: what `evaluate` compares language models by, whatever trained them."""
        self.maximum = predictor.model.longest_text
        found: list[dict[str, Any]] = [{} for _ in examples]
        made = [(number, side, self.row_of(example, answer, predictor.tokenizer)) for number, example in enumerate(examples) for side, answer in ((0, example.chosen), (1, example.rejected)) if answer]
        rows = [(number, side, row) for number, side, row in made if row is not None]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            batch = batch_of([row for _, _, row in some], predictor.tokenizer.pad_id)
            for (number, side, row), value in zip(some, likelihoods(predictor.model, batch).tolist(), strict=True):
                mean = value / float((row.weights > 0).sum())
                if examples[number].rejected is None:
                    found[number]["score"] = mean
                else:
                    found[number].setdefault("scores", [None, None])[side] = mean
        if len(made) > len(rows):
            say("{count} answers could not be read: {reasons}", count=len(made) - len(rows), reasons="; ".join(self.refused))
        return found


def answered(tokenizer: Tokenizer, example: Preference, answer: list[dict]) -> tuple[list[int], list[float]]:
    """Ids of a prompt with an answer, and 1 where the answer's words and the token that ends them are; by the tokenizer's chat template, or
    as plain text where it has none. Nothing is marked where the template cannot show the answer in one piece."""
    if tokenizer.chat_template is None:
        prompt = tokenizer.encode("\n".join(str(message["content"]) for message in example.messages))
        said = [*tokenizer.encode("\n".join(str(message["content"]) for message in answer)), tokenizer.end_of_text_id]
        start = [] if tokenizer.begin_of_text_id is None else [tokenizer.begin_of_text_id]
        return [*start, *prompt, *said], [0.0] * (len(start) + len(prompt)) + [1.0] * len(said)
    given = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in example.messages]
    learned = [{**message, "weight": 1} if message["role"] == "assistant" else message for message in answer]
    found = tokenizer.encode_examples([*given, *learned], tools=example.tools)
    return (found[0].ids, found[0].weights) if len(found) == 1 else ([], [])


def _row_of(batch: Batch, number: int) -> Row:
    """A row of a batch by itself."""
    size = int((batch.segments[number] >= 0).sum())
    return Row(batch.inputs[number, :size].numpy(), batch.weights[number, :size].numpy(), targets=batch.targets[number, :size].numpy())
