"""BitFit (Ben Zaken et al. 2022, arXiv:2106.10199): the biases alone.

What learns is an offset to each bias, which begins as zero: the same as learning the bias, but the base stays as it is, so that several such adapters
can take turns on it. Layers without a bias can be given one (``add``).

peft has no such method. adapter_config.json says ``luban_method: bitfit`` and ``add``; adapter_model.safetensors holds ``base_model.model.<layer>.offset``
[out] for each linear layer or norm, of recurrent layers ``base_model.model.<layer>.<bias_ih_l0 …>.offset``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luban.adapters.adapted import Layer, adapted_layers
from luban.adapters.cells import on_layer, parts
from luban.adapters.config import AdapterConfig, BitFitConfig
from luban.adapters.method import Method
from luban.adapters.targets import EXPERTS, is_linear, linear_layers
from luban.foundation.errors import ConfigError
from luban.models.base import Model
from luban.models.families import build_model
from luban.models.products import here

FLAGS = ("attention_bias", "feed_forward_bias")  # fields by which shapes say that linear layers have biases


class Offset(nn.Module):
    """An offset [out] to a layer's output."""

    def __init__(self, width: int):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(width))

    def first_values(self, generator: torch.Generator) -> None:
        """Nothing is drawn: all offsets begin as zero."""

    def changed(self, bias: Tensor) -> Tensor:
        return bias + self.offset

    def forward(self, beneath: Layer, layer: nn.Module, states: Tensor) -> Tensor:
        made = beneath(states)
        return made + here(self.offset).to(made.dtype)


class BitFit(Method):
    """Offsets to the trunk's biases."""

    config: BitFitConfig

    def attach(self, model: Model, seed: int) -> None:
        there = [place for place, module in model.named_modules() if has_bias(module) and _in_trunk(model, place)]
        add = not there if self.config.add == "auto" else self.config.add
        lacking = [place for place in linear_layers(model) if place not in there and not any(part in EXPERTS for part in place.split("."))] if add else []
        if not there and not lacking:
            raise ConfigError("adapter: {architecture} has no bias", "bitfit learns the biases alone", "set add: true, which gives its linear layers some", architecture=model.shape.architecture)
        for place in [*there, *lacking]:
            layer = model.get_submodule(place)
            self.put(model, place, on_layer(layer, lambda one: Offset(one.out_features if is_linear(one) else one.bias.shape[0]), begins="bias_"), seed)

    def settings(self, model: Model) -> dict[str, Any]:
        return {"add": self.config.add}

    @classmethod
    def from_settings(cls, plain: Mapping[str, Any]) -> AdapterConfig:
        return BitFitConfig(add=plain["add"])

    def merge(self, model: Model) -> None:
        self.make_room(model)
        super().merge(model)

    def make_room(self, *models: Model) -> None:
        lacking = [place for place, layer in adapted_layers(models[0], self.name).items() if not has_bias(layer)]
        for model in models if lacking else ():
            give_biases(model, lacking)

    def merge_layer(self, place: str, layer: nn.Module, adapter: nn.Module) -> None:
        if not has_bias(layer):
            raise ConfigError("an adapter of the method {method} cannot be merged here: {place} has no bias", "what it adds is no weight of the base", "serve it as an adapter", method="bitfit", place=place)
        for _, matrix, part in parts(layer, adapter):
            bias = matrix.weight if isinstance(layer, nn.RNNBase) else matrix.bias
            bias.data.add_(part.offset.detach().to(bias.dtype))


def has_bias(module: nn.Module) -> bool:
    """Whether a module adds a bias to what it gives: a linear layer, a norm or a recurrent layer that has one."""
    if isinstance(module, nn.RNNBase):
        return module.bias
    adds = is_linear(module) or "Norm" in type(module).__name__
    return adds and isinstance(getattr(module, "bias", None), nn.Parameter)


def _in_trunk(model: Model, place: str) -> bool:
    """Heads learn whole as it is, and a pooler belongs to them; what other adapters are made of is theirs."""
    return not model.is_output(f"{place}.bias") and not any(part in (*EXPERTS, "pooler", "adapters") for part in place.split("."))


def give_biases(model: Model, places: list[str]) -> None:
    """Give the layers at ``places`` a bias of zeros, and say so in the shape. ConfigError where the family has no such biases."""
    shape = model.shape
    for flag in FLAGS:
        if flag in type(shape).model_fields:
            try:
                shape = shape.updated(**{flag: True})
            except ConfigError:
                continue  # this family is without it
    with torch.device("meta"):
        fuller = build_model(shape)
    able = {place: module for place, module in fuller.named_modules() if has_bias(module)}
    for place in places:
        if place not in able:
            raise ConfigError("an adapter of the method {method} cannot be merged here: {place} has no bias", "what it adds is no weight of the base", "serve it as an adapter", method="bitfit", place=place)
    for place, module in able.items():
        if not has_bias(layer := model.get_submodule(place)):
            layer.bias = nn.Parameter(layer.weight.new_zeros(module.bias.shape), requires_grad=False)
    model.shape = shape
