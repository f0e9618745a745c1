"""Matrices that are held in bfloat16 and learn all the same, or stay as they are under an adapter: half the memory of float32, gradients in float32.

A product turns the matrix into the arithmetic of the states for as long as it lasts: float32, or under autocast what autocast says. So nothing but
the weights themselves is rounded, and the optimizer, which sees the gradient in float32, rounds what it writes stochastically (training/blocks.py).
Norms and biases stay in float32: they are few.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.foundation.errors import ConfigError
from luban.models.base import Model, named_generator
from luban.models.embedding import Embedding
from luban.models.families import AUTO, build_model, family_of
from luban.models.products import Workspace, gradient_memory, product, workspace_of
from luban.models.quantized_model import ROUTERS
from luban.models.shape_base import BaseShapeConfig
from luban.models.stored import Stored

NARROW = torch.bfloat16


class NarrowLinear(nn.Linear):
    """A linear layer whose matrix is held in a narrower type than its states."""

    def forward(self, states: Tensor) -> Tensor:
        return product(states, self.weight, self.bias)


class NarrowEmbedding(Embedding):
    """A table held in a narrower type, its vectors given in float32."""

    def forward(self, tokens: Tensor) -> Tensor:
        return _Rows.apply(self.weight, tokens)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        ctx.workspace = workspace_of(weight)
        return F.embedding(tokens, weight).float()  # [..., dim]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        tokens, weight = ctx.saved_tensors
        flat = gradient.reshape(-1, weight.shape[1]).float()  # [tokens, dim]
        return gradient_memory(weight, torch.float32, ctx.workspace).zero_().index_add_(0, tokens.reshape(-1), flat), None


KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: NarrowLinear, Embedding: NarrowEmbedding}


def _kind(name: str, module: nn.Module) -> type[nn.Module] | None:
    """The class that holds such a module's weight narrow; None for others, and for routers of experts: they are small, and a changed choice is a large error."""
    return None if name.rpartition(".")[2] in ROUTERS else KINDS.get(type(module), type(module) if type(module) in KINDS.values() else None)


def check_narrow(shape: BaseShapeConfig) -> None:
    """ConfigError where a family has matrices that are no linear layers or embeddings, or runs through transformers."""
    if family_of(shape.architecture) is AUTO:
        raise ConfigError("weights: bfloat16 is not known for {name}, which runs through transformers", "", "leave weights at float32, or choose one of Luban's own families", name=shape.architecture)
    with torch.device("meta"):
        model = build_model(shape)
    if others := _others(model):
        raise ConfigError(
            "weights: bfloat16 holds linear layers and embeddings, and {name} has other matrices: {example}", "", "leave weights at float32, or choose another family",
            name=shape.architecture, example=others[0],
        )  # fmt: skip


def _others(model: nn.Module) -> list[str]:
    known = {id(module.weight) for module in model.modules() if isinstance(module, tuple(KINDS))}
    return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2 and min(parameter.shape) > 1 and id(parameter) not in known]


@torch.no_grad()
def hold_narrow(model: Model) -> Model:
    """Hold the matrices of the linear layers and the embeddings in bfloat16, everything else in float32. The same model comes back.

    A matrix is rounded to nearest, and not at all where it is in bfloat16 already; tied matrices stay tied.
    """
    held: dict[int, nn.Parameter] = {}
    workspace = Workspace()
    kept = list(model.parameters())  # so that no id is used a second time
    for name, module in model.named_modules():
        if (kind := _kind(name, module)) is None:
            continue
        weight = module.weight
        if id(weight) not in held:
            held[id(weight)] = _learning(weight.to(NARROW), weight.requires_grad, workspace)
        module.weight = held[id(weight)]
        module.__class__ = kind  # in place, so that names and everything that hangs on the layer stay
    narrow = set(map(id, held.values()))
    for parameter in model.parameters():
        if id(parameter) not in narrow and parameter.is_floating_point() and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    del kept
    model.narrow = True
    return model


@torch.no_grad()
def round_matrices(model: Model) -> Model:
    """Give the matrices the numbers that :func:`hold_narrow` would hold, in the type that they are in: what an adapter that learned on those stands on."""
    for weight in {id(module.weight): module.weight for name, module in model.named_modules() if _kind(name, module)}.values():
        weight.copy_(weight.to(NARROW))
    return model


def read_rounded(stored: Stored) -> None:
    """Have a directory's matrices read as :func:`round_matrices` would make them, but for those that are held in fewer bits anyway."""
    for name, module in stored.model.named_modules():
        if _kind(name, module):
            stored.changes.setdefault(f"{name}.weight", _rounded)


def _rounded(weight: Tensor) -> Tensor:
    return weight.to(NARROW)


@torch.no_grad()
def new_narrow(shape: BaseShapeConfig, seed: int) -> Model:
    """A new model whose first values are drawn from ``seed``, one tensor at a time: the same as ``initialize(seed)`` and :func:`hold_narrow`, and the
    float32 model never exists."""
    with torch.device("meta"):
        model = build_model(shape)
    tables = {id(module.weight) for name, module in model.named_modules() if _kind(name, module)}
    # All memory that stays is taken first, so that what is drawn into leaves no holes in it.
    drawn = {id(parameter): nn.Parameter(torch.empty(parameter.shape, dtype=NARROW if id(parameter) in tables else torch.float32)) for parameter in model.parameters()}
    for name, parameter in model.named_parameters():
        value = torch.empty(parameter.shape)
        model.first_values(name, value, named_generator(seed, name))
        drawn[id(parameter)].copy_(value)
    for module in model.modules():
        for leaf, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) in drawn:
                module._parameters[leaf] = drawn[id(parameter)]
    return hold_narrow(model)


def place_narrow(model: Model, name: str, value: Tensor) -> bool:
    """For :func:`luban.models.huggingface.load_model` in bfloat16: what is no matrix goes in as float32."""
    if value.ndim >= 2 or not value.is_floating_point():
        return False
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(value.to(torch.float32, copy=True)))
    return True


def _learning(value: Tensor, learns: bool, workspace: Workspace) -> nn.Parameter:
    parameter = nn.Parameter(value, requires_grad=learns)
    parameter.workspace = workspace
    if learns:
        parameter.grad_dtype = torch.float32
    return parameter
