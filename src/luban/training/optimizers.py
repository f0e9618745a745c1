"""Optimizers by name, what each parameter's learning rate is, and their state as named tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luban.foundation.errors import ConfigError
from luban.models.base import Model
from luban.parallel.layouts import placed
from luban.training.adafactor import Adafactor
from luban.training.adamw_8bit import AdamW8bit
from luban.training.config import OptimizerConfig
from luban.training.lion import Lion
from luban.training.muon import Muon
from luban.training.regularization import RegularizationConfig
from luban.training.sgd import SGD
from luban.training.state_files import StateFiles
from luban.training.untraced import AdamW

# Each from its groups (of "params", "peak", "weight_decay" and what is its own) and the config. AdamW: Loshchilov & Hutter, arXiv:1711.05101.
MAKERS: dict[str, Callable[[list[dict[str, Any]], OptimizerConfig], torch.optim.Optimizer]] = {
    "adamw": lambda groups, config: AdamW(groups, lr=0.0, betas=config.settled("betas"), eps=config.epsilon, fused=_fusible(groups)),
    "adamw_8bit": lambda groups, config: AdamW8bit(groups, lr=0.0, betas=config.settled("betas"), eps=config.epsilon),
    "adafactor": lambda groups, config: Adafactor(groups, lr=0.0, momentum=config.settled("momentum"), relative=config.relative_step),
    "lion": lambda groups, config: Lion(groups, lr=0.0, betas=config.settled("betas")),
    "muon": lambda groups, config: Muon(groups, lr=0.0, momentum=config.settled("momentum")),
    "sgd": lambda groups, config: SGD(groups, lr=0.0, momentum=config.settled("momentum"), nesterov=config.nesterov),
}
ROUNDING = ("adamw_8bit", "adafactor", "lion", "sgd")  # those that can write to weights in bfloat16: they round stochastically


def _fusible(groups: list[dict[str, Any]]) -> bool:
    return all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])


class Optimizers:
    """Torch optimizers that step together, with state addressed by parameter name. Weight decay acts on matrices only.

    As a rule there are one or two (Muon leaves some parameters to AdamW). With ``apart`` each parameter has one of its own and can be moved alone, by
    :meth:`step_one`: what an engine needs that uses a gradient as soon as it is there; with a folder for ``files`` their states then lie there.
    """

    def __init__(self, model: Model, config: OptimizerConfig, regularization: RegularizationConfig | None = None, apart: bool = False, files: Path | None = None):
        regularization = regularization or RegularizationConfig()
        if not model.staged:  # else it was frozen when it was whole
            freeze(model, regularization.freeze)
        self.names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not model.staged:
            require_learning(model)
        if config.name not in ROUNDING and any(parameter.dtype == torch.bfloat16 for parameter in self.names):
            raise ConfigError("optimizer.name: {name} cannot learn weights in bfloat16", "its changes are smaller than the distance of two neighbours there, and would be lost", "choose one that rounds stochastically: {known}; or set weights: float32", name=config.name, known=", ".join(ROUNDING))
        depths = layer_depths(model)
        top = model.depth + 1
        tables = {id(module.weight) for module in (model.embedding, *([] if model.head is not None and model.head.replaces_output else [model.output_layer()])) if module is not None}
        groups: dict[tuple[str, float, float, bool, Any], list[nn.Parameter]] = {}
        for parameter, name in self.names.items():
            depth = depths[name]
            share = regularization.layer_decay ** (top - depth) * (regularization.head_rate if depth == top and model.head is not None else 1.0)
            share *= getattr(parameter, "rate", 1.0)  # an adapter may want parts of it to learn faster
            table = id(parameter) in tables or (parameter.ndim == 2 and "embed" in name)
            name, rate = config.name, config.embedding_learning_rate if table else config.learning_rate
            if name == "muon":
                name, rate = ("muon", config.matrix_learning_rate) if parameter.ndim == 2 and not table else ("adamw", rate)
            decay = config.settled("weight_decay") if parameter.ndim >= 2 else 0.0
            mesh = getattr(parameter, "device_mesh", None)  # one kernel takes parameters that the same ranks hold
            groups.setdefault((name, rate * share, decay, name == "adamw_8bit" and _is_embedding(model, parameter), mesh), []).append(parameter)
        self.parts: list[torch.optim.Optimizer] = []
        self.part_of: dict[nn.Parameter, torch.optim.Optimizer] = {}
        for name in sorted({name for name, *_ in groups}):
            made = [_group(parameters, *key[:4]) for key, parameters in groups.items() if key[0] == name]
            alone = [{**group, "params": [parameter]} for group in made for parameter in group["params"]]
            self.parts += [MAKERS[name]([group], config) for group in alone] if apart else [MAKERS[name](made, config)]
        if apart:
            self.part_of = {part.param_groups[0]["params"][0]: part for part in self.parts}
        self.files = StateFiles(files) if files else None
        for parameter, part in self.part_of.items() if self.files else ():
            part.state[parameter] = self.files.hold(self.names[parameter], self.first_state(part, parameter, part.param_groups[0]))
        self.l1 = regularization.l1
        self.peak = config.matrix_learning_rate if config.name == "muon" else config.learning_rate  # the one shown in the log

    def step(self, factor: float) -> None:
        """One step at ``factor`` times each part's peak learning rate. The L1 penalty's gradient is added here, after clipping."""
        for parameter in self.names if self.l1 else ():
            self._penalise(parameter)
        for optimizer in self.parts:
            self._step(optimizer, factor)

    def step_one(self, parameter: nn.Parameter, factor: float) -> None:
        """:meth:`step` of one parameter; only where they are ``apart``."""
        if self.l1:
            self._penalise(parameter)
        self._step(self.part_of[parameter], factor)
        if self.files:
            self.files.release(self.names[parameter])

    def _penalise(self, parameter: nn.Parameter) -> None:
        if parameter.grad is not None and parameter.ndim >= 2:
            parameter.grad.add_(parameter.detach().sign(), alpha=self.l1)

    @staticmethod
    def _step(optimizer: torch.optim.Optimizer, factor: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.parts:
            optimizer.zero_grad(set_to_none=True)

    @staticmethod
    def first_state(part: torch.optim.Optimizer, parameter: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The state that a parameter of a group begins with, as its first step would make it."""
        if isinstance(part, torch.optim.AdamW):
            steps = torch.zeros((), device=parameter.device if part.defaults.get("fused") else None)
            return {"step": steps, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        return part.first_state(parameter.detach(), group)

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
            fused = optimizer.defaults.get("fused")
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    slots = by_name.get(self.names[parameter])
                    if slots and self.files:
                        for slot, value in slots.items():
                            optimizer.state[parameter][slot].copy_(value)
                        self.files.release(self.names[parameter])
                    elif slots:
                        optimizer.state[parameter] = {slot: placed(value, parameter) if value.ndim else _counter(value, parameter, fused) for slot, value in slots.items()}


def _counter(value: torch.Tensor, parameter: nn.Parameter, fused: bool | None) -> torch.Tensor:
    """A parameter's count of steps: a fused optimizer reads it on the parameter's device, the others on the host."""
    return value.to(parameter.device, copy=True) if fused else value.cpu().clone()


def _group(parameters: list[nn.Parameter], name: str, peak: float, decay: float, embedding: bool) -> dict[str, Any]:
    return {"params": parameters, "peak": peak, "weight_decay": decay, **({"bits": 32 if embedding else 8} if name == "adamw_8bit" else {})}


def layer_depths(model: Model) -> dict[str, int]:
    """Each parameter's place from the bottom: 0 embeddings, 1 … n the blocks, n+1 what stands above them."""
    blocks = {id(parameter): index + 1 for index, block in model.numbered_blocks() for parameter in block.parameters()}
    below = {id(parameter) for name, parameter in model.named_parameters() if "embed" in name or _is_embedding(model, parameter)}
    top = model.depth + 1
    return {name: blocks.get(id(parameter), 0 if id(parameter) in below else top) for name, parameter in model.named_parameters()}


def require_learning(model: Model) -> None:
    """ConfigError where nothing does."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("regularization.freeze leaves nothing that learns", "", "freeze less")


def _is_embedding(model: Model, parameter: nn.Parameter) -> bool:
    return model.embedding is not None and parameter is model.embedding.weight


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
                chosen = depth <= min(int(part[7:]), model.depth)
            else:
                chosen = part in name
            if chosen:
                parameter.requires_grad_(False)
                frozen += 1
        if not frozen:
            raise ConfigError("regularization.freeze: {part!r} names no parameter", "", "write embeddings, layers:N, trunk, or a part of a name such as {example}", part=part, example=next(iter(depths)))
