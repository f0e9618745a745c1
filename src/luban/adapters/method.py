"""What every adapter method gives: how it is put on a model, what of it learns, how it is written, read and merged."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luban.adapters.adapted import adapt, adapted_layers, release
from luban.adapters.config import NAMES, AdapterConfig
from luban.foundation.errors import ConfigError, DataError
from luban.models.base import Model, named_generator
from luban.models.narrow import NarrowLinear

# The file and class of each method.
PLACES = {
    **dict.fromkeys(("lora", "rslora", "dora", "lora_plus", "pissa"), "lora:Lora"),
    "adalora": "adalora:AdaLora",
    "vera": "vera:Vera",
    "ia3": "ia3:IA3",
    **dict.fromkeys(("houlsby", "pfeiffer"), "bottleneck:Bottleneck"),
    "prefix": "prefix:Prefix",
    "p_tuning": "prompt:PTuning",
    "prompt": "prompt:Prompt",
    "bitfit": "bitfit:BitFit",
}
PEFT = "base_model.model."  # what peft writes before the name of every tensor


class Method:
    """One adapter on one model. ``name`` tells several on the same model apart."""

    peft_type: ClassVar[str] = ""  # peft's name of the method; empty: peft has none, and the format is Luban's
    merges: ClassVar[bool] = True  # whether it can become part of the base's own weights
    whole_prefix: ClassVar[str] = PEFT  # what peft writes before the names of the base's tensors that are saved whole

    def __init__(self, config: AdapterConfig, name: str = "default"):
        self.config, self.name = config, name

    # ---- what a method defines -------------------------------------------------------------------------------------

    def attach(self, model: Model, seed: int) -> None:
        """Put the method's modules on the model, their first values drawn from the seed."""
        raise NotImplementedError

    def read_text(self, tokenizer: Any) -> None:
        """Called before :meth:`attach`, for what begins as words."""

    def as_saved(self) -> Method:
        """The method as its files describe it: what only matters at the beginning of training is left out."""
        return self

    def detach(self, model: Model) -> None:
        """Take them off again: the model is what it was."""
        for layer in list(adapted_layers(model, self.name).values()):
            release(layer, self.name)

    def settings(self, model: Model) -> dict[str, Any]:
        """The method's part of adapter_config.json."""
        raise NotImplementedError

    @classmethod
    def from_settings(cls, plain: Mapping[str, Any]) -> AdapterConfig:
        """The config that an adapter_config.json describes. Raises DataError for what Luban does not know."""
        raise NotImplementedError

    def tensors(self, model: Model) -> dict[str, Tensor]:
        """The method's tensors as the file has them."""
        return {f"{PEFT}{place}.{leaf}": value for place, leaf, value in self.own(model)}

    def load(self, model: Model, tensors: Mapping[str, Tensor]) -> set[str]:
        """Read :meth:`tensors` back; the names that were used. Raises DataError where one is missing or has another shape."""
        used = set()
        for place, leaf, value in self.own(model):
            used.add(self.read(tensors, f"{PEFT}{place}.{leaf}", value))
        return used

    def merge(self, model: Model) -> None:
        """Make the adapter part of the base's weights, and take it off."""
        for place, layer in adapted_layers(model, self.name).items():
            self.merge_layer(place, layer, layer.adapters[self.name])
        self.detach(model)

    def make_room(self, *models: Model) -> None:
        """Give these models, the first of which wears the adapter, what a merged one has and they lack. ConfigError where their family has no place for it."""

    @contextmanager
    def filled(self, place: str, layer: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """The adapter of one layer of a model without values, with those of its file for as long as this lasts."""
        adapter = layer.adapters[self.name].to_empty(device="cpu")
        self.fill(place, adapter, tensors)
        yield adapter
        adapter.to("meta")

    def fill(self, place: str, adapter: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Read the values of the adapter at ``place``."""
        for leaf, value in adapter.state_dict(keep_vars=True).items():
            self.read(tensors, f"{PEFT}{place}.{leaf}", value)

    def merge_layer(self, place: str, layer: nn.Module, adapter: nn.Module) -> None:
        raise ConfigError("an adapter of the method {method} cannot be merged", "what it adds is no weight of the base", "serve it as an adapter", method=self.config.method)

    def penalties(self, model: Model) -> dict[str, tuple[Tensor, float]]:
        """Losses of the method itself by name, each with its weight."""
        return {}

    def before_training(self, model: Model, total_steps: int) -> None:
        """Called once the length of the run is known."""

    def after_gradients(self, model: Model, step: int) -> None:
        """Called after each step, while its gradients are still there; ``step`` counts from 1."""

    def report(self, model: Model) -> dict[str, Any]:
        """What a person should see of the method at the end: ranks, for one."""
        return {}

    def show(self, model: Model) -> None:
        """Print :meth:`report`, where there is something to see."""

    def shared(self) -> Iterator[str]:
        """Ends of names of what belongs to the method without being on a layer."""
        yield from ()

    # ---- shared ----------------------------------------------------------------------------------------------------

    def own(self, model: Model) -> list[tuple[str, str, Tensor]]:
        """(place of the layer, name within the adapter, tensor) of everything that is saved."""
        return [(place, leaf, value) for place, layer in adapted_layers(model, self.name).items() for leaf, value in layer.adapters[self.name].state_dict(keep_vars=True).items()]

    def read(self, tensors: Mapping[str, Tensor], key: str, into: Tensor) -> str:
        """Copy one tensor of a file to its place."""
        if key not in tensors:
            raise DataError("the adapter's file lacks the tensor {name}", "adapter_config.json describes a model that has it", "check that the adapter was made for this base", name=key)
        if tensors[key].shape != into.shape:
            raise DataError("the adapter's tensor {name} is {there}, the model makes it {wanted}", "", "check that the adapter was made for this base", name=key, there=list(tensors[key].shape), wanted=list(into.shape))
        with torch.no_grad():
            into.copy_(tensors[key])
        return key

    def put(self, model: Model, place: str, adapter: nn.Module, seed: int) -> None:
        """Adapt the layer at ``place``; ``adapter.first_values(generator)`` draws what is random in it."""
        layer = model.get_submodule(place)
        adapter.first_values(named_generator(seed, f"{self.name}:{place}"))
        adapt(layer, self.name, moved(adapter, **place_of(layer)))


def moved(adapter: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """An adapter where its layer is; one that is there already is left alone, as tensors without values must be."""
    if any((value.device, value.dtype) != (device, dtype) for value in adapter.parameters()):
        adapter.to(device=device, dtype=dtype)
    return adapter


def method_of(config: AdapterConfig, name: str = "default") -> Method:
    """The method that a config names."""
    return _class(config.method)(config, name)


def method_from(plain: Mapping[str, Any], name: str = "default") -> Method:
    """The method of an adapter_config.json, peft's or Luban's own. Raises DataError for one that is not known."""
    named = str(plain.get("luban_method") or plain.get("peft_type") or "")
    for method in PLACES:
        cls = _class(method)
        if named in (method, cls.peft_type) and named:
            return cls(cls.from_settings(plain), name)
    raise DataError("the adapter's method {method!r} is not known", "", "known are: {known}", method=named, known=", ".join(NAMES))


def _class(method: str) -> type[Method]:
    module, _, name = PLACES[method].partition(":")
    return getattr(importlib.import_module(f"luban.adapters.{module}"), name)


def place_of(layer: nn.Module) -> dict[str, Any]:
    """The device of a layer's tensors, and the type of what stands beside them: the layer's own, float32 beside integers and matrices that are held narrow."""
    known = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)] or list(layer.parameters())
    types = [value.dtype for value in known if value.is_floating_point()] if not hasattr(layer, "dequantized") and not isinstance(layer, NarrowLinear) else []
    return {"device": known[0].device, "dtype": types[0] if types else torch.float32}
