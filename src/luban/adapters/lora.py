"""LoRA and what was made of it: rsLoRA, DoRA, LoRA+, PiSSA. Papers are named in config.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luban.adapters.adapted import Layer, adapted_layers
from luban.adapters.cells import on_layer, parts
from luban.adapters.config import AdapterConfig, LoraConfig
from luban.adapters.method import Method
from luban.adapters.targets import add_to_weight, find_targets, full_weight, saved_targets, shortest_ends, stored_transposed
from luban.foundation.errors import ConfigError, DataError
from luban.models.base import Model
from luban.models.products import here


class LoraProduct(nn.Module):
    """``scale · B · A`` beside a weight: A [rank, in], B [out, rank]."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float, dropout: float = 0.0):
        super().__init__()
        self.lora_A = nn.Linear(inputs, rank, bias=False)
        self.lora_B = nn.Linear(rank, outputs, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.scale = scale

    def first_values(self, generator: torch.Generator) -> None:
        """A as a linear layer begins, B zero: the product is nothing."""
        with torch.no_grad():
            bound = self.lora_A.in_features**-0.5
            self.lora_A.weight.copy_(torch.empty(self.lora_A.weight.shape).uniform_(-bound, bound, generator=generator))
            self.lora_B.weight.zero_()

    def product(self) -> Tensor:
        """[out, in] what stands beside the weight."""
        return self.scale * (here(self.lora_B.weight) @ here(self.lora_A.weight))

    def change(self, states: Tensor) -> Tensor:
        """What is added to the layer's output [..., out] for [..., in]."""
        return self.lora_B(self.lora_A(self.dropout(states)) * self.scale)

    def changed(self, weight: Tensor) -> Tensor:
        """A recurrent layer's matrix [out, in] with the product in it; dropout takes whole inputs, for all steps alike."""
        kept = self.dropout(weight.new_ones(weight.shape[1]))
        return weight + self.scale * (self.lora_B.weight @ (self.lora_A.weight * kept))

    def forward(self, beneath: Layer, layer: nn.Module, states: Tensor) -> Tensor:
        return beneath(states) + self.change(states)


class DoraProduct(LoraProduct):
    """The sum of weight and product with each output's length learned by itself. The length that divides is taken without gradient, as in the paper (section 4.3)."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float, dropout: float = 0.0):
        super().__init__(inputs, outputs, rank, scale, dropout)
        self.lora_magnitude_vector = nn.Parameter(torch.ones(outputs))

    def lengths(self, layer: nn.Module) -> Tensor:
        """[out] the lengths of the rows of weight and product together."""
        with torch.no_grad():
            weight = full_weight(layer)  # of a quantised layer this is work: once
            return torch.linalg.vector_norm(weight + self.product().to(weight.dtype), dim=1)

    def changed(self, weight: Tensor) -> Tensor:
        sum_of_both = super().changed(weight)
        return sum_of_both * (self.lora_magnitude_vector / torch.linalg.vector_norm(sum_of_both.detach(), dim=1))[:, None]

    def forward(self, beneath: Layer, layer: nn.Module, states: Tensor) -> Tensor:
        factors = (here(self.lora_magnitude_vector) / self.lengths(layer)).to(states.dtype)
        plain, bias = beneath(states), None if layer.bias is None else here(layer.bias)
        if bias is not None:
            plain = plain - bias
        scaled = (plain + self.change(states)) * factors
        return scaled if bias is None else scaled + bias


class Lora(Method):
    """Thin products on linear layers."""

    peft_type = "LORA"
    config: LoraConfig

    def attach(self, model: Model, seed: int) -> None:
        config = self.config
        for place in find_targets(model, config.targets):
            layer = model.get_submodule(place)
            made = on_layer(layer, self._product)
            self.put(model, place, made, seed)
            for _, matrix, part in parts(layer, made):
                if config.starts_with_pissa:
                    take_directions(place, matrix, part, seed)
                if config.decomposed:
                    with torch.no_grad():
                        part.lora_magnitude_vector.copy_(part.lengths(matrix))
                part.lora_B.weight.rate = config.rate_of_b

    def _product(self, layer: Any) -> LoraProduct:
        config = self.config
        return (DoraProduct if config.decomposed else LoraProduct)(layer.in_features, layer.out_features, config.rank, config.scale, config.dropout)

    def as_saved(self) -> Lora:
        """PiSSA's adapter is saved as one of twice the rank on the base as it lies on disk."""
        config = self.config
        if not config.starts_with_pissa:
            return self
        rank = 2 * config.rank
        return Lora(config.updated(initial="zero", rank=rank, alpha=config.scale * (rank**0.5 if config.stabilized else rank)), self.name)

    def detach(self, model: Model) -> None:
        for layer in adapted_layers(model, self.name).values():
            for _, matrix, part in parts(layer, layer.adapters[self.name]):
                if (first := getattr(part, "taken", None)) is not None:
                    add_to_weight(matrix, first[1] @ first[0] * self.config.scale)
        super().detach(model)

    def settings(self, model: Model) -> dict[str, Any]:
        places, config = list(adapted_layers(model, self.name)), self.config
        doubled = 2 if config.starts_with_pissa else 1  # see tensors
        rank = config.rank * doubled
        return {
            "r": rank, "lora_alpha": config.scale * (rank**0.5 if config.stabilized else rank), "lora_dropout": config.dropout, "use_rslora": config.stabilized, "use_dora": config.decomposed,
            "target_modules": shortest_ends(places, model), "fan_in_fan_out": any(stored_transposed(model.get_submodule(place)) for place in places), "bias": "none", "init_lora_weights": True,
        }  # fmt: skip

    @classmethod
    def from_settings(cls, plain: Mapping[str, Any]) -> AdapterConfig:
        for name, usual in {"rank_pattern": {}, "alpha_pattern": {}, "layer_replication": None, "lora_bias": False, "target_parameters": None, "use_bdlora": None, "arrow_config": None, "kasa_config": None, "alora_invocation_tokens": None}.items():
            if plain.get(name) not in (usual, None):
                raise DataError("adapter_config.json: {name} is not known to Luban", "it changes what the adapter computes", "merge it with peft (merge_and_unload) and open the merged model", name=name)
        if (first := str(plain.get("init_lora_weights", True)).lower()).startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
            raise DataError("adapter_config.json: init_lora_weights is {first}", "such an adapter fits a base whose weights were changed, which is not the one on disk", "save it with peft's path_initial_model_for_weight_conversion", first=first)
        return LoraConfig(
            method="rslora" if plain.get("use_rslora") else "dora" if plain.get("use_dora") else "lora",
            rank=plain["r"], alpha=plain.get("lora_alpha") or 8, dropout=plain.get("lora_dropout") or 0.0, rank_stabilized=bool(plain.get("use_rslora")), weight_decomposed=bool(plain.get("use_dora")),
            targets=saved_targets(plain), initial="zero",
        )  # fmt: skip

    def tensors(self, model: Model) -> dict[str, Tensor]:
        """peft's names. What PiSSA took out of the weights is written as a second product with the opposite sign, [B, B₀]·[A; −A₀], so that the adapter fits the base as it lies on disk."""
        found = super().tensors(model)
        for place, layer in adapted_layers(model, self.name).items():
            for begin, _, part in parts(layer, layer.adapters[self.name]):
                if (first := getattr(part, "taken", None)) is not None:
                    prefix = f"base_model.model.{place}.{begin}"
                    found[f"{prefix}lora_A.weight"] = torch.cat([found[f"{prefix}lora_A.weight"], -first[0].to(found[f"{prefix}lora_A.weight"])])
                    found[f"{prefix}lora_B.weight"] = torch.cat([found[f"{prefix}lora_B.weight"], first[1].to(found[f"{prefix}lora_B.weight"])], 1)
        return found

    def merge_layer(self, place: str, layer: nn.Module, adapter: nn.Module) -> None:
        for _, matrix, part in parts(layer, adapter):
            if not isinstance(part, DoraProduct):
                add_to_weight(matrix, part.product())
                part.taken = None
                continue
            weight = full_weight(matrix)
            add_to_weight(matrix, (weight + part.product()) * (part.lora_magnitude_vector / part.lengths(matrix))[:, None] - weight)


def take_directions(place: str, layer: Any, made: LoraProduct, seed: int) -> None:
    """Begin with the weight's ``rank`` largest singular directions, and take them out of the weight (PiSSA, with a randomised decomposition)."""
    if hasattr(layer, "dequantized"):
        raise ConfigError("pissa needs a base in floating point", "it changes the base's weights, which would have to be rounded again", "use lora on a quantised base")
    rank = len(made.lora_A.weight)
    if rank > min(layer.in_features, layer.out_features):
        raise ConfigError("adapter.rank: {rank} is more than {place} has directions", "it is [{outputs}, {inputs}]", "choose a smaller rank", rank=rank, place=place, outputs=layer.out_features, inputs=layer.in_features)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the randomised decomposition's first guess
        left, values, right = torch.svd_lowrank(full_weight(layer).float(), q=min(rank + 8, min(layer.in_features, layer.out_features)), niter=8)
    root = (values[:rank] / made.scale).sqrt()
    with torch.no_grad():
        made.lora_A.weight.copy_(root[:, None] * right[:, :rank].t())
        made.lora_B.weight.copy_(left[:, :rank] * root)
    made.taken = (made.lora_A.weight.detach().clone(), made.lora_B.weight.detach().clone())
    add_to_weight(layer, -made.product().detach())

