"""The torch engine: one process, one device. It runs forward and backward passes, clips, and steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from luban.objectives.base import Objective, Term
from luban.tokens.batch import Batch


class Stepper(Protocol):
    """What an engine asks of the optimizer."""

    def step(self, factor: float) -> None: ...
    def zero_grad(self) -> None: ...


class Passes(Protocol):
    """How one micro-batch is turned into gradients: one forward and backward pass, or several (adversarial training, R-Drop)."""

    def backward(self, engine: TorchEngine, part: Batch, counts: dict[str, float]) -> dict[str, torch.Tensor]:
        """Add the gradients of a micro-batch; returns each term's part of the step's mean. ``engine.backward(terms, counts)`` scales and runs one backward pass."""
        ...


class OnePass:
    """One forward pass, one backward pass."""

    def backward(self, engine: TorchEngine, part: Batch, counts: dict[str, float]) -> dict[str, torch.Tensor]:
        return engine.backward(engine.terms(part), counts)


class TorchEngine:
    """Accumulates over micro-batches of rows; each backward is scaled once, by weight over the step's count."""

    name = "torch"
    lacks: ClassVar[dict[str, str]] = {}  # what a config may ask for that this engine cannot do, and why: clip, accumulate, scale, repeat, look
    micro_batch_tokens = 4096  # where ``micro_batch_rows`` is 0: rows are as many as this holds of the step's width

    def __init__(self, model: nn.Module, optimizer: Stepper, objective: Objective, micro_batch_rows: int, precision: torch.dtype, passes: Passes | None = None):
        self.passes = passes or OnePass()
        self.model, self.optimizer, self.objective = model, optimizer, objective
        self.micro_batch_rows, self.precision = micro_batch_rows, precision
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)

    def autocast(self) -> Any:
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def forward_backward(self, batch: Batch, factor: float = 1.0) -> dict[str, torch.Tensor]:
        """Gradients of the whole step's loss; returns each term's mean over the step, not yet synchronised. ``factor`` of the peak learning rate is for engines that
        use gradients as they appear."""
        counts = {"tokens": _tokens(batch)} | self.objective.counts(batch)
        means: dict[str, torch.Tensor] = {}
        for part in self._parts(batch):
            for name, mean in self.passes.backward(self, part, counts).items():
                means[name] = means.get(name, 0) + mean
        return means

    def terms(self, part: Batch) -> dict[str, Term]:
        """The objective's terms of a micro-batch in the engine's precision, and the losses that the model itself made (balance of experts)."""
        with self.autocast():
            return self.objective.terms(self.model, part) | self.own_terms(part)

    def own_terms(self, part: Batch) -> dict[str, Term]:
        """What the model's last forward pass says of itself: means over the micro-batch, weighted by its tokens in the step."""
        weights = getattr(self.model.shape, "auxiliary_weights", {})
        penalties = {name: (value, weights.get(name, 0.0)) for name, value in self.model.auxiliary().items()}
        if self.model.adapter:
            penalties |= self.model.adapter.penalties(self.model)
        return {name: Term(value * _tokens(part), weight, "tokens") for name, (value, weight) in penalties.items()}

    def backward(self, terms: dict[str, Term], counts: dict[str, float], share: float = 1.0) -> dict[str, torch.Tensor]:
        """One backward pass of ``share`` times the terms' loss; returns each term's part of the step's mean."""
        means = self.means(terms, counts)
        loss = sum(terms[name].weight * mean for name, mean in means.items() if terms[name].weight)
        self.scaler.scale(loss * share).backward()
        return {name: mean.detach() for name, mean in means.items()}

    @staticmethod
    def means(terms: dict[str, Term], counts: dict[str, float]) -> dict[str, torch.Tensor]:
        """Each term's part of the step's mean."""
        return {name: term.sum / max(counts.get(name, counts[term.counted_by]), 1.0) for name, term in terms.items()}

    @torch.no_grad()
    def evaluate(self, batches: list[Batch]) -> dict[str, float]:
        """Each term's mean over all units of the batches, without gradients."""
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        self.model.eval()
        for batch in batches:
            batch = self.objective.prepare(batch, self.model)
            for name, count in self.objective.counts(batch).items():
                counts[name] = counts.get(name, 0) + count
            for part in self._parts(batch):
                with self.autocast():
                    for name, term in self.objective.terms(self.model, part).items():
                        sums[name] = sums.get(name, 0) + float(term.sum)
        self.model.train()
        return {name: sums[name] / max(counts.get(name, counts["loss"]), 1.0) for name in sums}

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """The batch in micro-batches of whole units on the device, padding trimmed from each; a batch whose rows are compared stays whole."""
        rows, width = batch.inputs.shape
        wanted = self.micro_batch_rows or self.micro_batch_tokens // (width + (0 if batch.source is None else batch.source.shape[1]))
        whole = self.objective.scope == "batch"
        size = rows if whole else max(1, wanted // batch.group) * batch.group
        for part in self._cut(batch, size):
            yield replace(part, micro_rows=max(1, wanted)) if whole else part

    def _cut(self, batch: Batch, size: int) -> Iterator[Batch]:
        """``size`` rows at a time on the device, padding trimmed; where nothing is scored a part is left out."""
        for start in range(0, len(batch.inputs), size):
            part = batch.rows(start, start + size, trim=True)
            if part.weights.any():
                yield part.to(self.device)

    def clip(self, largest: float) -> torch.Tensor:
        """The gradient's norm; gradients above ``largest`` (if not 0) are scaled down to it."""
        for optimizer in self.optimizer.parts if self.scaler.is_enabled() else ():
            self.scaler.unscale_(optimizer)
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        if largest:
            nn.utils.clip_grads_with_norm_(parameters, largest, norm)
        return norm

    def step(self, factor: float, number: int = 1) -> None:
        """Apply the gradients at ``factor`` of the peak learning rate, and drop them; an adapter looks at them before. ``number`` counts steps from 1."""
        self.optimizer.step(factor)
        if self.model.adapter:
            self.model.adapter.after_gradients(self.model, number)
        self.drop_gradients()
        if self.scaler.is_enabled():
            self.scaler.update()

    def drop_gradients(self) -> None:
        self.optimizer.zero_grad()


def _tokens(batch: Batch) -> float:
    """Tokens that are no padding."""
    return float(batch.inputs.numel() if batch.segments is None else (batch.segments >= 0).sum())
