"""Small layers inside each block: houlsby after attention and after the feed-forward part (Houlsby et al. 2019, arXiv:1902.00751), pfeiffer
after the latter alone (Pfeiffer et al. 2021, arXiv:2005.00247).

One stands around the layer that a part of the block ends with, before the sum with the stream: x + up(activation(down(x))). The matrix up
begins as zero, so that the model begins as it is. A mixture of experts is one part; a recurrent layer has one part, whose states stay its own.

peft has no such method. adapter_config.json says ``luban_method`` (houlsby or pfeiffer), ``reduction``, ``activation`` and ``dropout``; adapter_model.safetensors holds
``base_model.model.<layer>.down.weight`` [inner, width], ``.down.bias``, ``.up.weight`` [width, inner] and ``.up.bias`` for each layer that wears one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from luban.adapters.adapted import Layer
from luban.adapters.config import AdapterConfig, BottleneckConfig
from luban.adapters.method import Method
from luban.adapters.places import named, places_of
from luban.foundation.errors import ConfigError
from luban.models.base import Model, draw

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class Small(nn.Module):
    """x + up(activation(down(x))) on a layer's output [..., width]."""

    def __init__(self, width: int, config: BottleneckConfig):
        super().__init__()
        inner = max(1, width // config.reduction)
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)
        self.activation, self.dropout = FUNCTIONS[config.activation], nn.Dropout(config.dropout)

    def first_values(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            self.down.weight.copy_(draw(self.down.weight.shape, "xavier_uniform", 0.0, generator))
            for tensor in (self.down.bias, self.up.weight, self.up.bias):
                tensor.zero_()

    def forward(self, beneath: Layer, layer: nn.Module, states: Any, *given: Any) -> Any:
        return on_output(beneath(states, *given), self.add)

    def add(self, output: Tensor) -> Tensor:
        return output + self.dropout(self.up(self.activation(self.down(output))))


def on_output(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``change`` on the states that a layer gives, whatever it gives beside them: a router's choice, a recurrent layer's last states."""
    if isinstance(output, PackedSequence):
        return PackedSequence(change(output.data), *output[1:])
    if isinstance(output, tuple):
        return (on_output(output[0], change), *output[1:])
    return change(output)


class Bottleneck(Method):
    """Small layers around those that end the parts of a block."""

    merges = False
    config: BottleneckConfig

    def attach(self, model: Model, seed: int) -> None:
        known = places_of(model)
        wanted = ["feed_forward", "attention"] if self.config.method == "houlsby" else ["feed_forward"]
        for part in wanted:
            pattern = getattr(known, part)
            found = list(named(model, pattern))
            if pattern and not found:
                raise ConfigError("adapter: where {part} of {architecture} ends is not known", "Luban does not know the names of its layers", "choose lora, or a model of one of Luban's own families", part=part, architecture=getattr(model.shape, "model_type", model.shape.architecture))
            for place, layer in found:
                self.put(model, place, Small(width_of(layer, model), self.config), seed)

    def settings(self, model: Model) -> dict[str, Any]:
        config = self.config
        return {"reduction": config.reduction, "activation": config.activation, "dropout": config.dropout}

    @classmethod
    def from_settings(cls, plain: Mapping[str, Any]) -> AdapterConfig:
        return BottleneckConfig(method=plain["luban_method"], reduction=plain["reduction"], activation=plain["activation"], dropout=plain["dropout"])


def width_of(layer: nn.Module, model: Model) -> int:
    """The width of what a layer gives."""
    if isinstance(layer, nn.RNNBase):
        return layer.hidden_size * (2 if layer.bidirectional else 1)
    return getattr(layer, "out_features", model.embedding.weight.shape[1])
