"""Optimizers by name, and their state as named tensors."""

from __future__ import annotations

import torch
from torch import nn

from luban.training.config import OptimizerConfig


class Optimizers:
    """One or two torch optimizers that step together, with state addressed by parameter name.

    AdamW: Loshchilov & Hutter, arXiv 1711.05101. Muon: Jordan et al. 2024, torch.optim.Muon, with Moonlight's
    scaling of the update (arXiv 2502.16982), so that its rates are AdamW's.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig):
        self.names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        matrices = [p for p, name in self.names.items() if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
        by_muon = set(matrices) if config.name == "muon" else set()
        rest = [p for p in self.names if p not in by_muon]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        fused = all(p.device.type in ("cpu", "cuda") for p in rest)
        self.parts: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=config.betas, eps=config.epsilon, fused=fused), config.learning_rate)
        ]
        if by_muon:
            muon = torch.optim.Muon(matrices, lr=0.0, weight_decay=config.weight_decay, momentum=config.momentum, adjust_lr_fn="match_rms_adamw")
            self.parts.append((muon, config.matrix_learning_rate))

    @property
    def peak(self) -> float:
        """The peak learning rate shown in the log: the matrices' one where Muon has them."""
        return self.parts[-1][1]

    def step(self, factor: float) -> None:
        """One step at ``factor`` times each part's peak learning rate."""
        for optimizer, peak in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer, _ in self.parts:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, torch.Tensor]:
        """``parameter::slot`` to tensor, for every slot of every optimizer."""
        tensors = {}
        for optimizer, _ in self.parts:
            for parameter, slots in optimizer.state.items():
                for slot, value in slots.items():
                    tensors[f"{self.names[parameter]}::{slot}"] = value if torch.is_tensor(value) else torch.tensor(value)
        return tensors

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put back what :meth:`state` gave. KeyError when a parameter's state is missing."""
        by_name: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            name, _, slot = key.partition("::")
            by_name.setdefault(name, {})[slot] = value
        for optimizer, _ in self.parts:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if slots := by_name.get(self.names[parameter]):
                        optimizer.state[parameter] = {slot: value.to(parameter.device) if value.ndim else value.clone() for slot, value in slots.items()}
