"""Gradient descent with momentum, also Nesterov's (Sutskever et al. 2013), with decoupled weight decay (SGDW: Loshchilov & Hutter 2017, arXiv:1711.05101, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from luban.training.blocks import BlockOptimizer, Writer, flat_blocks, zeros_beside


class SGD(BlockOptimizer):
    """State: ``momentum``, 4 bytes a parameter, or nothing where the momentum is 0. As torch.optim.SGD without dampening; the decay is not part of the gradient."""

    def __init__(self, parameters: Iterable[Any], lr: float, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay})

    def first_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"momentum": zeros_beside(parameter)} if group["momentum"] else {}

    def move(self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        share, rate = group["momentum"], group["lr"]
        writer, gradient = Writer(parameter), gradient.contiguous()
        for weights, slope, *rest in flat_blocks(parameter, gradient, *state.values()):
            values = writer.values(weights).mul_(1 - rate * group["weight_decay"])
            slope = slope.to(values.dtype)
            if rest:
                (momentum,) = rest
                momentum.mul_(share).add_(slope)
                slope = slope.add(momentum, alpha=share) if group["nesterov"] else momentum
            values.add_(slope, alpha=-rate)
            writer.write(weights, values)
