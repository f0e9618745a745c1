"""Which layers an adapter sits on, and how their names are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from luban.foundation.errors import ConfigError, DataError
from luban.models.base import Model
from luban.models.products import here

EXPERTS = ("experts", "gate", "shared_expert_gate")  # parts of names: routers choose, and of experts only some see a token


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a matrix from ``in_features`` to ``out_features``: dense, GPT-2's Conv1D, or quantised."""
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def has_matrices(module: nn.Module) -> bool:
    """Whether an adapter of matrices can sit on a module: a linear layer, or a recurrent one (see cells.py)."""
    return is_linear(module) or isinstance(module, nn.RNNBase)


def linear_layers(model: Model) -> list[str]:
    """The places of the blocks' linear and recurrent layers, from the bottom up."""
    inside = {id(module) for block in model.blocks() for module in block.modules()}
    return [place for place in every_layer(model) if id(model.get_submodule(place)) in inside]


def every_layer(model: Model) -> list[str]:
    """The places of all such layers of the model itself; what adapters are made of is left out."""
    return [place for place, module in model.named_modules() if has_matrices(module) and "adapters" not in place.split(".")]


def find_targets(model: Model, wanted: Sequence[str] | str) -> list[str]:
    """The places of the layers that ``targets`` names by the ends of their names. ConfigError when an end names none."""
    known = linear_layers(model)
    if wanted == "auto":
        found = [place for place in known if not any(part in EXPERTS for part in place.split("."))]
        if not found:
            raise ConfigError("adapter: {architecture} has no linear layer in its blocks", "", "choose the method prompt, bitfit or houlsby, or full tuning", architecture=model.shape.architecture)
        return found
    everywhere = every_layer(model)
    chosen: set[str] = set()
    for end in wanted:
        named = [place for place in everywhere if place == end or place.endswith(f".{end}")]
        if not named:
            refuse_stacked(model, end)
            ends = sorted({place.rpartition(".")[2] for place in known})
            raise ConfigError("adapter.targets: {end!r} names no linear layer", "", "the model has: {known}", end=end, known=", ".join(ends))
        chosen.update(named)
    return [place for place in everywhere if place in chosen]


def refuse_stacked(model: Model, end: str) -> None:
    """ConfigError where ``end`` names matrices of experts that are one tensor [experts, …], as transformers' own mixtures hold them."""
    wanted = f".{end}"
    for name, value in model.named_parameters():
        if value.dim() == 3 and (f".{name}".endswith(wanted) or f".{name.rpartition('.')[0]}".endswith(wanted)):
            raise ConfigError(
                "adapter.targets: {end!r} names no linear layer: {name} holds the matrices of {count} experts in one tensor", "an adapter sits on matrices that are layers of their own",
                "adapt the attention and what all tokens share (targets: auto), or train the experts whole (also_train: [{part}])", end=end, name=name, count=len(value), part=name.rpartition(".")[2],
            )  # fmt: skip


def shortest_ends(places: Sequence[str], model: Model) -> list[str]:
    """The shortest ends of names that name exactly ``places`` among the model's linear layers: peft's ``target_modules``."""
    wanted, every = set(places), every_layer(model)
    ends: set[str] = set()
    for place in places:
        parts = place.split(".")
        for count in range(1, len(parts) + 1):
            end = ".".join(parts[-count:])
            if all(other in wanted for other in every if other == end or other.endswith(f".{end}")):
                ends.add(end)
                break
    return sorted(ends)


def saved_targets(plain: Mapping[str, Any], key: str = "target_modules") -> list[str]:
    """The ends of names that an adapter_config.json gives. DataError where it trained the base's biases too, which is not known here."""
    if plain.get("bias", "none") != "none":
        raise DataError("adapter_config.json: {name} is not known to Luban", "it changes what the adapter computes", "merge it with peft (merge_and_unload) and open the merged model", name="bias")
    ends = plain.get(key) or []
    return [ends] if isinstance(ends, str) else sorted(ends)


def stored_transposed(layer: nn.Module) -> bool:
    """Whether the layer's weight is [in, out] (GPT-2's Conv1D) rather than [out, in]."""
    return getattr(layer, "transposed", False)


def full_weight(layer: nn.Module) -> Tensor:
    """A layer's weight as [out, in], what is here of it; of a quantised one the numbers that it stands for."""
    if hasattr(layer, "dequantized"):
        return layer.dequantized()
    weight = here(layer.weight.detach())
    return weight.t() if stored_transposed(layer) else weight


def add_to_weight(layer: nn.Module, change: Tensor) -> None:
    """Add [out, in] to a layer's weight. ConfigError for a quantised one, which cannot hold it."""
    if hasattr(layer, "dequantized"):
        raise ConfigError("a quantised weight cannot take an adapter in", "the sum would have to be rounded again", "merge into the dequantised model (luban merge)")
    layer.weight.data.add_((change.t() if stored_transposed(layer) else change).to(layer.weight.dtype))
