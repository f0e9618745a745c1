"""Optimizers by name, what each parameter's learning rate is, and their state as named tensors."""

from __future__ import annotations

import torch
from torch import nn

from luban.foundation.errors import ConfigError
from luban.models.base import Model
from luban.training.config import OptimizerConfig
from luban.training.muon import Muon
from luban.training.regularization import RegularizationConfig


class Optimizers:
    """One or two torch optimizers that step together, with state addressed by parameter name.

    AdamW: Loshchilov & Hutter, arXiv 1711.05101. Muon: see muon.py. Weight decay acts on matrices only.
    """

    def __init__(self, model: Model, config: OptimizerConfig, regularization: RegularizationConfig | None = None):
        regularization = regularization or RegularizationConfig()
        freeze(model, regularization.freeze)
        self.names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not self.names:
            raise ConfigError("regularization.freeze leaves nothing that learns", "", "freeze less")
        depths = layer_depths(model)
        top = len(model.blocks()) + 1
        tables = {id(model.embedding.weight), *([] if model.head is not None and model.head.replaces_output else [id(model.output_weight)])}
        adamw: dict[tuple[float, float], list[nn.Parameter]] = {}
        muon: dict[float, list[nn.Parameter]] = {}
        for parameter, name in self.names.items():
            depth = depths[name]
            share = regularization.layer_decay ** (top - depth) * (regularization.head_rate if depth == top and model.head is not None else 1.0)
            share *= getattr(parameter, "rate", 1.0)  # an adapter may want parts of it to learn faster
            table = id(parameter) in tables or (parameter.ndim == 2 and "embed" in name)
            if config.name == "muon" and parameter.ndim == 2 and not table:
                muon.setdefault(config.matrix_learning_rate * share, []).append(parameter)
                continue
            rate = config.embedding_learning_rate if table else config.learning_rate
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            adamw.setdefault((rate * share, decay), []).append(parameter)
        self.parts: list[torch.optim.Optimizer] = []
        if adamw:
            fused = all(p.device.type in ("cpu", "cuda") for p in self.names)
            groups = [{"params": parameters, "peak": peak, "weight_decay": decay} for (peak, decay), parameters in adamw.items()]
            self.parts.append(torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.epsilon, fused=fused))
        if muon:
            groups = [{"params": parameters, "peak": peak} for peak, parameters in muon.items()]
            self.parts.append(Muon(groups, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay))
        self.l1 = regularization.l1
        self.peak = config.matrix_learning_rate if config.name == "muon" else config.learning_rate  # the one shown in the log

    def step(self, factor: float) -> None:
        """One step at ``factor`` times each part's peak learning rate. The L1 penalty's gradient is added here, after clipping."""
        if self.l1:
            for parameter in self.names:
                if parameter.grad is not None and parameter.ndim >= 2:
                    parameter.grad.add_(parameter.detach().sign(), alpha=self.l1)
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
        """Put back what :meth:`state` gave. A parameter that was frozen then has none."""
        by_name: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            name, _, slot = key.partition("::")
            by_name.setdefault(name, {})[slot] = value
        for optimizer in self.parts:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if slots := by_name.get(self.names[parameter]):
                        optimizer.state[parameter] = {slot: value.to(parameter.device) if value.ndim else value.clone() for slot, value in slots.items()}


def layer_depths(model: Model) -> dict[str, int]:
    """Each parameter's place from the bottom: 0 embeddings, 1 … n the blocks, n+1 what stands above them."""
    blocks = {id(parameter): index + 1 for index, block in enumerate(model.blocks()) for parameter in block.parameters()}
    below = {id(parameter) for name, parameter in model.named_parameters() if "embed" in name or parameter is model.embedding.weight}
    top = len(model.blocks()) + 1
    return {name: blocks.get(id(parameter), 0 if id(parameter) in below else top) for name, parameter in model.named_parameters()}


def freeze(model: Model, parts: list[str]) -> None:
    """Stop what ``parts`` names from learning: embeddings, layers:N, trunk, or a part of a name. ConfigError when a part names nothing."""
    depths = layer_depths(model)
    for part in parts:
        frozen = 0
        for name, parameter in model.named_parameters():
            depth = depths[name]
            if part == "trunk":
                chosen = not model.is_output(name)
            elif part == "embeddings":
                chosen = depth == 0
            elif part.startswith("layers:") and part[7:].isdigit():
                chosen = depth <= min(int(part[7:]), len(model.blocks()))
            else:
                chosen = part in name
            if chosen:
                parameter.requires_grad_(False)
                frozen += 1
        if not frozen:
            raise ConfigError("regularization.freeze: {part!r} names no parameter", "", "write embeddings, layers:N, trunk, or a part of a name such as {example}", part=part, example=next(iter(depths)))
