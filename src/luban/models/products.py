"""``states @ weight.T + bias`` where the weight may be held in a narrower type than the states."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Workspace:
    """Memory for what is as large as a matrix and lives for a moment: its widened copy, and its gradient until the optimizer has used it.

    Shared by the weights of a model that are held narrow (``weight.workspace``). Taken from and handed back to the system each time, such blocks cost a fifth of a step in page faults;
    kept by the C library they leave holes between smaller ones that stay. One thread at a time.
    """

    def __init__(self) -> None:
        self.scratch = torch.empty(0)
        self.free: list[Tensor] = []  # flat buffers of float32

    def widened(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight in another type, to be used before the next call."""
        if self.scratch.numel() < weight.numel() or self.scratch.dtype != dtype or self.scratch.device != weight.device:
            self.scratch = torch.empty(0)  # given back before more is taken
            self.scratch = torch.empty(weight.numel(), dtype=dtype, device=weight.device)
        return self.scratch[: weight.numel()].view(weight.shape).copy_(weight)

    def take(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Float32 memory for a gradient, its values whatever they are."""
        size = prod(shape)
        fitting = [buffer for buffer in self.free if buffer.numel() >= size and buffer.device == device]
        buffer = min(fitting, key=Tensor.numel) if fitting else torch.empty(size, device=device)
        self.free = [other for other in self.free if other is not buffer]
        return buffer[:size].view(shape)

    def give_back(self, gradient: Tensor) -> None:
        """A gradient is used up: all the memory that it stands in, which may be more than it filled. The two largest are kept."""
        storage = gradient.untyped_storage()
        whole = torch.empty(0, device=gradient.device).set_(storage, 0, (storage.nbytes() // 4,), (1,))
        self.free = sorted([*self.free, whole], key=Tensor.numel)[-2:]


def here(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def workspace_of(weight: Tensor) -> Workspace | None:
    """The weight's workspace, to be asked of the parameter itself: what autograd saved of it need not know."""
    return getattr(weight, "workspace", None)


def widened(weight: Tensor, dtype: torch.dtype, workspace: Workspace | None) -> Tensor:
    """The weight in the type of the states that it is multiplied with, for the moment: the memory of a workspace is used again by the next."""
    if weight.dtype == dtype:
        return weight
    return weight.to(dtype) if workspace is None else workspace.widened(weight, dtype)


def gradient_memory(weight: Tensor, dtype: torch.dtype, workspace: Workspace | None) -> Tensor:
    """Memory for a weight's gradient of that type; of a workspace, in float32."""
    return torch.empty(weight.shape, dtype=dtype, device=weight.device) if workspace is None else workspace.take(weight.shape, weight.device)


def product(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., out] of states [..., in] and weight [out, in]. A narrower weight is turned into the states' type (under autocast into autocast's) for as long as
    the product lasts, in the forward and again in the backward pass; its gradient is float32."""
    if weight.dtype == states.dtype or states.dtype.itemsize <= weight.dtype.itemsize:
        return F.linear(states, weight, bias)
    if torch.is_autocast_enabled(states.device.type):
        states = states.to(torch.get_autocast_dtype(states.device.type))
    made = _Product.apply(states, weight)
    return made if bias is None else made + bias.to(made.dtype)


def _widened_product(states: Tensor, weight: Tensor) -> Tensor:
    return F.linear(states, widened(weight, states.dtype, workspace_of(weight)))


# One operation to selective recompute (recompute.py), so that a product that is kept is not widened again either.
LIBRARY = torch.library.Library("luban", "DEF")
LIBRARY.define("widened_product(Tensor states, Tensor weight) -> Tensor")
LIBRARY.impl("widened_product", _widened_product, "CompositeExplicitAutograd")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(states, weight)
        ctx.workspace = workspace_of(weight)
        return torch.ops.luban.widened_product(states, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        states, weight = ctx.saved_tensors
        for_states = for_weight = None
        if ctx.needs_input_grad[0]:
            for_states = gradient @ widened(weight, gradient.dtype, ctx.workspace)
        if ctx.needs_input_grad[1]:
            flat, inputs = gradient.reshape(-1, gradient.shape[-1]), states.reshape(-1, states.shape[-1])
            for_weight = gradient_memory(weight, torch.float32, ctx.workspace)
            if flat.dtype == torch.float32:
                torch.mm(flat.t(), inputs, out=for_weight)  # [out, in]
            else:
                for_weight.copy_(flat.t() @ inputs)
        return for_states, for_weight
