"""VeRA (Kopiczko et al. 2024, arXiv:2310.11454): one pair of random matrices for all layers, which stay as they are, and two learned vectors a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.adapters.adapted import Layer, adapted_layers
from luban.adapters.cells import on_layer, parts
from luban.adapters.config import AdapterConfig, VeraConfig
from luban.adapters.method import Method
from luban.adapters.targets import add_to_weight, find_targets, saved_targets, shortest_ends, stored_transposed
from luban.models.base import Model
from luban.models.products import here

SHARED = {"vera_A": "base_model.vera_A", "vera_B": "base_model.vera_B"}  # names in the file


class Projections(nn.Module):
    """The matrices A [rank, widest input] and B [widest output, rank]; a layer uses the part that fits it. Uniform with He's variance, as peft draws them from the same seed."""

    def __init__(self, inputs: int, outputs: int, rank: int, seed: int):
        super().__init__()
        self.seed = seed
        for name, size in (("vera_A", (rank, inputs)), ("vera_B", (outputs, rank))):
            self.register_buffer(name, torch.empty(size), persistent=False)
        self.draw()

    def draw(self) -> None:
        """Their values, from the seed."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        for matrix in (self.vera_A, self.vera_B):
            bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(matrix.shape[1]))
            matrix.copy_(torch.empty(matrix.shape).uniform_(-bound, bound, generator=generator))


class Scales(nn.Module):
    """``diag(b) · B · diag(d) · A`` beside a weight."""

    def __init__(self, inputs: int, outputs: int, shared: Projections, first: float, dropout: float):
        super().__init__()
        self.vera_lambda_d = nn.Parameter(torch.full((shared.vera_A.shape[0],), first))
        self.vera_lambda_b = nn.Parameter(torch.zeros(outputs))
        self.shared, self.inputs, self.outputs = shared, slice(0, inputs), slice(0, outputs)  # what of the shared matrices is the layer's
        self.dropout = nn.Dropout(dropout)

    def first_values(self, generator: torch.Generator) -> None:
        """Nothing is drawn: the vectors begin as constants, the matrices come from their own seed."""

    def product(self) -> Tensor:
        """[out, in] what stands beside the weight."""
        a, b = self.shared.vera_A[:, self.inputs], self.shared.vera_B[self.outputs]
        return (self.vera_lambda_b[:, None] * b) @ (self.vera_lambda_d[:, None] * a)

    def changed(self, weight: Tensor) -> Tensor:
        return weight + self.product() * self.dropout(weight.new_ones(weight.shape[1]))

    def change(self, states: Tensor) -> Tensor:
        """What is added to the layer's output [..., out] for [..., in]."""
        inner = self.vera_lambda_d * F.linear(self.dropout(states), self.shared.vera_A[:, self.inputs])  # [..., rank]
        return here(self.vera_lambda_b) * F.linear(inner, self.shared.vera_B[self.outputs])

    def forward(self, beneath: Layer, layer: nn.Module, states: Tensor) -> Tensor:
        return beneath(states) + self.change(states)


class Vera(Method):
    """Learned vectors on linear layers, and the matrices that they share."""

    peft_type = "VERA"
    config: VeraConfig

    def attach(self, model: Model, seed: int) -> None:
        config = self.config
        places = find_targets(model, config.targets)
        sizes: list[tuple[int, int]] = []
        for place in places:
            on_layer(model.get_submodule(place), lambda layer: sizes.append((layer.in_features, layer.out_features)) or nn.Identity())
        shared = Projections(max(size[0] for size in sizes), max(size[1] for size in sizes), config.rank, config.projection_seed)
        for place in places:
            made = on_layer(model.get_submodule(place), lambda layer: Scales(layer.in_features, layer.out_features, shared, config.initial, config.dropout))
            self.put(model, place, made, seed)

    def settings(self, model: Model) -> dict[str, Any]:
        places, config = list(adapted_layers(model, self.name)), self.config
        return {
            "r": config.rank, "projection_prng_key": config.projection_seed, "save_projection": True, "vera_dropout": config.dropout, "d_initial": config.initial, "bias": "none",
            "target_modules": shortest_ends(places, model), "fan_in_fan_out": any(stored_transposed(model.get_submodule(place)) for place in places), "init_weights": True,
        }  # fmt: skip

    @classmethod
    def from_settings(cls, plain: Mapping[str, Any]) -> AdapterConfig:
        return VeraConfig(
            rank=plain["r"], initial=plain.get("d_initial") or 0.1, projection_seed=plain.get("projection_prng_key") or 0, dropout=plain.get("vera_dropout") or 0.0,
            targets=saved_targets(plain),
        )  # fmt: skip

    def tensors(self, model: Model) -> dict[str, Tensor]:
        shared = self._shared(model)
        return super().tensors(model) | {key: getattr(shared, name) for name, key in SHARED.items()}

    def load(self, model: Model, tensors: Mapping[str, Tensor]) -> set[str]:
        """Files without the matrices (peft's save_projection: false) are those of their seed."""
        used, shared = super().load(model, tensors), self._shared(model)
        return used | {self.read(tensors, key, getattr(shared, name)) for name, key in SHARED.items() if key in tensors}

    def fill(self, place: str, adapter: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().fill(place, adapter, tensors)
        shared = next(module for module in adapter.modules() if isinstance(module, Projections))
        shared.draw()
        for name, key in SHARED.items():
            if key in tensors:
                self.read(tensors, key, getattr(shared, name))

    def _shared(self, model: Model) -> Projections:
        layer = next(iter(adapted_layers(model, self.name).values()))
        return parts(layer, layer.adapters[self.name])[0][2].shared

    def merge_layer(self, place: str, layer: nn.Module, adapter: nn.Module) -> None:
        for _, matrix, part in parts(layer, adapter):
            with torch.no_grad():
                add_to_weight(matrix, part.product())
