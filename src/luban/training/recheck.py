"""Silent corruption: now and then a step's gradients are computed twice from the same state, and must be the same.

A processor that miscalculates says nothing (Dixit et al. 2021, "Silent Data Corruptions at Scale", arXiv:2102.11245); a difference between two computations of the same thing is
the only sign. Under ``determinism: strict`` the bits must be the same; elsewhere, where the order of sums is left open, the norm of the difference may be a thousandth of the gradient's.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from luban.foundation.console import warn
from luban.foundation.errors import LubanError
from luban.parallel.engine import Passes, TorchEngine
from luban.parallel.layouts import Layout, local
from luban.tokens.batch import Batch
from luban.training.config import GuardsConfig
from luban.training.events import Events
from luban.training.randomness import random_state, set_random_state
from luban.training.run import Run

TOLERANCE = 1e-3
NAMED = 5


class Rechecked:
    """Passes that are made twice at the steps that are due; and the hook that knows which are. The gradients that stay are those of the first time."""

    section = "other"
    once = False

    def __init__(self, run: Run, config: GuardsConfig, folder: Path):
        self.passes: Passes = run.engine.passes
        self.every, self.stops, self.events = config.recheck_every, config.recheck_action == "stop", Events(folder)
        self.resumed(run)

    def resumed(self, run: Run) -> None:
        self.step = run.step + 1

    after_step = resumed

    def begin(self, layout: Layout, batch: Batch) -> Batch:
        return self.passes.begin(layout, batch)

    def backward(self, engine: TorchEngine, part: Batch, counts: dict[str, float]) -> dict[str, Tensor]:
        """As the passes'; LubanError where the two computations differ and the run is to stop."""
        if self.step % self.every:
            return self.passes.backward(engine, part, counts)
        learning = [parameter for parameter in engine.model.parameters() if parameter.requires_grad]
        state = random_state()
        before = [None if parameter.grad is None else parameter.grad.clone() for parameter in learning]
        means = self.passes.backward(engine, part, counts)
        first = _exchange(learning, before)
        set_random_state(state)
        again = self.passes.backward(engine, part, counts)
        second = _exchange(learning, first)
        apart = [engine.optimizer.names.get(parameter, "?") for parameter, one, other in zip(learning, first, second, strict=True) if not _same(one, other)]
        apart += [name for name, mean in means.items() if not _same(mean, again[name])]
        if apart:
            self._speak(engine, apart)
        return means

    def _speak(self, engine: TorchEngine, apart: list[str]) -> None:
        self.events.add("recheck", self.step, differ=apart[:NAMED], count=len(apart), device=str(engine.device))
        if self.stops:
            raise LubanError(
                "step {step} was computed twice, and {count} results differ, {example} for one",
                "the processor or its memory miscalculates, or something in the step is not repeatable; this step was not applied, and the last checkpoint is whole",
                "go on with another machine: the same command continues; where an operation of yours is random in its own way, set guards.recheck_every: 0",
                step=self.step, count=len(apart), example=apart[0],
            )  # fmt: skip
        warn("step {step} was computed twice, and {count} results differ, {example} for one", step=self.step, count=len(apart), example=apart[0])


def _exchange(parameters: list[nn.Parameter], gradients: list[Tensor | None]) -> list[Tensor | None]:
    """Put other gradients in the place of those that are there, which are returned."""
    found = [parameter.grad for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return found


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    one, other = local(one), local(other)
    if torch.are_deterministic_algorithms_enabled():
        return bool(((one == other) | (one.isnan() & other.isnan())).all())
    return bool((one - other).norm() <= TOLERANCE * one.norm()) or not bool(torch.isfinite(one).all())
