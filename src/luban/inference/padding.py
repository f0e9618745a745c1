"""Framed inputs as padded tensors, like lengths together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luban.models.base import Model
from luban.tokenizer.framing import Framed


@dataclass
class Padded:
    """Some of the inputs. ``numbers`` says which: row r is input ``numbers[r]``."""

    numbers: list[int]
    tokens: Tensor  # [rows, seq] int64
    segments: Tensor  # [rows, seq] int32, 0 and -1 for padding
    types: Tensor  # [rows, seq] int64

    def hidden(self, model: Model) -> Tensor:
        """[rows, seq, dim] what the model makes of them."""
        return model(self.tokens, segments=self.segments, types=self.types)

    def scores(self, model: Model, **extra: Tensor) -> Tensor:
        """What the model's head makes of them."""
        return model.scores(self.hidden(model), self.tokens, self.segments, extra)


def padded_batches(framed: Sequence[Framed], pad_id: int, rows: int, device: torch.device) -> Iterator[Padded]:
    """All inputs in batches of ``rows``, the longest first, so that too little memory shows at once."""
    order = sorted(range(len(framed)), key=lambda number: -len(framed[number].ids))
    for first in range(0, len(order), rows):
        numbers = order[first : first + rows]
        width = max(1, max(len(framed[number].ids) for number in numbers))
        tokens = torch.full((len(numbers), width), pad_id)
        segments = torch.full((len(numbers), width), -1, dtype=torch.int32)
        types = torch.zeros((len(numbers), width), dtype=torch.int64)
        for row, number in enumerate(numbers):
            size = len(framed[number].ids)
            tokens[row, :size] = torch.tensor(framed[number].ids)
            segments[row, :size] = 0
            types[row, :size] = torch.tensor(framed[number].types)
        yield Padded(numbers, tokens.to(device), segments.to(device), types.to(device))
