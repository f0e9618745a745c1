"""The layer-wise engine: the optimizer steps inside the backward pass, so that no more gradients exist than those of one parameter.

A gradient is used as soon as it is whole, and dropped (optimizer-in-backward; Lv et al. 2023, "LOMO", arXiv:2306.09782). With recompute and weights in bfloat16 this trains
a model that is little larger than its weights are. What needs all gradients at once, or a second look at one, is declared in ``lacks`` and refused.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from luban.objectives.base import Term
from luban.parallel.engine import Stepper, TorchEngine
from luban.tokens.batch import Batch


class ApartStepper(Stepper, Protocol):
    """An optimizer that can move one parameter alone."""

    names: dict[nn.Parameter, str]

    def step_one(self, parameter: nn.Parameter, factor: float) -> None: ...


class LayerwiseEngine(TorchEngine):
    """As :class:`TorchEngine`, but ``forward_backward`` moves the weights, ``clip`` only says the norm, and ``step`` has nothing left to do.

    A step whose loss is not finite has no backward pass, so nothing moves. A parameter whose gradient is not finite stays as it is, the norm says so, and the guard
    names the step; parameters above it have moved by then.
    """

    name = "layerwise"
    lacks: ClassVar[dict[str, str]] = {
        "clip": "the norm of all gradients is known when they are used up",
        "accumulate": "a gradient is used up before the next micro-batch could add to it",
        "scale": "whether float16's gradients overflowed is known when they are used up",
        "repeat": "each of its passes leaves gradients, and the weights would move between them",
        "refuse": "the weights have moved when a step's loss is known",
        "look": "it looks at the gradients after the step",
        "offload": "it moves nothing out of the memory that trains",
        "ranks": "a gradient is used up before those of the other processes could be added",
    }

    def __init__(self, model: nn.Module, optimizer: ApartStepper, *arguments: Any, **settings: Any):
        super().__init__(model, optimizer, *arguments, **settings)
        self.factor = 1.0
        self.squares: list[torch.Tensor] = []  # of the norms of the step's gradients so far
        self.used: list[nn.Parameter] = []  # whose they were
        for parameter in optimizer.names:
            parameter.register_post_accumulate_grad_hook(self._use)

    def forward_backward(self, batch: Batch, factor: float = 1.0) -> dict[str, torch.Tensor]:
        """Move the weights down the step's loss at ``factor`` of the peak learning rate; returns each term's mean over the step."""
        self.factor, self.squares, self.used = factor, [], []
        return super().forward_backward(batch)

    def backward(self, terms: dict[str, Term], counts: dict[str, float], share: float = 1.0) -> dict[str, torch.Tensor]:
        if all(bool(torch.isfinite(term.sum)) for term in terms.values() if term.weight):
            return super().backward(terms, counts, share)
        return {name: mean.detach() for name, mean in self.means(terms, counts).items()}

    def _use(self, parameter: nn.Parameter) -> None:
        norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float64 if parameter.dtype == torch.float64 else torch.float32)
        self.squares.append(norm.square())
        self.used.append(parameter)
        if bool(torch.isfinite(norm)):
            self.optimizer.step_one(parameter, self.factor)
        if (workspace := getattr(parameter, "workspace", None)) is not None:
            workspace.give_back(parameter.grad)
        parameter.grad = None

    def clip(self, largest: float) -> torch.Tensor:
        """The norm of all gradients of the step; they are gone, so ``largest`` must be 0."""
        assert not largest, self.lacks["clip"]
        squares = torch.stack(self.squares) if self.squares else torch.zeros(0, device=self.device)
        self.norms = (self.used, squares.sqrt())
        return squares.sum().sqrt()

    def step(self, factor: float, number: int = 1, keep: torch.Tensor | None = None) -> None:
        """Nothing: the weights have moved."""

    def _rows(self, batch: Batch) -> int:
        """The whole batch at once."""
        return len(batch.inputs)
