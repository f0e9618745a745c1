"""Lion: the sign of a momentum. One state a parameter.

Chen et al. 2023, "Symbolic discovery of optimization algorithms", arXiv:2302.06675, program 1: the sign is taken of β1 m + (1 − β1) g, the momentum
itself follows with β2. Its rates are three to ten times smaller than AdamW's, its weight decay as much larger (section 5).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from luban.training.blocks import BlockOptimizer, Writer, flat_blocks, zeros_beside


class Lion(BlockOptimizer):
    """State: ``momentum``, 4 bytes a parameter."""

    def __init__(self, parameters: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def first_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"momentum": zeros_beside(parameter)}

    def move(self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        (first, second), rate = group["betas"], group["lr"]
        writer = Writer(parameter)
        for weights, slope, momentum in flat_blocks(parameter, gradient.contiguous(), state["momentum"]):
            slope = slope.to(momentum.dtype)
            values = writer.values(weights).mul_(1 - rate * group["weight_decay"])
            values.add_(momentum.lerp(slope, 1 - first).sign_(), alpha=-rate)
            momentum.lerp_(slope, 1 - second)
            writer.write(weights, values)
