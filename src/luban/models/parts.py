"""Differentiable moves of activations between ranks that hold parts of them, by torch's functional collectives, which its compiler knows.

Two kinds of group do the same work together. Ranks of a *tensor* group compute one loss: what all of them hold alike has a gradient that is whole on each. Ranks of a *context* group
compute parts of a loss: gradients of what they hold alike are added up. Every function says which gradient it expects and which it gives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from luban.models.products import product


def alike(states: Tensor, mesh: DeviceMesh) -> Tensor:
    """What all hold alike, for work of which each does a part: the gradients of the parts are added up."""
    return _moved(states, mesh, "keep", "add", 0)


def gathered(states: Tensor, mesh: DeviceMesh, dim: int) -> Tensor:
    """All of what each holds a part of along ``dim``, for work of which each does a part: the gradients are added up, and each gets that of its own."""
    return _moved(states, mesh, "gather", "add_own", dim)


def gathered_once(states: Tensor, mesh: DeviceMesh, dim: int) -> Tensor:
    """All of what each holds a part of along ``dim``, for work that all do alike: each keeps the gradient of its own."""
    return _moved(states, mesh, "gather", "own", dim)


def own_part(states: Tensor, mesh: DeviceMesh, dim: int) -> Tensor:
    """This rank's part along ``dim`` of what all hold alike."""
    return _moved(states, mesh, "own", "gather", dim)


def added(states: Tensor, mesh: DeviceMesh) -> Tensor:
    """The sum of what each holds, for all, which do the same with it."""
    return _moved(states, mesh, "add", "keep", 0)


def added_parts(states: Tensor, mesh: DeviceMesh, dim: int) -> Tensor:
    """This rank's part along ``dim`` of the sum of what each holds."""
    return _moved(states, mesh, "add_own", "gather", dim)


def _moved(states: Tensor, mesh: DeviceMesh, forth: str, back: str, dim: int) -> Tensor:
    return _Moved.apply(states, forth, back, dim, mesh.get_group().group_name, mesh.size(), mesh.get_local_rank())


class _Moved(torch.autograd.Function):
    """One move forth, one back for the gradient. Along ``dim`` the parts are even."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, forth: str, back: str, dim: int, group: str, size: int, rank: int) -> Tensor:
        ctx.back = back, dim, group, size, rank
        return _move(states, forth, dim, group, size, rank)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (_move(gradient, *ctx.back), *[None] * 6)


def _move(states: Tensor, how: str, dim: int, group: str, size: int, rank: int) -> Tensor:
    talk = torch.ops._c10d_functional
    if how == "keep":
        return states.view_as(states)
    if how == "own":
        return states.chunk(size, dim)[rank].contiguous()
    if how == "add":
        return talk.wait_tensor(talk.all_reduce(states.contiguous(), "sum", group))
    if how == "gather":
        return torch.cat(talk.wait_tensor(talk.all_gather_into_tensor(states.contiguous(), size, group)).chunk(size), dim)
    return talk.wait_tensor(talk.reduce_scatter_tensor(torch.cat(states.chunk(size, dim)), "sum", size, group))


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
    own = product(alike(states, mesh), weight.to_local(), local_bias(bias, weight))
    shape = torch.Size((*own.shape[:-1], len(weight)))
    spread = DTensor.from_local(own, mesh, [Shard(own.ndim - 1)], run_check=False, shape=shape, stride=torch.empty(shape, device="meta").stride())
    return spread.redistribute(placements=[Replicate()]).to_local(grad_placements=[Replicate()])
