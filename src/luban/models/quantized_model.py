"""A whole model on frozen weights of 4 or 8 bits: from a float model, from a directory, or drawn from a seed; and back to plain layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from luban.foundation.errors import ConfigError
from luban.models.base import Model, named_generator
from luban.models.families import AUTO, build_model, family_of
from luban.models.heads import Head
from luban.models.huggingface import load_model, read_shape
from luban.models.quantization_config import QuantizationConfig
from luban.models.quantized import QuantizedLinear, is_linear
from luban.models.shape_base import BaseShapeConfig
from luban.models.stored import Stored, open_stored

__all__ = ["dequantize_model", "load_quantized", "open_dequantized", "quantize_model", "quantized_layers", "random_quantized"]

ROUTERS = ("gate", "router", "shared_expert_gate")  # of mixtures of experts: small, and a changed choice of experts is a large error


def quantizable_layers(model: Model, config: QuantizationConfig, skip: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The linear layers inside the blocks by name, but for routers and what ``skip`` or the config's own names.

    Embeddings, the output matrix, heads and norms are no such layers. ConfigError when nothing is left, or a pattern names nothing.
    """
    inside = {id(part) for block in model.blocks() for part in block.modules()}
    found = {name: part for name, part in model.named_modules() if id(part) in inside and is_linear(part) and name.rpartition(".")[2] not in ROUTERS}
    if not found:
        raise ConfigError(
            "{name} has no linear layers in its blocks that could be quantised", "", "train without quantization, or choose another family",
            name=model.shape.architecture,
        )  # fmt: skip
    patterns = [*config.skip, *skip]
    for pattern in patterns:
        if not any(pattern in name for name in found):
            raise ConfigError(
                "quantization.skip: {pattern!r} names no linear layer", "", "write a part of a name such as {example}", pattern=pattern, example=next(iter(found))
            )
    if not (kept := {name: part for name, part in found.items() if not any(pattern in name for pattern in patterns)}):
        raise ConfigError("quantization.skip names every linear layer", "nothing would be quantised", "train without quantization, or skip less")
    return kept


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """The layers with quantised weights, by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, QuantizedLinear)}


def quantize_model(model: Model, config: QuantizationConfig, skip: Sequence[str] = ()) -> Model:
    """Put quantised layers in the place of the model's linear ones, one after the other. The same model comes back.

    ``skip`` adds to the config's patterns. DataError, naming the tensor, for weights that are NaN or infinite.
    """
    for name, layer in quantizable_layers(model, config, skip).items():
        _put(model, name, QuantizedLinear.from_linear(layer, config, f"{name}.weight"))
    return model


@torch.no_grad()
def empty_quantized(model: Model, config: QuantizationConfig, empty: Callable[[Sequence[int], torch.dtype], Tensor]) -> Model:
    """:func:`quantize_model` in size alone: no weight is looked at, and what would hold the codes is made by ``empty(shape, type)``."""
    for name, layer in quantizable_layers(model, config).items():
        like = QuantizedLinear.from_weight(torch.zeros(1, layer.in_features), None, config, name)  # of one row
        tensors = {part: empty([layer.out_features, *getattr(like, part).shape[1:]], getattr(like, part).dtype) for part in like.held}
        _put(model, name, QuantizedLinear(config, layer.in_features, tensors, layer.bias, type(layer)))
    return model


def dequantize_model(model: Model) -> Model:
    """Put plain layers, of the model's type, in the place of quantised ones: what a merged model saves. Adapters must be off."""
    for name, layer in quantized_layers(model).items():
        assert type(layer) is QuantizedLinear, "take the adapters off first"
        _put(model, name, layer.to_linear(model.dtype))
    return model


def load_quantized(
    folder: Path, config: QuantizationConfig, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", *, skip: Sequence[str] = (),
    head: Head | None = None, language_model: bool = False, seed: int = 0, check_finite: bool = False, quiet: bool = False,
) -> Model:
    """As :func:`luban.models.huggingface.load_model`, with the linear layers of the blocks quantised as they are read.

    Memory peaks at the quantised model and one tensor. ``dtype`` is that of all else: bfloat16 halves embedding and output matrix, and the
    model computes in it then, unless ``config.compute_dtype`` says otherwise. A model that runs through transformers is read whole, then quantised.
    """  # fmt: skip
    if family_of(read_shape(folder).architecture) is AUTO:
        model = load_model(folder, dtype, "cpu", check_finite, head=head, language_model=language_model, seed=seed)
        return quantize_model(model, config, skip).to(device)
    waiting: dict[str, nn.Module] = {}

    def place(model: Model, name: str, value: Tensor) -> bool:
        if not waiting:
            waiting.update(quantizable_layers(model, config, skip))
        owner, _, leaf = name.rpartition(".")
        if leaf != "weight" or owner not in waiting or not value.is_floating_point():
            return False
        bias = model.get_submodule(owner).bias  # read before the weight, or without values yet
        _put(model, owner, QuantizedLinear.from_weight(value.to(device), bias, config, name, type(waiting[owner])))
        return True

    return load_model(folder, dtype, device, check_finite, head=head, language_model=language_model, seed=seed, place=place, quiet=quiet)


def open_dequantized(folder: Path, config: QuantizationConfig, *, head: Head | None = None, language_model: bool = False, quiet: bool = False) -> Stored:
    """As :func:`luban.models.stored.open_stored`, with the numbers that the quantised weights stand for in the place of the directory's own."""
    stored = open_stored(folder, head=head, language_model=language_model, quiet=quiet)
    if not stored.places:
        dequantize_model(quantize_model(stored.model, config))
        return stored
    for name, layer in quantizable_layers(stored.model, config).items():
        stored.changes[f"{name}.weight"] = partial(_rounded, name=f"{name}.weight", config=config, made_from=type(layer))
    return stored


def _rounded(weight: Tensor, *, name: str, config: QuantizationConfig, made_from: type[nn.Module]) -> Tensor:
    return QuantizedLinear.from_weight(weight, None, config, name, made_from).to_linear().weight.detach()


@torch.no_grad()
def random_quantized(shape: BaseShapeConfig, config: QuantizationConfig, seed: int, dtype: torch.dtype = torch.float32, skip: Sequence[str] = ()) -> Model:
    """The quantised form of a new model of ``shape`` whose first values are drawn from ``seed``, made one tensor at a time: the float model never exists.

    The same as building it, ``initialize(seed)`` and :func:`quantize_model`, but for memory.
    """
    with torch.device("meta"):
        model = build_model(shape)
    layers = quantizable_layers(model, config, skip)
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        value = torch.empty(parameter.shape, dtype=torch.float32 if leaf == "weight" and owner in layers else dtype)
        model.first_values(name, value, named_generator(seed, name))
        if leaf == "weight" and owner in layers:
            _put(model, owner, QuantizedLinear.from_weight(value, model.get_submodule(owner).bias, config, name, type(layers[owner])))
        else:
            setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=parameter.requires_grad))
    return model.eval()


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    layer.train(model.training)
    model.get_submodule(owner)._modules[leaf] = layer
