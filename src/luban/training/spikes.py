"""A robust threshold over the last values of a figure, computed where the figure is: no number has to reach the host for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TO_DEVIATIONS = 1.4826  # the median absolute deviation of a normal distribution times this is its standard deviation
LEAST = 0.01  # a deviation is taken to be at least this share of the median, so that a flat curve does not make noise a spike


class Window:
    """The last accepted values [size] in float32, oldest first; NaN in front where there are fewer yet."""

    def __init__(self, size: int, device: torch.device, values: list[float] | None = None):
        known = (values or [])[-size:]
        self.values = torch.full((size,), float("nan"), dtype=torch.float32)
        if known:
            self.values[-len(known) :] = torch.tensor(known, dtype=torch.float32)
        self.values = self.values.to(device)

    def threshold(self, deviations: float) -> Tensor:
        """[] the median and ``deviations`` robust deviations; infinite while less than a quarter of the window is there.

        A deviation is 1.4826 × the median absolute difference of neighbours / √2: what the median absolute deviation is (Leys et al. 2013), where a falling loss does not count as noise
        (von Neumann et al. 1941 on differences of neighbours).
        """
        count = torch.isfinite(self.values).sum()  # []
        middle = _median(self.values, count)
        spread = torch.maximum(TO_DEVIATIONS / math.sqrt(2) * _median((self.values[1:] - self.values[:-1]).abs(), count - 1), LEAST * middle.abs())
        return torch.where(count * 4 >= len(self.values), middle + deviations * spread, torch.inf)

    def add(self, value: Tensor, keep: Tensor) -> None:
        """``value`` [] comes in where ``keep`` [] is true."""
        self.values = torch.where(keep, torch.cat([self.values[1:], value.reshape(1)]), self.values)

    def known(self) -> list[float]:
        """The values that are there, for a checkpoint."""
        return [value for value in self.values.tolist() if value == value]


def _median(values: Tensor, count: Tensor) -> Tensor:
    """[] the mean of the two middle ones of the first ``count`` sorted values; NaN sorts behind them."""
    ordered = values.sort().values
    places = torch.stack([(count - 1) // 2, count // 2]).clamp(0, len(values) - 1)
    return ordered.gather(0, places).mean()
