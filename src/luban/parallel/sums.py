"""Gradients summed over ranks that hold the same parameters: after the backward pass, or while it still runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from luban.models.products import here

BUCKET_BYTES = 32 << 20  # gradients that are summed in one operation
IN_FLIGHT = 4  # of them at once, each with a copy of its gradients


@torch.no_grad()
def add_gradients(parameters: list[nn.Parameter], group: dist.ProcessGroup | None) -> None:
    """Sum the gradients, or this rank's parts of them, over a group of ranks that hold the same parameters; one that none of them used stays absent."""
    used = [parameter for parameter, uses in zip(parameters, used_somewhere([parameter.grad is not None for parameter in parameters], group), strict=True) if uses]
    sending = _Sending(group)
    for run in _runs(used):
        sending.add(_Bucket(run))
    sending.end()


def used_somewhere(there: list[bool], group: dist.ProcessGroup | None) -> list[int]:
    """How many ranks of the group have a gradient of each parameter."""
    used = torch.tensor(there, dtype=torch.uint8)
    dist.all_reduce(used, group=group)
    return used.tolist()


class Sums:
    """Sums that begin as soon as gradients are there, in the last backward pass of a step.

    Buckets go out in one order on all ranks, the last parameters first; one whose gradients are not all there yet keeps those behind it waiting, and what has not gone out when the pass
    ends, goes then. A parameter that no rank used stays without a gradient.
    """

    def __init__(self, parameters: list[nn.Parameter], group: dist.ProcessGroup | None):
        self.parameters, self.group, self.sending = parameters, group, _Sending(group)
        self.buckets = [_Bucket(run) for run in _runs(reversed(parameters))]
        self.sent = 0  # buckets
        self.early = 0  # of them, in the last step, before its end
        self.open = False
        self._of = {parameter: bucket for bucket in self.buckets for parameter in bucket.parameters}
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._arrived) for parameter in parameters]

    def begin(self) -> None:
        """The next backward pass is the last one of the step."""
        self.sent, self.open, self.sending = 0, True, _Sending(self.group)  # of a step that was given up nothing is waited for
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)

    @torch.no_grad()
    def _arrived(self, parameter: nn.Parameter) -> None:
        if not self.open:
            return
        self._of[parameter].missing -= 1
        while self.sent < len(self.buckets) and not self.buckets[self.sent].missing:
            self.sending.add(self.buckets[self.sent])
            self.sent += 1

    @torch.no_grad()
    def end(self) -> None:
        """All sums are there."""
        self.open, self.early = False, self.sent
        there = [parameter.grad is not None for parameter in self.parameters]
        for bucket in self.buckets[self.sent :]:
            self.sending.add(bucket)
        self.sent = 0
        self.sending.end()
        used = used_somewhere(there, self.group)
        for parameter, uses in zip(self.parameters, used, strict=True):
            if not uses:
                parameter.grad = None

    def close(self) -> None:
        """Parameters that are no longer these."""
        for hook in self._hooks:
            hook.remove()


class _Sending:
    """Buckets on their way: before one too many sets out the first must be back."""

    def __init__(self, group: dist.ProcessGroup | None):
        self.group = group
        self.buckets: deque[_Bucket] = deque()

    def add(self, bucket: _Bucket) -> None:
        if len(self.buckets) == IN_FLIGHT:
            self.buckets.popleft().receive()
        bucket.send(self.group)
        self.buckets.append(bucket)

    def end(self) -> None:
        while self.buckets:
            self.buckets.popleft().receive()


class _Bucket:
    """Gradients of one type that are summed in one operation. ``missing``: those that are not there yet."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters, self.missing = parameters, 0
        self._flat: Tensor | None = None
        self._work: Any = None

    def send(self, group: dist.ProcessGroup | None) -> None:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
        self._flat = torch.cat([here(parameter.grad).reshape(-1) for parameter in self.parameters])
        self._work = dist.all_reduce(self._flat, group=group, async_op=True)

    def receive(self) -> None:
        self._work.wait()
        gradients = [here(parameter.grad) for parameter in self.parameters]
        for gradient, part in zip(gradients, self._flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
        self._flat = self._work = None


def _runs(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Runs of parameters whose gradients are of one type, of about BUCKET_BYTES each."""
    run: list[nn.Parameter] = []
    size, kind = 0, None
    for parameter in parameters:
        width, numbers = parameter.grad_dtype or parameter.dtype, here(parameter).numel()
        if run and (width != kind or size + numbers * width.itemsize > BUCKET_BYTES):
            yield run
            run, size = [], 0
        run.append(parameter)
        size, kind = size + numbers * width.itemsize, width
    if run:
        yield run
