"""A score is a value with its unit, the interval it lies in, and a signature that says how it was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from luban import __version__

RESAMPLES = 1000
_CHUNK = 4_000_000  # resampling weights held at once: 32 MB


@dataclass(frozen=True)
class Score:
    """``interval`` holds the 2.5 % and 97.5 % points of a bootstrap, or None where one cannot be had."""

    value: float
    unit: str
    signature: str
    interval: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interval": list(self.interval) if self.interval else None}

    def __str__(self) -> str:
        half = f" ± {(self.interval[1] - self.interval[0]) / 2:.3g}" if self.interval else ""
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.value:.4g}{half}{unit} ({self.signature})"


def signature(**facts: object) -> str:
    """``bytes:utf8|context:256|…|luban:0.1.0``: two numbers may be compared when these agree (as sacrebleu does)."""
    return "|".join(f"{name}:{value}" for name, value in [*facts.items(), ("luban", __version__)])


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], units: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float] | None:
    """95 % percentile interval of a statistic of sums, by drawing units (documents) with replacement.

    ``units`` [units, columns] holds what is summed; ``statistic`` maps sums [resamples, columns] to values [resamples].
    None for fewer than two units, from which nothing can be said. Efron (1979).
    """
    count = len(units)
    if count < 2:
        return None
    random = np.random.default_rng(seed)
    values = []
    step = max(1, _CHUNK // count)
    for start in range(0, resamples, step):
        weights = random.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - start))  # [step, units]
        values.append(statistic(weights @ units))
    low, high = np.quantile(np.concatenate(values), [0.025, 0.975])
    return float(low), float(high)
