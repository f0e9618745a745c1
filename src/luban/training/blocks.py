"""Base of the optimizers written here: one parameter at a time, in blocks that stay in the processor's cache; weights in bfloat16 are rounded stochastically.

A block of a quarter of a million numbers goes through all of an update's operations before the next is fetched from memory, so that the update of a large model costs about as
many passes over memory as a fused kernel would make. Optimizer states of narrow weights are float32, or what the optimizer says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from luban.parallel.layouts import local, spread
from luban.training.untraced import Untraced

BLOCK = 1 << 18  # numbers: a mebibyte in float32, half of a core's second-level cache on current servers
DEVICE_BLOCK = 1 << 26


class BlockOptimizer(Untraced, torch.optim.Optimizer):
    """A subclass says with what state a parameter begins, and how it moves. Of one that is held in shards each process moves its own."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state.update({slot: spread(value, parameter) for slot, value in self.first_state(local(parameter), group).items()})
                    self.move(local(parameter), local(parameter.grad), {slot: local(value) for slot, value in state.items()}, group)

    def first_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """What is kept of a parameter between steps, before the first."""
        raise NotImplementedError

    def move(self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Change the parameter in place by its gradient, and its state with it, in place too."""
        raise NotImplementedError


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type to compute an update of such weights in."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def zeros_beside(parameter: Tensor) -> Tensor:
    """A state of the parameter's shape, in float32 where the weights are narrower."""
    return torch.zeros_like(parameter, dtype=wide(parameter.dtype), memory_format=torch.contiguous_format)


def no_steps() -> Tensor:
    """The count of a parameter's steps before the first. On the processor, so that reading it waits for nothing."""
    return torch.tensor(0.0)


def count_step(state: dict[str, Tensor]) -> int:
    """Steps of this parameter, this one included."""
    state["step"] += 1
    return int(state["step"])


def row_blocks(parameter: Tensor) -> Iterator[slice]:
    """Slices of the first dimension with about a block's numbers each."""
    row = max(1, parameter[0].numel()) if parameter.ndim and len(parameter) else 1
    rows = max(1, (BLOCK if parameter.device.type == "cpu" else DEVICE_BLOCK) // row)
    return (slice(start, start + rows) for start in range(0, len(parameter), rows))


def flat_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same stretches of several tensors of one shape, as flat views into them."""
    flat = [tensor.view(-1) for tensor in tensors]
    size = BLOCK if flat[0].device.type == "cpu" else DEVICE_BLOCK
    return zip(*(one.split(size) for one in flat), strict=True)


class Writer:
    """Adds changes to one parameter's weights, block by block.

    Where weights are in bfloat16 a sum is rounded up or down at random, to either neighbour with the probability that leaves its mean where it was, so that changes far
    below the distance of two neighbours are not lost (Gupta et al. 2015, arXiv:1502.02551; Zamirai et al. 2020, arXiv:2010.06192): random bits are added below the
    last bit that stays, and cut off. They are drawn once for a parameter and step from torch's generator, and turned by a random word for each block, so that any two
    numbers of a parameter are rounded independently. A device draws them itself.
    """

    def __init__(self, weights: Tensor):
        if weights.dtype not in (torch.float32, torch.float64, torch.bfloat16):
            raise ValueError(f"weights of type {weights.dtype} cannot be rounded stochastically")
        self.narrow = weights.dtype == torch.bfloat16
        self.bits: Tensor | None = None
        self.device = weights.device

    def values(self, block: Tensor) -> Tensor:
        """The block's weights in the type that updates are computed in: the weights themselves, or a copy."""
        return block.float() if self.narrow else block

    def write(self, block: Tensor, values: Tensor) -> None:
        """Put what :meth:`values` gave, changed in place, back into the weights."""
        if not self.narrow:
            return
        bits = values.view(torch.int32)
        bits.add_(self._noise(values.numel()).view(values.shape)).bitwise_and_(-65536)
        block.copy_(values)

    def _noise(self, size: int) -> Tensor:
        """Integers from 0 to 65,535, all equally likely, [size]."""
        if self.bits is None or len(self.bits) < size:
            words = torch.empty(-(-max(size, 1) // 4), dtype=torch.int64, device=self.device).random_(-(2**63), None)
            self.bits = words.view(torch.int16).to(torch.int32) & 65535
        word = int(torch.randint(65536, ()))
        return self.bits[:size] ^ word
