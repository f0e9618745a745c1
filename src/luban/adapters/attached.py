"""An adapter on a model: what learns, what stays, and what the training loop asks of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from luban.adapters.config import AdapterConfig
from luban.adapters.method import Method, method_of
from luban.foundation.errors import ConfigError
from luban.models.base import Model
from luban.tokenizer.tokenizer import Tokenizer


def attach(model: Model, config: AdapterConfig, seed: int, name: str = "default", tokenizer: Tokenizer | None = None) -> Method:
    """Put a new adapter on ``model``; of the base nothing learns but its new head and what ``also_train`` names. A prompt that begins as words needs the
    ``tokenizer``."""
    method = method_of(config, name)
    if tokenizer is not None:
        method.read_text(tokenizer)
    before = set(map(id, model.parameters()))
    whole = [*new_parts(model), *chosen_parts(model, config.also_train)]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    method.attach(model, seed)
    settle(model, method, whole, before)
    return method


def settle(model: Model, method: Method, whole: Sequence[str], before: set[int]) -> None:
    """Say on the model what it wears and which of its tensors stay as they are on disk."""
    whole = sorted(set(whole))
    for name in whole:
        model.get_parameter(name).requires_grad_(True)
    model.adapter, model.saved_whole = method, whole
    model.unchanging = frozenset(name for name, parameter in model.named_parameters() if id(parameter) in before and not parameter.requires_grad)


def new_parts(model: Model) -> list[str]:
    """Names of the weights that the base's directory does not hold: a new head's, and those drawn anew."""
    head = model.head
    made = [name for name, _ in model.named_parameters() if model.is_output(name)] if head is not None and head.replaces_output else []
    return [*made, *(name for name in model.fresh if name not in made and model.get_parameter(name).requires_grad)]  # a pooler that nobody reads stays


def chosen_parts(model: Model, wanted: Sequence[str]) -> list[str]:
    """Names of the weights that ``also_train`` names. ConfigError where a part names none."""
    found: list[str] = []
    norms = {f"{place}.{leaf}" for place, module in model.named_modules() if isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm") for leaf, _ in module.named_parameters(recurse=False)}
    for part in wanted:
        named = [name for name, parameter in model.named_parameters() if _chosen(part, name, parameter, model, norms)]
        if not named:
            raise ConfigError("adapter.also_train: {part!r} names no parameter", "", "write embeddings, output, norms, biases, or a part of a name such as {example}", part=part, example=next(model.named_parameters())[0])
        found += named
    return found


def _chosen(part: str, name: str, parameter: torch.Tensor, model: Model, norms: set[str]) -> bool:
    if part == "embeddings":
        return parameter is model.embedding.weight
    if part == "output":
        return parameter is model.output_weight
    if part == "norms":
        return name in norms
    if part == "biases":
        return name.rpartition(".")[2] == "bias"
    return part in name
