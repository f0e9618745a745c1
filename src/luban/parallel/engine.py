"""The torch engine: one process, one device. It runs forward and backward passes, clips, and steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from luban.objectives.base import Objective
from luban.tokens.batch import Batch


class Stepper(Protocol):
    """What an engine asks of the optimizer."""

    def step(self, factor: float) -> None: ...
    def zero_grad(self) -> None: ...


class TorchEngine:
    """Accumulates over micro-batches of rows; each backward is scaled once, by weight over the step's count."""

    def __init__(self, model: nn.Module, optimizer: Stepper, objective: Objective, micro_batch_rows: int, precision: torch.dtype):
        self.model, self.optimizer, self.objective = model, optimizer, objective
        self.micro_batch_rows, self.precision = micro_batch_rows, precision
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)

    def autocast(self) -> Any:
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def forward_backward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Gradients of the whole step's loss; returns each term's mean over the step, not yet synchronised."""
        counts = self.objective.counts(batch)
        means: dict[str, torch.Tensor] = {}
        for part in self._parts(batch):
            with self.autocast():
                terms = self.objective.terms(self.model, part)
            loss = sum(term.weight * term.sum / max(counts[name], 1.0) for name, term in terms.items())
            self.scaler.scale(loss).backward()
            for name, term in terms.items():
                means[name] = means.get(name, 0) + term.sum.detach() / max(counts[name], 1.0)
        return means

    @torch.no_grad()
    def evaluate(self, batches: list[Batch]) -> dict[str, float]:
        """Each term's mean over all units of the batches, without gradients."""
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        self.model.eval()
        for batch in batches:
            for name, count in self.objective.counts(batch).items():
                counts[name] = counts.get(name, 0) + count
            for part in self._parts(batch):
                with self.autocast():
                    for name, term in self.objective.terms(self.model, part).items():
                        sums[name] = sums.get(name, 0) + float(term.sum)
        self.model.train()
        return {name: sums[name] / max(counts[name], 1.0) for name in sums}

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """The batch in micro-batches on the device, padding trimmed from each."""
        for start in range(0, batch.inputs.shape[0], self.micro_batch_rows):
            part = batch.rows(start, start + self.micro_batch_rows, trim=True)
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

    def step(self, factor: float) -> None:
        """Apply the gradients at ``factor`` of the peak learning rate, and drop them."""
        self.optimizer.step(factor)
        self.drop_gradients()
        if self.scaler.is_enabled():
            self.scaler.update()

    def drop_gradients(self) -> None:
        self.optimizer.zero_grad()
