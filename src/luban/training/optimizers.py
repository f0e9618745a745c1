"""Optimizers by name, and their state as named tensors."""

from __future__ import annotations

import torch
from torch import nn

from luban.training.config import OptimizerConfig
from luban.training.muon import Muon


class Optimizers:
    """One or two torch optimizers that step together, with state addressed by parameter name.

    AdamW: Loshchilov & Hutter, arXiv 1711.05101. Muon: see muon.py. Weight decay acts on matrices only.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig):
        self.names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        embeddings = [p for p, name in self.names.items() if "embed" in name or "lm_head" in name]
        matrices = [p for p in self.names if p.ndim == 2 and all(p is not other for other in embeddings)]
        vectors = [p for p in self.names if p.ndim < 2]
        groups = [(embeddings, config.embedding_learning_rate, config.weight_decay), (vectors, config.learning_rate, 0.0)]
        if config.name == "adamw":
            groups.append((matrices, config.learning_rate, config.weight_decay))
        fused = all(p.device.type in ("cpu", "cuda") for p in self.names)
        adamw = [{"params": parameters, "peak": peak, "weight_decay": decay} for parameters, peak, decay in groups if parameters]
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(adamw, lr=0.0, betas=config.betas, eps=config.epsilon, fused=fused)]
        if config.name == "muon":
            muon = [{"params": matrices, "peak": config.matrix_learning_rate}]
            self.parts.append(Muon(muon, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay))
        self.peak = config.matrix_learning_rate if config.name == "muon" else config.learning_rate  # the one shown in the log

    def step(self, factor: float) -> None:
        """One step at ``factor`` times each part's peak learning rate."""
        for optimizer in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.parts:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, torch.Tensor]:
        """``parameter::slot`` to tensor, for every slot of every optimizer."""
        tensors = {}
        for optimizer in self.parts:
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
        for optimizer in self.parts:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if slots := by_name.get(self.names[parameter]):
                        optimizer.state[parameter] = {slot: value.to(parameter.device) if value.ndim else value.clone() for slot, value in slots.items()}
