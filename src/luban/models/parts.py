"""Differentiable moves of activations between ranks that hold parts of them, by torch's DTensor; without them a tensor is a plain one.

Two kinds of group do the same work together. Ranks of a *tensor* group compute one loss: what all of them hold alike has a gradient that is whole on each. Ranks of a *context* group
compute parts of a loss: gradients of what they hold alike are added up. Every function says which gradient it expects and which it gives.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard


def moved(states: Tensor, mesh: DeviceMesh, before: Placement, after: Placement, gradient: Placement) -> Tensor:
    """``states``, which the ranks of ``mesh`` hold as ``before`` says, as ``after`` says; what comes back from above is as ``gradient`` says."""
    return DTensor.from_local(states, mesh, [before], run_check=False).redistribute(placements=[after]).to_local(grad_placements=[gradient])


def alike(states: Tensor, mesh: DeviceMesh) -> Tensor:
    """What all hold alike, for work of which each does a part: the gradients of the parts are added up."""
    return moved(states, mesh, Replicate(), Replicate(), Partial())


def gathered(states: Tensor, mesh: DeviceMesh, dim: int) -> Tensor:
    """All of what each holds a part of along ``dim``, for work of which each does a part: the gradients are added up, and each gets that of its own."""
    return moved(states, mesh, Shard(dim), Replicate(), Partial())


def gathered_once(states: Tensor, mesh: DeviceMesh, dim: int) -> Tensor:
    """All of what each holds a part of along ``dim``, for work that all do alike: each keeps the gradient of its own."""
    return moved(states, mesh, Shard(dim), Replicate(), Replicate())


def own_part(states: Tensor, mesh: DeviceMesh, dim: int) -> Tensor:
    """This rank's part along ``dim`` of what all hold alike."""
    return moved(states, mesh, Replicate(), Shard(dim), Shard(dim))


def added(states: Tensor, mesh: DeviceMesh) -> Tensor:
    """The sum of what each holds, for all, which do the same with it."""
    return moved(states, mesh, Partial(), Replicate(), Replicate())


def added_parts(states: Tensor, mesh: DeviceMesh, dim: int) -> Tensor:
    """This rank's part along ``dim`` of the sum of what each holds."""
    return moved(states, mesh, Partial(), Shard(dim), Shard(dim))


def evenly(states: Tensor, mesh: DeviceMesh) -> Tensor:
    """As it is; its gradient, the same on all, becomes each one's even part of a sum."""
    return _Evenly.apply(states, mesh.size())


class _Evenly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, size: int) -> Tensor:
        ctx.size = size
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / ctx.size, None


# ---- a vocabulary whose rows are shared out -----------------------------------------------------------------------------


def first_row(table: DTensor) -> int:
    """The number of the first row that this rank holds of a matrix whose rows are shared out in order."""
    mesh = table.device_mesh
    return min(len(table), -(-len(table) // mesh.size()) * mesh.get_local_rank())


def local_bias(bias: Tensor | None, weight: DTensor) -> Tensor | None:
    """The places of a bias [rows] that belong to this rank's rows of a matrix."""
    if bias is None or isinstance(bias, DTensor):
        return None if bias is None else bias.to_local()
    first = first_row(weight)
    return bias[first : first + len(weight.to_local())]


def shared_product(states: Tensor, weight: DTensor, bias: Tensor | None) -> Tensor:
    """``states @ weight.T + bias`` [..., rows] of states that all hold alike and a matrix [rows, dim] whose rows are shared out; all get all of it."""
    mesh = weight.device_mesh
    own = F.linear(alike(states, mesh), weight.to_local(), local_bias(bias, weight))
    shape = torch.Size((*own.shape[:-1], len(weight)))
    spread = DTensor.from_local(own, mesh, [Shard(own.ndim - 1)], run_check=False, shape=shape, stride=torch.empty(shape, device="meta").stride())
    return spread.redistribute(placements=[Replicate()]).to_local(grad_placements=[Replicate()])
