"""(IA)³ (Liu et al. 2022, arXiv:2205.05638): learned factors for keys, values and the inside of the feed-forward layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luban.adapters.adapted import Layer, adapted_layers
from luban.adapters.cells import on_layer, parts
from luban.adapters.config import AdapterConfig, IA3Config
from luban.adapters.method import Method
from luban.adapters.places import named, places_of
from luban.adapters.targets import EXPERTS, add_to_weight, find_targets, full_weight, has_matrices, saved_targets, shortest_ends, stored_transposed
from luban.foundation.errors import ConfigError
from luban.models.base import Model
from luban.models.products import here


class Factors(nn.Module):
    """A factor for each output of a layer [out, 1], or (``inside``) for each input [1, in]."""

    def __init__(self, inputs: int, outputs: int, inside: bool):
        super().__init__()
        self.ia3_l = nn.Parameter(torch.ones((1, inputs) if inside else (outputs, 1)))
        self.inside = inside

    def first_values(self, generator: torch.Generator) -> None:
        """Nothing is drawn: all factors begin as one."""

    def changed(self, weight: Tensor) -> Tensor:
        return weight * self.ia3_l

    def forward(self, beneath: Layer, layer: nn.Module, states: Tensor) -> Tensor:
        factors = here(self.ia3_l).flatten().to(states.dtype)
        return beneath(states * factors) if self.inside else beneath(states) * factors


class IA3(Method):
    """Factors on linear layers; in a recurrent layer on what its matrices make."""

    peft_type = "IA3"
    config: IA3Config

    def attach(self, model: Model, seed: int) -> None:
        places = self._targets(model)
        inside = self._inside(model, places)
        for place in places:
            made = on_layer(model.get_submodule(place), lambda layer, place=place: Factors(layer.in_features, layer.out_features, place in inside))
            self.put(model, place, made, seed)

    def _targets(self, model: Model) -> list[str]:
        known = places_of(model)
        if self.config.targets != "auto" or not known.keys_values:
            return find_targets(model, self.config.targets)
        found = [place for place, module in named(model, f"{known.keys_values}|{known.inner}") if has_matrices(module) and not any(part in EXPERTS for part in place.split("."))]
        if not any(place in found for place, _ in named(model, known.keys_values)):
            raise ConfigError("adapter.targets: keys and values of {architecture} are not known", "Luban does not know the names of its layers", "name them as targets, and the last matrix of each feed-forward layer as feed_forward", architecture=getattr(model.shape, "model_type", model.shape.architecture))
        return found

    def _inside(self, model: Model, places: list[str]) -> set[str]:
        """Those of the targets whose inputs are scaled."""
        ends = self.config.feed_forward
        if ends == "auto":
            inner = places_of(model).inner
            return {place for place in places if inner and re.fullmatch(rf"(^|.*\.)({inner})", place)}
        for end in ends:
            if not any(place == end or place.endswith(f".{end}") for place in places):
                raise ConfigError("adapter.feed_forward: {end!r} names none of the targets", "it says whose input is scaled rather than their output", "name it in targets too", end=end)
        return {place for place in places if any(place == end or place.endswith(f".{end}") for end in ends)}

    def settings(self, model: Model) -> dict[str, Any]:
        layers = adapted_layers(model, self.name)
        inside = [place for place, layer in layers.items() if getattr(layer.adapters[self.name], "inside", False)]
        outside = [place for place in layers if place not in inside]
        ends = shortest_ends(inside, model)
        if any(place.endswith(end) for place in outside for end in ends):  # peft compares these without the dot before
            ends = inside
        transposed = any(stored_transposed(layer) for layer in layers.values())
        return {"target_modules": sorted({*shortest_ends(outside, model), *ends}), "feedforward_modules": ends, "fan_in_fan_out": transposed, "init_ia3_weights": True}

    @classmethod
    def from_settings(cls, plain: Mapping[str, Any]) -> AdapterConfig:
        return IA3Config(targets=saved_targets(plain), feed_forward=saved_targets(plain, "feedforward_modules"))

    def merge_layer(self, place: str, layer: nn.Module, adapter: nn.Module) -> None:
        for _, matrix, part in parts(layer, adapter):
            with torch.no_grad():
                weight = full_weight(matrix)
                add_to_weight(matrix, part.changed(weight) - weight)
                if matrix.bias is not None and not part.inside:
                    matrix.bias.mul_(part.ia3_l.flatten())
