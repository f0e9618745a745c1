"""Layouts: what each rank holds of a model that several train together, and which rows of a step it takes.

A step is the same whatever the layout: its rows are put together in global order and cut into shares of whole units, one a rank; what a mean divides by is counted over the whole
step before; so gradients and means are sums over ranks, and nothing is averaged. A layout with other kinds of ranks (tensor, pipeline, context, expert) is another subclass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from luban.models.base import Model
from luban.parallel.ranks import Ranks
from luban.tokens.batch import Batch

BUCKET_BYTES = 32 << 20  # gradients that are summed in one operation


class Layout:
    """One process that holds everything: nothing to share, nothing to add up."""

    name = "one process"
    together = False  # whether the ranks must pass through the model equally often, since each pass gathers weights

    def __init__(self, ranks: Ranks | None = None):
        self.ranks = ranks or Ranks()
        self._names: list[str] | None = None  # of the means, the same on all ranks

    # ---- a model -----------------------------------------------------------------------------------------------------

    def place(self, model: Model) -> None:
        """Take of the model what this rank holds, before an optimizer knows its parameters."""

    def whole_model(self, model: Model) -> Model | None:
        """A model with all weights in this process, on rank 0; None on the others. The model itself, where it is whole anyway."""
        return model if self.ranks.leads else None

    def on_first(self, model: Model, work: Callable[[Model], Any]) -> Any:
        """What ``work`` makes of the whole model on rank 0 (plain data), to all ranks."""
        whole = self.whole_model(model)
        return self.ranks.tell(None if whole is None else work(whole))

    def settle(self, model: Model) -> None:
        """Forget weights that were gathered: they may change now."""

    # ---- a step ------------------------------------------------------------------------------------------------------

    def share(self, rows: int, group: int, rank: int) -> tuple[int, int]:
        """The first row of a rank's share and the one after its last: whole units, as even as can be, none where there are too few."""
        units, ranks = rows // group, self.ranks.size
        return units * rank // ranks * group, units * (rank + 1) // ranks * group

    def spans(self, batch: Batch, size: int) -> list[tuple[int, int, bool]]:
        """(first row, row after the last, whether it counts) of this rank's micro-batches of ``size`` rows; those without anything scored are left out.

        A rank with less to do than the others must have repeats the first span of the step without counting it: once where it has nothing at all, and in
        layouts that gather weights in each pass as often as they do.
        """
        scored = batch.weights.flatten(1).any(1)  # [rows]
        every = [
            [(start, min(start + size, last)) for start in range(first, last, size) if bool(scored[start : min(start + size, last)].any())]
            for first, last in (self.share(len(batch.inputs), batch.group, rank) for rank in range(self.ranks.size))
        ]
        own = every[self.ranks.rank]
        least = max(map(len, every)) if self.together else min(1, max(map(len, every)))
        filling = next((spans[0] for spans in every if spans), None)
        return [(*span, True) for span in own] + [(*filling, False) for _ in range(least - len(own))]

    def own_batches(self, batches: list[Batch]) -> list[Batch]:
        """The batches that this rank evaluates; where all pass through the model together, all of them, of which it takes its share of rows."""
        return batches if self.together else batches[self.ranks.rank :: self.ranks.size]

    def gather_rows(self, own: Tensor, batch: Batch) -> Tensor:
        """[rows, …] of the whole step from this rank's share of them; gradients flow into its own."""
        sizes = [last - first for first, last in (self.share(len(batch.inputs), batch.group, rank) for rank in range(self.ranks.size))]
        padded = own.detach().new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own.detach()
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded)
        return torch.cat([own if rank == self.ranks.rank else found[rank][:size] for rank, size in enumerate(sizes)])

    # ---- gradients ---------------------------------------------------------------------------------------------------

    def sum_gradients(self, model: Model) -> None:
        """Add up what the ranks' shares of a step gave, after its last backward pass."""

    def sum_means(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """The means of the whole step from each rank's parts of them."""
        if self.ranks.alone or not means:
            return means
        names = sorted(means)
        if self._names is None:
            assert all(other == names for other in self.ranks.everyone(names)), f"the ranks have terms of other names than {names}"
            self._names = names
        assert names == self._names, f"the terms were {self._names}, and are {names}"
        summed = self.ranks.sum(torch.stack([means[name].double() for name in names]))
        return {name: summed[names.index(name)].to(mean.dtype) for name, mean in means.items()}

    def clip(self, parameters: list[nn.Parameter], largest: float) -> tuple[Tensor, Tensor]:
        """The norm [] of all gradients, and [parameters] those of each, as they were; gradients above ``largest`` (if not 0) are scaled down to it."""
        norms = torch.stack(torch._foreach_norm([parameter.grad for parameter in parameters])) if parameters else torch.zeros(0)
        norm = torch.linalg.vector_norm(norms)
        if largest:
            nn.utils.clip_grads_with_norm_(parameters, largest, norm)
        return norm, norms


class Replicated(Layout):
    """Every rank holds everything and passes its share of the rows through it; gradients are summed after the last micro-batch (data parallelism).

    This is not torch's DistributedDataParallel, whose forward pass must be the whole loss, once, on every rank: a step here may have several passes (R-Drop, adversarial
    training) or none on a rank, and its gradient is a sum. Weights stay alike, since every rank adds the same numbers to the same weights.
    """

    name = "replicas"

    def sum_gradients(self, model: Model) -> None:
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        used = self.ranks.sum(torch.tensor([parameter.grad is not None for parameter in learning], dtype=torch.uint8)).tolist()
        gradients = []
        for parameter, uses in zip(learning, used, strict=True):
            if uses and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if uses:
                gradients.append(parameter.grad)
        sums = [(bucket, flat, dist.all_reduce(flat, async_op=True)) for bucket in _buckets(gradients) for flat in [torch.cat([gradient.reshape(-1) for gradient in bucket])]]
        for bucket, flat, operation in sums:
            operation.wait()
            for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of one type, of about BUCKET_BYTES each."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or size + tensor.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


# ---- tensors that are held in shards -------------------------------------------------------------------------------


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; a view."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered from the ranks that hold it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def spread(own: Tensor, like: Tensor) -> Tensor:
    """A tensor of ``like``'s whole shape of which each rank holds ``own``, as it holds ``like``."""
    if not hasattr(like, "full_tensor") or own.shape != like.to_local().shape:
        return own
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on all ranks, held as ``like`` is where it has its shape."""
    value = value.to(like.device) if value.ndim else value
    if not hasattr(like, "full_tensor") or hasattr(value, "full_tensor") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)

