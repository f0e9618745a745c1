"""Muon: momentum whose matrices are orthogonalised before they are applied.

Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. torch.optim.Muon does the same one
matrix at a time and always in bfloat16, which processors without bfloat16 units run some ten times slower; here equal
shapes are orthogonalised together, in float32 on processors and bfloat16 on GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from luban.parallel.layouts import placed, whole
from luban.training.untraced import Untraced

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration that brings singular values near 1 fastest


class Muon(Untraced, torch.optim.Optimizer):
    """For 2-D weights of hidden layers. The update of a [rows, columns] matrix is scaled by sqrt(max(1, rows / columns))."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0, iterations: int = 5):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "iterations": iterations})

    def first_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """What is kept of a matrix between steps, before the first."""
        return {"momentum": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter].update(self.first_state(parameter, group))
            gradients, momenta = [parameter.grad for parameter in parameters], [self.state[parameter]["momentum"] for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
            by_shape: dict[torch.Size, list[int]] = {}
            for number, parameter in enumerate(parameters):
                by_shape.setdefault(parameter.shape, []).append(number)
            for shape, numbers in by_shape.items():
                updates = orthogonalise(torch.stack([whole(nesterov[number]) for number in numbers]), group["iterations"])  # of matrices in shards on every rank
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                moved = [parameters[number] for number in numbers]
                if decay := group["lr"] * group["weight_decay"]:
                    torch._foreach_mul_(moved, 1 - decay)
                torch._foreach_add_(moved, [placed(update.to(parameter.dtype), parameter) for update, parameter in zip(updates, moved, strict=True)], alpha=-group["lr"] * scale)


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Bring all singular values of each of ``matrices`` [n, rows, columns] near 1 (0.7 to 1.2), keeping the singular vectors."""
    a, b, c = COEFFICIENTS
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT  # [n, rows, rows]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
