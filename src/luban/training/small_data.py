"""What `regularization` puts on a model and a run before the first step, beside the passes of passes.py."""

from __future__ import annotations

import torch
from torch import nn

from luban.foundation.console import say
from luban.foundation.errors import ConfigError
from luban.models.base import Model
from luban.training.optimizers import layer_depths
from luban.training.regularization import RegularizationConfig
from luban.training.run import Run


def set_dropout(model: Model, config: RegularizationConfig) -> None:
    """Every dropout of the model at the rate that is asked for. ConfigError where the model has none."""
    if config.dropout == "auto":
        return
    found = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    if not found and config.dropout:
        raise ConfigError("regularization.dropout: {architecture} has no dropout", "its layers are made without", "leave it at auto, or choose another family", architecture=model.shape.architecture)
    for module in found:
        module.p = config.dropout


def add_noise(model: Model, alpha: float) -> None:
    """Uniform noise on the embeddings while training: NEFTune, arXiv:2310.05914."""
    if not alpha:
        return

    def noisy(module: nn.Module, inputs: tuple, vectors: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return vectors
        size = alpha / (vectors.shape[-2] * vectors.shape[-1]) ** 0.5
        return vectors + torch.empty_like(vectors).uniform_(-size, size)

    model.embedding.register_forward_hook(noisy)


class Unfreezer:
    """Gradual unfreezing: the head learns from the start, the blocks one after the other from the top, the embeddings last.

    What learns is a function of the step alone, so that a resumed run goes on as it was.
    """

    section = "steps"

    def __init__(self, model: Model, every_steps: int):
        self.every = max(1, every_steps)
        self.depths = layer_depths(model)
        self.top = len(model.blocks()) + 1
        self.always = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        self.set(model, 0)

    def after_step(self, run: Run) -> None:
        if run.step % self.every == 0:
            self.set(run.model, run.step)
            if (depth := self.top - run.step // self.every) >= 0:
                say("  unfreezing: {part} learns from step {step} on", part="embeddings" if depth == 0 else f"layer {depth}", step=run.step)

    def resumed(self, run: Run) -> None:
        self.set(run.model, run.step)

    def set(self, model: Model, step: int) -> None:
        lowest = self.top - step // self.every
        for name, parameter in model.named_parameters():
            if name not in self.always:
                parameter.requires_grad_(self.depths[name] >= lowest)

