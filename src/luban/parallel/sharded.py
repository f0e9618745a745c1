"""Weights, gradients and optimizer state in shards, by torch's FSDP2: each rank holds a part of every tensor, and a block's weights are gathered for the time that it runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from luban.foundation.errors import ConfigError
from luban.models.base import Model
from luban.parallel.layouts import Layout, local, whole
from luban.parallel.ranks import Ranks


class Sharded(Layout):
    """``full``: a block's weights are dropped after its forward pass and gathered again for its backward pass (ZeRO-3, Rajbhandari et al. 2020, arXiv:1910.02054);
    otherwise they are kept in between (ZeRO-2). With ``replicas`` above 1 each of so many groups of ranks holds all shards, and gradients are also summed over the groups.

    Every micro-batch's gradients are summed and cut into shards in its backward pass, so that no rank ever holds all of them.
    """

    name = "shards"
    together = True

    def __init__(self, ranks: Ranks, full: bool, replicas: int, device: torch.device):
        super().__init__(ranks)
        self.full = full
        self.mesh = init_device_mesh(device.type, (replicas, ranks.size // replicas), mesh_dim_names=("replicas", "shards"))
        self.skeleton: Model | None = None

    def place(self, model: Model) -> None:
        self.skeleton = _empty_copy(model)
        mesh = self.mesh if self.mesh.size(0) > 1 else self.mesh["shards"]
        marks = {name: vars(parameter) for name, parameter in model.named_parameters()}
        for module in [*model.beside_blocks(), *model.blocks()]:
            _shard(module, mesh, self.full)
        _shard(model, mesh, False)  # what stands outside the blocks is used again at once, in the loss
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no sum that is scaled
                module.set_gradient_divide_factor(1.0)
        for name, parameter in model.named_parameters():
            vars(parameter).update(marks[name])

    def whole_model(self, model: Model) -> Model | None:
        self.settle(model)
        gathered = self._gathered(model)
        if not self.ranks.leads:
            return None
        for module, leaf, name in _places(self.skeleton):
            setattr(module, leaf, gathered[name])
        return self.skeleton.train(model.training)

    def on_first(self, model: Model, work: Callable[[Model], Any]) -> Any:
        made = super().on_first(model, work)
        if self.ranks.leads:
            for module, leaf, _ in _places(self.skeleton):  # the memory is needed
                setattr(module, leaf, nn.Parameter(torch.empty_like(getattr(module, leaf), device="meta")))
        return made

    @torch.no_grad()
    def _gathered(self, model: Model) -> dict[str, nn.Parameter]:
        """Every parameter under each of its names, on rank 0; the others only take part."""
        found: dict[str, nn.Parameter] = {}
        once: dict[int, nn.Parameter] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if id(parameter) not in once:
                values = whole(parameter.detach())
                once[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad) if self.ranks.leads else parameter
            found[name] = once[id(parameter)]
        return found

    def settle(self, model: Model) -> None:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def clip(self, parameters: list[nn.Parameter], largest: float) -> tuple[Tensor, Tensor]:
        gradients = [local(parameter.grad) for parameter in parameters]
        squares = torch.stack(torch._foreach_norm(gradients)).square()  # [parameters] of this rank's shards
        dist.all_reduce(squares, group=self.mesh.get_group("shards"))
        norms, norm = squares.sqrt(), squares.sum().sqrt()
        if largest:
            share = (largest / (norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(share)
        return norm, norms


def _shard(module: nn.Module, mesh: Any, drop: bool) -> None:
    try:
        fully_shard(module, mesh=mesh, reshard_after_forward=drop)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError("layout.shard: the weights of this model cannot be cut into shards: {error}", "", "choose layout.shard: none", error=str(error).splitlines()[0]) from error


def _empty_copy(model: Model) -> Model:
    """The model's structure, its parameters without values."""
    empty = {id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad) for parameter in model.parameters()}
    return copy.deepcopy(model, empty)


def _places(model: Model) -> list[tuple[nn.Module, str, str]]:
    """(module, attribute, name) of every parameter, each of a tied one's places too."""
    return [(module, leaf, f"{path}.{leaf}" if path else leaf) for path, module in model.named_modules() for leaf in list(module._parameters) if module._parameters[leaf] is not None]
