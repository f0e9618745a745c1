"""One training run in memory: what the loop turns and what its hooks look at."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from luban.models.base import Model
from luban.objectives.base import Loaders, Objective
from luban.parallel.engine import TorchEngine
from luban.tokenizer.tokenizer import Tokenizer
from luban.training.averaging import Average, MeanTeacher
from luban.training.config import TrainConfig
from luban.training.precision import measured_peak_flops
from luban.training.schedules import Schedule


class Hook(Protocol):
    """Something that happens between steps: logging, validation, samples, checkpoints, the user's callbacks."""

    def after_step(self, run: Run) -> None: ...


@dataclass
class Run:
    """``step``, ``tokens``, ``seconds`` and ``history`` are what a checkpoint must bring back."""

    config: TrainConfig
    folder: Path  # training/ of the artifact: logs, checkpoints, samples
    model: Model
    tokenizer: Tokenizer
    objective: Objective
    loaders: Loaders
    engine: TorchEngine
    schedule: Schedule
    step_tokens: int
    flops_per_token: float = 0.0
    peak_flops: float = 0.0  # of this machine, measured; 0 before it is
    average: Average | None = None  # of the weights, where one is kept
    teacher: MeanTeacher | None = None  # the slow weights of SMART's proximal point
    hooks: list[Hook] = field(default_factory=list)
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # spent on this run in all, over every restart
    history: dict[str, Any] = field(default_factory=dict)  # best validation and the like
    last: dict[str, float] = field(default_factory=dict)  # numbers of the latest step
    stop_reason: str = ""
    started: float = field(default_factory=time.monotonic)
    measured: float = float("-inf")  # when the machine was last measured

    def measure_peak(self) -> None:
        """Measure the machine again and keep the best, once in half a minute: other work on a shared machine makes single measurements too low."""
        if time.monotonic() - self.measured < 30:
            return
        self.measured = time.monotonic()
        device = next(self.model.parameters()).device
        self.peak_flops = max(self.peak_flops, measured_peak_flops(device, self.engine.precision))

    @property
    def finished(self) -> bool:
        return self.step >= self.schedule.total

    def shown_weights(self) -> AbstractContextManager[None]:
        """While it lasts, the model has the weights that would be saved: the averaged ones, where an average is kept."""
        return self.average.applied() if self.average else nullcontext()

    def every(self, steps: int) -> bool:
        """True after each ``steps``-th step and after the last."""
        return self.finished or self.step % max(1, steps) == 0
