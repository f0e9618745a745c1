"""Ranks that are not there: this process is one of as many as a real run has, and what it would hear of the others is made up.

Tensors go through torch's fake process group, which moves nothing: a sum leaves the tensor as it is. So sizes, shapes and places are those of a real run, and values mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import stage as pipeline_stage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle

from luban.foundation.environment import Launch
from luban.models import moe
from luban.parallel import engine, ranks, sums, tensor


class ImaginedRanks(ranks.Ranks):
    """Rank ``rank`` of ``size``; each of the others says what this one says."""

    def __init__(self, size: int, rank: int = 0):
        super().__init__(Launch(rank, size, rank, size))

    def tell(self, value: Any = None) -> Any:
        return value

    def everyone(self, value: Any = None) -> list[Any]:
        return [value] * self.size

    def agree(self, wish: str) -> str:
        return wish


def imagine(size: int, rank: int = 0) -> ranks.Ranks:
    """Make this process, which has met nobody yet, rank ``rank`` of ``size`` for as long as it lives."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if size > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    sums.used_somewhere = lambda there, group: there  # tensors without values cannot say it
    moe.tally, moe.as_numbers, moe.kept_places = lambda assigned, experts: assigned.new_empty(experts), _evenly, lambda segments: None
    tensor.drawn = lambda: 0
    engine.tokens_of = lambda batch: float(batch.inputs.numel())
    if hasattr(DeviceMesh, "_concatenate"):
        DeviceMesh._concatenate = staticmethod(partial(_with_numbers, DeviceMesh._concatenate))
    if hasattr(pipeline_stage, "InferenceMode"):  # older torch does not vote
        PipelineScheduleSingle._warmup_p2p = PipelineScheduleMulti._warmup_p2p = _as_described
    ranks.settle_here(made := ImaginedRanks(size, rank))
    return made


def _with_numbers(make: Callable[[Any], DeviceMesh], meshes: Any) -> DeviceMesh:
    """A mesh made of others, of whose ranks the numbers are looked at: they are no tensors of the rehearsal."""
    with unset_fake_temporarily():
        return make(meshes)


def _evenly(counts: Tensor, rows: Tensor) -> list[int]:
    each, more = divmod(len(rows), len(counts))
    return [each + (number < more) for number in range(len(counts))]


def _as_described(_schedule: Any, stages: list[Any], *_: Any) -> None:
    """What the stages of a pipeline otherwise agree on by a vote: that all know the shapes that come to them."""
    for stage in stages:
        stage._inference_mode = pipeline_stage.InferenceMode.STATIC
