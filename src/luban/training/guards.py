"""Guards: a step whose numbers are not finite is skipped and named; a run of them stops the training."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from types import FrameType

import torch

from luban.foundation.console import say, warn
from luban.foundation.errors import LubanError
from luban.tokens.batch import Batch
from luban.training.log import GUARD
from luban.training.run import Run

TOO_MANY = 10  # skipped steps in a row


class Guard:
    """Refuses a step with a loss or gradient that is not finite, and keeps the batch's documents for a look."""

    def __init__(self, folder: Path):
        self.file = folder / GUARD
        self.in_a_row = 0

    def accepts(self, step: int, means: dict[str, torch.Tensor], norm: torch.Tensor, batch: Batch) -> bool:
        """False when the step must be skipped. LubanError after too many in a row."""
        numbers = {name: float(mean) for name, mean in means.items()} | {"gradient_norm": float(norm)}
        bad = {name: str(value) for name, value in numbers.items() if not math.isfinite(value)}
        if not bad:
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        warn("step {step} skipped: {bad} not finite; the documents of the step are named in {file}", step=step + 1, bad=", ".join(bad), file=self.file.name)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step + 1, "not_finite": bad, "sources": batch.sources}, ensure_ascii=False) + "\n")
        if self.in_a_row >= TOO_MANY:
            raise LubanError(
                "{count} steps in a row gave a loss or gradient that is not finite",
                "the learning rate may be too high, or the data or the starting weights damaged; the last checkpoint is whole",
                "look at {file}; lower optimizer.learning_rate or lengthen schedule.warmup",
                count=self.in_a_row,
                file=self.file,
            )
        return False


class StopSignals:
    """SIGINT and SIGTERM let the step finish, save, and leave; a second one leaves at once."""

    def __init__(self, run: Run):
        self.run = run
        self.previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.previous[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread (a notebook's worker, a server): the caller stops us some other way
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.run.stop_reason:
            raise KeyboardInterrupt
        self.run.stop_reason = signal.Signals(number).name
        say("{name}: finishing the step and saving; press again to leave at once", name=self.run.stop_reason)
