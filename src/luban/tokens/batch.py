"""What a loader hands to an objective, and one supervised example."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor


@dataclass
class Example:
    """A supervised sequence: token ids [n], and the weight of each as a target [n] (0 = given, not learned)."""

    ids: np.ndarray  # [n] int32
    weights: np.ndarray  # [n] float32
    source: str = ""  # file and line it came from


@dataclass
class Batch:
    """Rows of tokens with what must be predicted at each place.

    ``segments`` numbers the document in its row that a place belongs to, -1 where the row is padding; None where each row is one
    document without padding. Attention stays inside a segment, and ``positions`` start anew in each.
    """

    inputs: Tensor  # [rows, seq] int64
    targets: Tensor  # [rows, seq] int64
    weights: Tensor  # [rows, seq] float32, 0 = not scored
    positions: Tensor  # [rows, seq] int64
    segments: Tensor | None  # [rows, seq] int32
    sources: list[str] = field(default_factory=list)  # documents in it, row by row
    row_sources: list[int] = field(default_factory=list)  # how many of ``sources`` belong to each row

    def rows(self, start: int, stop: int, trim: bool = False) -> Batch:
        """Some of the rows: a rank's share or a micro-batch. ``trim`` drops columns at the end that are padding in all of them."""
        width = self.inputs.shape[1]
        if trim and self.segments is not None:
            used = (self.segments[start:stop] >= 0).any(0).nonzero()
            width = int(used[-1]) + 1 if len(used) else 1
        first = sum(self.row_sources[:start])
        counts = self.row_sources[start:stop]
        parts = {name: getattr(self, name)[start:stop, :width] for name in ("inputs", "targets", "weights", "positions")}
        segments = None if self.segments is None else self.segments[start:stop, :width]
        return replace(self, **parts, segments=segments, sources=self.sources[first : first + sum(counts)], row_sources=counts)

    def to(self, device: str | torch.device) -> Batch:
        """The batch on another device."""
        parts = {name: getattr(self, name).to(device, non_blocking=True) for name in ("inputs", "targets", "weights", "positions")}
        return replace(self, **parts, segments=None if self.segments is None else self.segments.to(device, non_blocking=True))

    @property
    def count(self) -> float:
        """Sum of the weights: what a mean over the batch divides by."""
        return float(self.weights.sum(dtype=torch.float64))
