"""Ranks that are not there: this process is rank 0 of as many as a real run has, and what it would hear of the others is made up.

Tensors go through torch's fake process group, which moves nothing: a sum leaves the tensor as it is. So sizes, shapes and places are those of a real run, and values mean nothing.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from luban.foundation.environment import Launch
from luban.parallel import layouts, ranks


class ImaginedRanks(ranks.Ranks):
    """Rank 0 of ``size``; each of the others says what this one says."""

    def __init__(self, size: int):
        super().__init__(Launch(0, size, 0, size))

    def tell(self, value: Any = None) -> Any:
        return value

    def everyone(self, value: Any = None) -> list[Any]:
        return [value] * self.size

    def agree(self, wish: str) -> str:
        return wish


def imagine(size: int) -> ranks.Ranks:
    """Make this process, which has met nobody yet, rank 0 of ``size`` for as long as it lives."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if size > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    layouts.used_somewhere = lambda parameters, group: [parameter.grad is not None for parameter in parameters]  # tensors without values cannot say it
    ranks.settle_here(made := ImaginedRanks(size))
    return made
