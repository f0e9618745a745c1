"""Quantised layers over the ranks of a tensor group: each holds codes and scales of its own outputs or of its own inputs, as they were made of the whole matrix.

Rows do not depend on each other, so outputs are cut anywhere; inputs where a group of weights ends that share a scale, or where a row is one such group, whose scale all ranks then hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from luban.models.base import Model
from luban.models.quantized import QuantizedLinear
from luban.models.quantized_model import quantized_layers
from luban.parallel.plans import Plan, ends


class PackedColumn(QuantizedLinear):
    """Some of the outputs."""


class PackedRow(QuantizedLinear):
    """The sum over the ranks of what each makes of its inputs; the bias is added once."""

    write: Callable[[Tensor], Tensor]

    def forward(self, states: Tensor) -> Tensor:
        made = self.write(self.without_bias(states))
        return made if self.bias is None else made + self.bias.to(made.dtype)


def cut_columns(layer: QuantizedLinear, mesh: DeviceMesh, cut: Callable[..., None]) -> None:
    """Leave a layer, in place, this rank's outputs. ``cut(layer, name, mesh, dim)`` leaves its part of a parameter."""
    for name in layer.held:
        cut(layer, name, mesh, 0)
    layer.out_features //= mesh.size()


def cut_rows(layer: QuantizedLinear, mesh: DeviceMesh, cut: Callable[..., None]) -> None:
    """As :func:`cut_columns`, of the inputs."""
    parts = mesh.size()
    for name in layer.held:
        if name == "codes" or getattr(layer, name).shape[1] > 1:
            cut(layer, name, mesh, 1)
    layer.in_features //= parts
    layout = layer.layout
    layer.layout = replace(layout, inputs=layer.in_features, group=layout.group if layout.groups > 1 else layer.in_features)


def misfit(model: Model, plan: Plan, ranks: int) -> str:
    """The name of a quantised layer whose inputs so many ranks cannot share out; empty where there is none."""
    found = (name for name, layer in quantized_layers(model).items() if ends(name, plan.row) and not layer.config.divides(layer.in_features, ranks))
    return next(found, "")
