"""Averages of the weights over a run: an exponential moving average, the mean over the last validations, and the slow teacher of SMART."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from luban.models.base import Model
from luban.training.regularization import RegularizationConfig


class Average:
    """Averaged weights beside the ones that learn. ``state`` and ``load_state`` go with a checkpoint.

    Exponential: the decay rises from 1/2 to its value over the first steps, (1+n)/(10+n) at most, so that a short run is not
    held by its beginning. Validations: the weights at each of the last ``average_last`` validations, averaged.
    """

    def __init__(self, model: Model, config: RegularizationConfig):
        self.model, self.config = model, config
        self.steps = 0
        self.shadow: list[dict[str, torch.Tensor]] = []

    def after_step(self) -> None:
        """Follow the weights (exponential)."""
        if self.config.average != "exponential":
            return
        if not self.shadow:
            self.shadow = [self._copy()]
        decay = min(self.config.average_decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for name, parameter in self._learning():
            self.shadow[0][name].lerp_(parameter.detach(), 1 - decay)

    def at_validation(self) -> None:
        """Keep the weights of this validation (validations)."""
        if self.config.average == "validations":
            self.shadow = [*self.shadow, self._copy()][-self.config.average_last :]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averaged weights; the learning ones come back at the end."""
        if not self.shadow:
            yield
            return
        kept = self._copy()
        self.apply()
        try:
            yield
        finally:
            self._set(kept)

    def apply(self) -> None:
        """Put the averaged weights into the model for good."""
        if self.shadow:
            self._set({name: torch.stack([item[name] for item in self.shadow]).mean(0) if len(self.shadow) > 1 else self.shadow[0][name] for name in self.shadow[0]})

    def state(self) -> dict[str, torch.Tensor]:
        tensors = {f"{index}::{name}": value for index, item in enumerate(self.shadow) for name, value in item.items()}
        return tensors | {"steps": torch.tensor(self.steps)}

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        self.steps, self.shadow = int(tensors["steps"]), []
        device = next(self.model.parameters()).device
        for key, value in tensors.items():
            index, _, name = key.partition("::")
            if name:
                while len(self.shadow) <= int(index):
                    self.shadow.append({})
                self.shadow[int(index)][name] = value.clone().to(device)

    def _learning(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad)

    def _copy(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters() if name not in self.model.unchanging}

    @torch.no_grad()
    def _set(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            if name in values:
                parameter.copy_(values[name])


class MeanTeacher:
    """A slow average of the weights that gives targets to the ones that learn (Tarvainen & Valpola 2017, arXiv:1703.01780; the point that
    SMART stays near). It starts where the model starts: new = momentum · old + (1 − momentum) · weights. Only what learns is held."""

    def __init__(self, model: Model, momentum: float):
        self.model, self.momentum = model, momentum
        self.shadow: dict[str, torch.Tensor] = {}

    def after_step(self) -> None:
        """Follow the weights."""
        for name, parameter in self._learning():
            if name in self.shadow:
                self.shadow[name].lerp_(parameter.detach(), 1 - self.momentum)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the teacher's weights and without dropout, for a pass without gradients that ends before one with gradients begins."""
        for name, parameter in self._learning():
            if name not in self.shadow:  # before the first step, or unfrozen since the last: nothing has moved it yet
                self.shadow[name] = parameter.detach().clone()
        training = self.model.training
        self._exchange()
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(training)
            self._exchange()

    def state(self) -> dict[str, torch.Tensor]:
        return {name: value.contiguous() for name, value in self.shadow.items()}

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        device = next(self.model.parameters()).device
        self.shadow = {name: value.clone().to(device) for name, value in tensors.items()}

    def _learning(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad)

    def _exchange(self) -> None:
        """Weights and teacher change places, without a copy."""
        for name, parameter in self.model.named_parameters():
            if name in self.shadow:
                parameter.data, self.shadow[name] = self.shadow[name], parameter.data
