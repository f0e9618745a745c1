"""Learning-rate schedules as functions of the step: a share of the peak rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from luban.training.config import ScheduleConfig


@dataclass(frozen=True)
class Schedule:
    """Warm-up over ``warmup`` steps, then the chosen curve until ``total`` steps."""

    shape: str
    warmup: int
    total: int
    decay_share: float = 0.2
    final: float = 0.1

    @property
    def decay_start(self) -> int:
        """First step of the decay of warmup_stable_decay; before it a longer run is the same run."""
        return self.total - max(1, round(self.total * self.decay_share))

    @property
    def unchanged_until(self) -> int:
        """Steps up to here do not depend on the total length, so a longer run may continue from them."""
        return {"constant": self.total, "warmup_stable_decay": self.decay_start}.get(self.shape, 0)  # TrainConfig.open_ended

    def factor(self, step: int) -> float:
        """Share of the peak learning rate for step ``step`` (from 0)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.total - self.warmup)
        if self.shape == "constant":
            return 1.0
        if self.shape == "linear":
            return 1 - (1 - self.final) * progress
        if self.shape == "cosine":
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        if self.shape == "exponential":
            return max(self.final, 1e-4) ** progress
        assert self.shape == "warmup_stable_decay", self.shape
        if step < self.decay_start:
            return 1.0
        return 1 - (1 - self.final) * (step - self.decay_start) / max(1, self.total - self.decay_start)


def make_schedule(config: ScheduleConfig, total: int, step_tokens: int, epoch_tokens: int) -> Schedule:
    """The schedule of a run of ``total`` steps; warm-up ``auto`` is 5 % of them, at most 2,000."""
    if config.warmup == "auto":
        warmup = min(2000, max(1, total // 20))
    else:
        warmup = min(total, config.warmup.steps(step_tokens, epoch_tokens))
    return Schedule(config.shape, warmup, total, min(1.0, config.decay_share), config.final)
