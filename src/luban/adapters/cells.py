"""Adapters on the matrices of recurrent layers, which are no modules of their own: the layer runs with the matrices that the adapters make of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from luban.adapters.adapted import Layer


class Matrix:
    """One tensor of a recurrent layer with the face of a linear layer."""

    bias = None

    def __init__(self, cell: nn.RNNBase, name: str):
        self.cell, self.name = cell, name

    @property
    def weight(self) -> nn.Parameter:
        return getattr(self.cell, self.name)

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[-1]


class CellAdapters(nn.ModuleDict):
    """By a tensor's name (weight_ih_l0 …) the adapter whose ``changed(tensor)`` stands in its place."""

    def first_values(self, generator: torch.Generator) -> None:
        for part in self.values():
            part.first_values(generator)

    def forward(self, beneath: Layer, layer: nn.RNNBase, states: Any, *given: Any) -> Any:
        layer._update_flat_weights()  # else torch does so in its forward, where parameters were assigned anew
        plain = layer._flat_weights  # torch gives its kernels this list; an adapter above may have changed it already
        layer._flat_weights = [self[name].changed(tensor) if name in self else tensor for name, tensor in zip(layer._flat_weights_names, plain, strict=True)]
        try:
            return beneath(states, *given)
        finally:
            layer._flat_weights = plain


def on_layer(layer: nn.Module, make: Callable[[Any], nn.Module], begins: str = "weight_") -> nn.Module:
    """``make(layer)`` of a linear layer; of a recurrent one an adapter for each of its tensors whose name begins so."""
    if not isinstance(layer, nn.RNNBase):
        return make(layer)
    return CellAdapters({name: make(Matrix(layer, name)) for name in layer._flat_weights_names if name.startswith(begins)})


def parts(layer: nn.Module, adapter: nn.Module) -> list[tuple[str, Any, nn.Module]]:
    """(beginning of the names within the adapter, linear layer or matrix, its adapter) for all matrices of a layer."""
    if isinstance(adapter, CellAdapters):
        return [(f"{name}.", Matrix(layer, name), part) for name, part in adapter.items()]
    return [("", layer, adapter)]
