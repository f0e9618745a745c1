"""Adapters on layers that are cut over a tensor group: each kind is cut as the layer is that wears it.

Of what an adapter has along the cut each rank keeps its own; the rest all hold, and it is said of which of that each rank has a part of the gradient. How the parts compute is the adapter's
own affair: it works with what is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from luban.adapters.adapted import Wears
from luban.adapters.bitfit import Offset
from luban.adapters.bottleneck import Small
from luban.adapters.ia3 import Factors
from luban.adapters.lora import DoraProduct, LoraProduct
from luban.adapters.targets import EXPERTS
from luban.adapters.vera import Scales
from luban.models.base import Model
from luban.models.moe import SparseFeedForward
from luban.models.parts import added
from luban.parallel.plans import Plan, ends


@dataclass(frozen=True)
class Cut:
    """How a layer is cut: of its outputs (``dim`` 0), or of its inputs (1), where ``write`` adds up what the ranks make. ``leave(module, name, mesh, dim)`` leaves a rank's part of a parameter."""

    mesh: DeviceMesh
    dim: int
    write: Callable[[Tensor], Tensor] | None
    leave: Callable[..., None]

    def own(self, size: int) -> slice:
        """This rank's run of so many."""
        count = size // self.mesh.size()
        return slice(count * self.mesh.get_local_rank(), count * (self.mesh.get_local_rank() + 1))


Held = tuple[list[nn.Parameter], list[nn.Parameter]]  # what all hold: used on parts, and used behind ``write``, on the stream


class Part(nn.Linear):
    """That matrix of a thin product which is cut."""

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(states, self.weight.to_local())


class Thin(nn.Linear):
    """That matrix of a thin product which all ranks hold, beside one that is cut as the layer's own is. Each rank has a part of its gradient."""

    write: Callable[[Tensor], Tensor] | None = None  # where the parts of a sum come through it

    def forward(self, states: Tensor) -> Tensor:
        made = F.linear(states, self.weight)
        return made if self.write is None else self.write(made)


class RowDora(DoraProduct):
    """The lengths of rows of which each rank has a part."""

    mesh: DeviceMesh

    @torch.no_grad()
    def lengths(self, layer: nn.Module) -> Tensor:
        return added(super().lengths(layer).square(), self.mesh).sqrt()


class RowScales(Scales):
    """The sum over the ranks of what each makes of its inputs."""

    write: Callable[[Tensor], Tensor]

    def change(self, states: Tensor) -> Tensor:
        return self.write(super().change(states))


def _product(adapter: LoraProduct, cut: Cut) -> Held:
    part, held = (adapter.lora_B, adapter.lora_A) if cut.dim == 0 else (adapter.lora_A, adapter.lora_B)
    cut.leave(part, "weight", cut.mesh, cut.dim)
    part.__class__, held.__class__, held.write = Part, Thin, cut.write
    return [held.weight], []


def _dora(adapter: DoraProduct, cut: Cut) -> Held:
    held, _ = _product(adapter, cut)
    if cut.dim == 0:
        cut.leave(adapter, "lora_magnitude_vector", cut.mesh, 0)
        return held, []
    adapter.__class__, adapter.mesh = RowDora, cut.mesh
    return held, [adapter.lora_magnitude_vector]


def _scales(adapter: Scales, cut: Cut) -> Held:
    if cut.dim == 0:
        adapter.outputs = cut.own(adapter.outputs.stop)
        cut.leave(adapter, "vera_lambda_b", cut.mesh, 0)
        return [adapter.vera_lambda_d], []
    adapter.inputs = cut.own(adapter.inputs.stop)
    adapter.__class__, adapter.write = RowScales, cut.write
    return [adapter.vera_lambda_d, adapter.vera_lambda_b], []


def _factors(adapter: Factors, cut: Cut) -> Held:
    if adapter.inside == (cut.dim == 1):
        cut.leave(adapter, "ia3_l", cut.mesh, cut.dim)
        return [], []
    return ([adapter.ia3_l], []) if cut.dim == 0 else ([], [adapter.ia3_l])


def _offset(adapter: Offset, cut: Cut) -> Held:
    if cut.dim == 0:
        cut.leave(adapter, "offset", cut.mesh, 0)
        return [], []
    return [], [adapter.offset]


def _small(adapter: Small, cut: Cut) -> Held:
    return [], list(adapter.parameters())


KINDS: dict[type[nn.Module], Callable[..., Held]] = {LoraProduct: _product, DoraProduct: _dora, Scales: _scales, Factors: _factors, Offset: _offset, Small: _small}
BESIDE = (Offset, Small)  # also on layers that all hold whole: norms and mixtures


def cut_worn(layer: nn.Module, cut: Cut, sequence: bool) -> list[nn.Parameter]:
    """Cut what a layer wears; returns the parameters that all ranks hold and of whose gradients each has a part. ``sequence``: what stands behind ``write`` sees a part of the places."""
    summed = []
    for adapter in layer.adapters.values() if isinstance(layer, Wears) else ():
        parts, behind = KINDS[type(adapter)](adapter, cut)
        summed += parts + (behind if sequence else [])
    return summed


def unfit(model: Model, plan: Plan) -> str:
    """The place of an adapter that a tensor group cannot cut; empty where there is none."""
    mixtures = [f"{name}." for name, module in model.named_modules() if isinstance(module, SparseFeedForward)]
    for place, layer in model.named_modules():
        if isinstance(layer, Wears) and not all(_fits(place, type(adapter), plan, mixtures) for adapter in layer.adapters.values()):
            return place or type(layer).__bases__[1].__name__
    return ""


def _fits(place: str, kind: type[nn.Module], plan: Plan, mixtures: list[str]) -> bool:
    if any(place.startswith(mixture) for mixture in mixtures):  # where the ranks' sums are added up later
        return kind is LoraProduct and not on_experts(place)
    in_block = any(f"{stack}." in place for stack in plan.stacks)
    if in_block and ends(place, plan.column):
        return kind in KINDS and kind is not Small
    return kind in KINDS if in_block and ends(place, plan.row) else kind in BESIDE


def on_experts(place: str) -> bool:
    """Whether a layer belongs to experts or chooses among them."""
    return any(part in EXPERTS for part in place.split("."))
