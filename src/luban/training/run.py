"""One training run in memory: what the loop turns and what its hooks look at."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from luban.models.base import Model
from luban.objectives.base import Loaders, Objective
from luban.parallel.engine import TorchEngine
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch
from luban.training.averaging import Average, MeanTeacher
from luban.training.config import TrainConfig
from luban.training.figures import Figures
from luban.training.goodput import Clock
from luban.training.precision import measured_peak_flops
from luban.training.schedules import Schedule


class Hook(Protocol):
    """Something that happens between steps: logging, validation, samples, checkpoints, the user's callbacks.

    ``section`` says whose time it takes. A hook may also have ``resumed(run)``, called when the run was brought to another step than the one it stood at, and
    ``before_checkpoint(run)``, in which it puts into ``run.history`` what a resumed run must know.
    """

    section: str

    def after_step(self, run: Run) -> None: ...


@dataclass
class Run:
    """``step``, ``place``, ``tokens``, ``seconds`` and ``history`` are what a checkpoint must bring back."""

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
    place: int = 0  # of the next step in the data; further on than ``step`` where data was passed over
    tokens: int = 0
    seconds: float = 0.0  # spent on this run in all, over every restart
    history: dict[str, Any] = field(default_factory=dict)  # best validation and the like
    last: Mapping[str, float] = field(default_factory=dict)  # numbers of the latest step
    stop_reason: str = ""  # why the loop ends after this step, the same on all ranks once they have agreed
    stop_wish: str = ""  # of this rank alone: a signal's name, until all have agreed to it
    clock: Clock = field(default_factory=Clock)  # where the time goes
    choices: dict[str, Any] = field(default_factory=dict)  # what was chosen on this machine
    checkpointer: Any = None  # the last of the hooks, once they stand (checkpoints.py)
    started: float = field(default_factory=time.monotonic)
    measured: float = float("-inf")  # when the machine was last measured

    def measure_peak(self) -> None:
        """Measure the machine again and keep the best, once in half a minute: other work on a shared machine makes single measurements too low."""
        if time.monotonic() - self.measured < 30:
            return
        self.measured = time.monotonic()
        self.peak_flops = max(self.peak_flops, measured_peak_flops(self.model.device, self.engine.precision) * self.engine.layout.ranks.size)

    @property
    def compiles(self) -> bool:
        """Whether the step that begins is one that something is compiled in: the first of a process."""
        return self.model.compiled and self.clock.steps == 0

    def as_written(self) -> AbstractContextManager[None]:
        """While it lasts, compiled blocks run as they are written: what is no training step has other shapes each time, and would be compiled for each."""
        return torch.compiler.set_stance("force_eager") if self.model.compiled else nullcontext()

    def advance(self, batch: Batch, means: dict[str, Tensor], norm: Tensor, factor: float) -> None:
        """A step is behind; its numbers stay where they are until somebody reads them."""
        took = self.clock.end_step()
        self.step += 1
        self.place += 1
        self.tokens += batch.inputs.numel()
        self.seconds += took
        self.last = Figures({**means, "gradient_norm": norm}, {"learning_rate": self.engine.optimizer.peak * factor, "tokens_per_second": batch.inputs.numel() / took})

    def after_step(self) -> None:
        """Let every hook have its turn, unless one has brought the run to another step."""
        here = self.step
        with self.as_written():
            for hook in self.hooks:
                with self.clock.section(hook.section):
                    hook.after_step(self)
                if self.step != here:
                    return

    def before_checkpoint(self) -> None:
        """Let every hook put into the history what a resumed run must know."""
        for hook in self.hooks:
            if hasattr(hook, "before_checkpoint"):
                hook.before_checkpoint(self)

    def resumed(self) -> None:
        """Tell every hook that the run stands at another step, with the state of a checkpoint."""
        self.clock.went_back(self.seconds)
        for hook in self.hooks:
            if hasattr(hook, "resumed"):
                hook.resumed(self)

    @property
    def finished(self) -> bool:
        return self.step >= self.schedule.total

    def shown_weights(self) -> AbstractContextManager[None]:
        """While it lasts, the model has the weights that would be saved: the averaged ones, where an average is kept."""
        return self.average.applied() if self.average else nullcontext()

    def every(self, steps: int) -> bool:
        """True after each ``steps``-th step and after the last."""
        return self.finished or self.step % max(1, steps) == 0
