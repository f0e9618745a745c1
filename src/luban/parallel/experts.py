"""The experts of a layer shared out over the ranks of an expert group: tokens are sent to the rank whose expert they chose, and what it makes of them comes back (Lepikhin et al. 2020,
"GShard", arXiv:2006.16668). No token is dropped, and no rank waits for a capacity: how many each sends is said before."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh

from luban.models import moe
from luban.models.base import Model
from luban.models.moe import Experts


class SharedOut(Experts):
    """This rank's experts, under their numbers among all."""

    mesh: DeviceMesh

    def forward(self, states: Tensor, counts: Tensor) -> Tensor:
        """As :class:`Experts`, for the tokens of this rank; the other ranks' pass through here too."""
        group, ranks = self.mesh.get_group(), self.mesh.size()
        sent = counts.view(ranks, -1).contiguous()  # [ranks, experts of each]
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)  # [ranks, experts here]
        leaving, coming = moe.as_numbers(sent.sum(1), states), moe.as_numbers(received.sum(1), states)
        states = all_to_all_single_autograd(states, coming, leaving, group)  # in the order of ranks, and of experts in each
        expert = torch.arange(received.shape[1], device=states.device).repeat(ranks).repeat_interleave(received.flatten(), output_size=sum(coming))
        order = expert.argsort(stable=True)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        made = super().forward(states.index_select(0, order), received.sum(0)).index_select(0, back)
        return all_to_all_single_autograd(made, leaving, coming, group)


def share_out(model: Model, mesh: DeviceMesh) -> None:
    """Leave each rank of the group its experts of every mixture."""
    for module in list(model.modules()):
        if isinstance(module, Experts):
            own = len(module) // mesh.size()
            first = own * mesh.get_local_rank()
            for number in range(len(module)):
                if not first <= number < first + own:
                    del module._modules[str(number)]
            module.__class__, module.mesh = SharedOut, mesh
