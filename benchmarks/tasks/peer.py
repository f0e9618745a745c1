"""The peer's side: transformers' Trainer, its models and losses, on the batches that Luban's loader gives.

Same: first weights, framed ids, batches and their order, number of steps, peak rate, schedule (Luban's formula, so that the rates are equal
to the last digit), AdamW's settings, weight decay and what it leaves out (biases and norms, Trainer's own rule), gradient clip, threads,
and the draws of dropout where Luban's step is one forward pass too (clock.py).
Different: a step is one forward pass (Luban splits it where that is faster), and everything that is the library.
Where transformers has no loss of its own for a task (relations by markers, contrast, ranking), it is written here the way its users do.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)  # fmt: skip

from benchmarks.tasks import clock
from benchmarks.tasks.luban_side import Start
from luban.tokens.batch import Batch

Features = dict[str, Tensor]
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


class Peer(nn.Module):
    """A transformers model with a loss of a user's own; ``own_tensors`` are saved beside the trunk's."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk = trunk

    def own_tensors(self) -> dict[str, Tensor]:
        return {}


class Markers(Peer):
    """A label from the states of the two opening markers."""

    def __init__(self, trunk: nn.Module, tensors: dict[str, Tensor]):
        super().__init__(trunk)
        weight = tensors["classifier.weight"]
        self.dropout, self.classifier = nn.Dropout(trunk.config.hidden_dropout_prob), nn.Linear(weight.shape[1], len(weight))
        with torch.no_grad():
            self.classifier.weight.copy_(weight)
            self.classifier.bias.copy_(tensors["classifier.bias"])

    def forward(self, markers: Tensor, labels: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        hidden = self.trunk(**inputs).last_hidden_state
        rows = torch.arange(len(hidden))
        marked = torch.cat([hidden[rows, markers[:, 0]], hidden[rows, markers[:, 1]]], -1)
        return {"loss": functional.cross_entropy(self.classifier(self.dropout(marked)), labels)}

    def own_tensors(self) -> dict[str, Tensor]:
        return {f"classifier.{key}": value for key, value in self.classifier.state_dict().items()}


class Contrast(Peer):
    """Multiple negatives ranking: cross-entropy of each query's own text among all texts of the batch, equal texts left out."""

    def __init__(self, trunk: nn.Module, temperature: float):
        super().__init__(trunk)
        self.temperature = temperature

    def forward(self, role: Tensor, text: Tensor, attention_mask: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        hidden = self.trunk(attention_mask=attention_mask, **inputs).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        vectors = functional.normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1), dim=-1)
        query, document = role == 1, role == 2  # the loader's groups: a query, then its text
        scores = vectors[query] @ vectors[document].T / self.temperature
        repeated = (text[document][None] == text[document][:, None]) & ~torch.eye(len(scores), dtype=torch.bool)
        return {"loss": functional.cross_entropy(scores.masked_fill(repeated, -1e9), torch.arange(len(scores)))}


class Listwise(Peer):
    """Softmax cross-entropy over the documents of a query."""

    def forward(self, grades: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        scores = self.trunk(**inputs).logits.view(grades.shape)
        present = inputs["attention_mask"].any(1).view(grades.shape)
        scores = scores.masked_fill(~present, -1e9)
        return {"loss": -(grades / grades.sum(1, keepdim=True) * scores.log_softmax(1)).sum(1).mean()}


class NextToken(Peer):
    """Cross-entropy of given targets, for batches that hold several documents a row."""

    def forward(self, targets: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        logits = self.trunk(**inputs).logits
        return {"loss": functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)}


def encoder_inputs(batch: Batch, types: bool) -> Features:
    mask = torch.ones_like(batch.inputs) if batch.segments is None else (batch.segments >= 0).long()
    given = {"input_ids": batch.inputs, "attention_mask": mask}
    return given | ({"token_type_ids": batch.types} if types and batch.types is not None else {})


def targets_of(batch: Batch) -> Tensor:
    return batch.targets.masked_fill(batch.weights == 0, -100)


def block_mask(batch: Batch) -> Tensor:
    """[rows, 1, seq, seq] what each place sees: itself and what is before it in its own document; padding sees itself."""
    seq = batch.inputs.shape[1]
    segments = torch.zeros_like(batch.inputs) if batch.segments is None else batch.segments
    return ((segments[:, :, None] == segments[:, None]) & torch.ones(seq, seq, dtype=torch.bool).tril())[:, None]


def open_peer(start: Start) -> tuple[nn.Module, Callable[[Batch], Features]]:
    """The peer's model with the start's weights, and how a batch is put to it."""
    folder, objective = start.folder, start.objective
    head, kind = objective.head, start.config.shape.kind
    types = start.config.shape.architecture == "bert"

    def grouped(batch: Batch) -> Features:
        inputs = encoder_inputs(batch, types)
        return {name: value.view(-1, batch.group, value.shape[1]) for name, value in inputs.items()}

    if head is None or head.structure == "language_model":
        if kind == "encoder_decoder":
            return AutoModelForSeq2SeqLM.from_pretrained(folder), lambda batch: {
                "input_ids": batch.source, "attention_mask": (batch.source_segments >= 0).long(), "decoder_input_ids": batch.inputs, "labels": targets_of(batch),
            }  # fmt: skip
        if kind == "encoder":
            return AutoModelForMaskedLM.from_pretrained(folder), lambda batch: {**encoder_inputs(batch, types), "labels": targets_of(batch)}
        return NextToken(AutoModelForCausalLM.from_pretrained(folder)), lambda batch: {
            "input_ids": batch.inputs, "attention_mask": block_mask(batch), "position_ids": batch.positions, "targets": targets_of(batch),
        }  # fmt: skip
    if head.own:
        tensors = load_file(folder / "model.safetensors")
        return Markers(AutoModel.from_pretrained(folder, add_pooling_layer=False), tensors), lambda batch: {
            **encoder_inputs(batch, types), "markers": batch.extra["markers"], "labels": batch.extra["labels"],
        }  # fmt: skip
    if head.task == "embedding":
        trunk = AutoModel.from_pretrained(folder, add_pooling_layer=False)
        return Contrast(trunk, objective.config.temperature), lambda batch: {**encoder_inputs(batch, types), "role": batch.extra["role"], "text": batch.extra["text"]}
    if head.task == "ranking":
        return Listwise(AutoModelForSequenceClassification.from_pretrained(folder)), lambda batch: {**encoder_inputs(batch, types), "grades": batch.extra["grade"].view(-1, batch.group)}
    if head.structure == "token":
        return AutoModelForTokenClassification.from_pretrained(folder), lambda batch: {**encoder_inputs(batch, types), "labels": targets_of(batch)}
    if head.structure == "span":
        return AutoModelForQuestionAnswering.from_pretrained(folder), lambda batch: {
            **encoder_inputs(batch, types), "start_positions": batch.extra["places"][:, 0], "end_positions": batch.extra["places"][:, 1],
        }  # fmt: skip
    if head.structure == "choice":
        return AutoModelForMultipleChoice.from_pretrained(folder), lambda batch: {**grouped(batch), "labels": batch.extra["answer"][:: batch.group]}
    return AutoModelForSequenceClassification.from_pretrained(folder), lambda batch: {**encoder_inputs(batch, types), "labels": batch.extra["labels"]}


def trimmed(batch: Batch) -> Batch:
    """Padded to its longest row and no further, as transformers' collators do."""
    return batch.rows(0, len(batch.inputs), trim=True)


class SameBatches(Trainer):
    """Trainer on given batches and with a given rate a step."""

    def __init__(self, start: Start, features: Callable[[Batch], Features], **known: Any):
        self.start, self.features = start, features
        super().__init__(train_dataset=range(start.schedule.total), **known)

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=lambda steps: self.features(trimmed(self.start.loaders.train.step(steps[0]))))

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.start.schedule.factor)
        return self.lr_scheduler


class Marks(TrainerCallback):
    def __init__(self, seed: int) -> None:
        self.times: list[tuple[float, float]] = []
        self.seed = seed

    def on_step_begin(self, _arguments: Any, state: Any, *_given: Any, **_named: Any) -> None:
        if state.global_step:
            clock.begin_step(state.global_step)
        else:
            torch.manual_seed(self.seed)

    def on_step_end(self, *given: Any, **named: Any) -> None:
        self.times.append(clock.marks())


def train(start: Start, out: Path, threads: int, seed: int) -> tuple[float, float]:
    """Train the peer from the start and write a model directory that Luban opens; (wall, processor) seconds of the steps."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model, features = open_peer(start)
    optimizer = start.config.optimizer
    settings = TrainingArguments(
        output_dir=str(out / "trainer"), max_steps=start.schedule.total, per_device_train_batch_size=1, learning_rate=optimizer.learning_rate,
        weight_decay=optimizer.weight_decay, adam_beta1=optimizer.betas[0], adam_beta2=optimizer.betas[1], adam_epsilon=optimizer.epsilon,
        max_grad_norm=start.config.gradient_clip, seed=seed, use_cpu=True, save_strategy="no", eval_strategy="no", logging_strategy="no", report_to=[],
        disable_tqdm=True, remove_unused_columns=False, dataloader_num_workers=0, label_smoothing_factor=0.0,
    )  # fmt: skip
    marks = Marks(start.seed)
    SameBatches(start, features, model=model, args=settings, callbacks=[marks]).train()
    save(model, start.folder, out)
    return clock.seconds(marks.times)


def save(model: nn.Module, start: Path, out: Path) -> None:
    """The start's directory with the peer's weights in the place of its own."""
    out.mkdir(parents=True, exist_ok=True)
    trunk = model.trunk if isinstance(model, Peer) else model
    trunk.save_pretrained(out / "trainer")
    tensors = load_file(out / "trainer" / "model.safetensors")
    if isinstance(model, Peer):
        tensors |= {name: value.detach().contiguous() for name, value in model.own_tensors().items()}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    shutil.rmtree(out / "trainer")
    for name in FILES:
        if (start / name).exists():
            shutil.copy(start / name, out / name)
