"""Cross-entropy of a product with the vocabulary, some tokens at a time, whose logits never exist for all.

Its derivative is known as soon as a chunk's logits are: softmax minus target. So the gradients by the states and by the matrix are made in the forward pass, while the logits are in
cache, and nothing is computed twice (as Hsu et al. 2024, "Liger kernel", arXiv:2410.10989, do on GPUs). The backward pass multiplies them by what comes from above.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from luban.models import own_layers
from luban.models.products import gradient_memory, widened, workspace_of


def chunked_sum(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, label_smoothing: float, rows: int, how: str = "torch", again: bool = False) -> Tensor:
    """Weighted sum of the cross-entropies (nats, a scalar) of ``hidden @ weight.T + bias``, ``rows`` of the tokens at a time.

    ``hidden`` [tokens, dim], ``weight`` [vocabulary, dim], ``bias`` [vocabulary], ``targets`` and ``weights`` [tokens]. Under autocast the products are taken in its type; the loss is
    float32 at least. ``how``: a chunk's logits become its loss and their own derivative by torch, by what torch compiled, or by Luban's own code
    (in float32 on a processor). A matrix whose rows are shared out over ranks gives each of them the logits of its own rows; of a token they
    exchange three numbers. ``again``: the backward pass may be run a second time.
    """
    device, place = hidden.device.type, None
    if hasattr(weight, "to_local"):
        from luban.models.parts import alike, first_row, local_bias

        place = _Place(weight.device_mesh.get_group(), first_row(weight), len(weight))
        hidden, bias, weight = alike(hidden, weight.device_mesh), local_bias(bias, weight), weight.to_local()
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):  # which would take the sum of the losses in half precision
        return _ChunkedSum.apply(hidden, weight, bias, targets, weights, label_smoothing, rows, how, place, again)


class _Place(NamedTuple):
    """Which rows of a matrix that ranks share out are here."""

    group: dist.ProcessGroup
    first: int
    vocabulary: int  # rows in all


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, label_smoothing: float, rows: int, how: str, place: _Place | None, again: bool) -> Tensor:
        ctx.again = again
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        workspace = workspace_of(weight)
        wide = torch.float32 if hidden.dtype.itemsize < 4 else hidden.dtype
        matrix = widened(weight, hidden.dtype, workspace)
        by_hidden = torch.empty_like(hidden) if for_hidden else None
        by_weight = gradient_memory(weight, wide, workspace).zero_() if for_weight else None
        judge = _judge(how, hidden, place)
        by_bias = torch.zeros_like(bias, dtype=wide) if for_bias else None
        total = torch.zeros((), dtype=wide, device=hidden.device)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            share = weights[part].to(wide)  # [chunk]
            logits = hidden[part] @ matrix.t()  # [chunk, vocabulary]
            nats, slope = judge(logits, bias, targets[part], label_smoothing, any(ctx.needs_input_grad[:3]))
            total += nats @ share
            if slope is None:
                continue
            share = share.to(hidden.dtype)
            if for_hidden:
                torch.mm(slope, matrix, out=by_hidden[part]).mul_(share[:, None])
            if for_weight:
                _add_product(by_weight, slope.t(), hidden[part] * share[:, None])
            if for_bias:
                by_bias += share @ slope
        ctx.save_for_backward(by_hidden, by_weight, by_bias)
        return total

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        # In place, as a rule: the whole loss has one backward pass, and a second table of the vocabulary's size would be as large as the first.
        scaled = Tensor.mul if ctx.again else Tensor.mul_
        made = [None if gradient is None else scaled(gradient, above.to(gradient.dtype)) for gradient in ctx.saved_tensors]
        return (*made, None, None, None, None, None, None, None)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _judged(logits: Tensor, bias: Tensor | None, targets: Tensor, label_smoothing: float, learning: bool) -> tuple[Tensor, Tensor | None]:
    """Each token's cross-entropy [chunk], and its derivative by the logits [chunk, vocabulary] in their type."""
    wide = logits.float() if logits.dtype.itemsize < 4 else logits
    if bias is not None:
        wide += bias
    known = wide.log_softmax(1)
    place = targets[:, None]
    nats = _nats(known, place, label_smoothing)
    return nats, _slope(known, place, label_smoothing).to(logits.dtype) if learning else None


def _judged_in_one(logits: Tensor, bias: Tensor | None, targets: Tensor, label_smoothing: float, learning: bool) -> tuple[Tensor, Tensor | None]:
    """:func:`_judged` for the compiler: nothing is changed in place, and no index is scattered."""
    wide = logits.float() if logits.dtype.itemsize < 4 else logits
    if bias is not None:
        wide = wide + bias
    top = wide.amax(1, keepdim=True)
    weight = (wide - top).exp()
    sum_of = weight.sum(1, keepdim=True)
    norm = sum_of.log() + top
    nats = (norm - wide.gather(1, targets[:, None]))[:, 0]
    if label_smoothing:
        nats = (1 - label_smoothing) * nats + label_smoothing * (norm[:, 0] - wide.mean(1))
    if not learning:
        return nats, None
    hit = torch.arange(wide.shape[1], device=wide.device) == targets[:, None]
    slope = weight / sum_of - torch.where(hit, 1.0 - label_smoothing, 0.0)
    if label_smoothing:
        slope = slope - label_smoothing / wide.shape[1]
    return nats, slope.to(logits.dtype)


def _judge(how: str, hidden: Tensor, place: _Place | None) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if place:
        return _shared_judge(place)
    if how == "own" and hidden.device.type == "cpu" and hidden.dtype == torch.float32:
        return own_layers.cross_entropy
    return _compiled() if how == "compiled" else _judged


def _shared_judge(place: _Place) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """:func:`_judged` of logits [chunk, own rows]: the largest, the sum of exponentials and the target's of each token are found together."""

    def judge(logits: Tensor, bias: Tensor | None, targets: Tensor, label_smoothing: float, learning: bool) -> tuple[Tensor, Tensor | None]:
        wide = logits.float() if logits.dtype.itemsize < 4 else logits
        if bias is not None:
            wide += bias
        top = wide.amax(1) if wide.shape[1] else wide.new_full((len(wide),), -torch.inf)
        dist.all_reduce(top, dist.ReduceOp.MAX, group=place.group)
        hit = (targets >= place.first) & (targets < place.first + wide.shape[1])
        own = torch.where(hit, targets - place.first, 0)[:, None] if wide.shape[1] else hit[:, None].long()
        found = wide.gather(1, own)[:, 0] * hit if wide.shape[1] else wide.new_zeros(len(wide))
        sums = torch.stack([(wide - top[:, None]).exp_().sum(1), found, wide.sum(1)])
        dist.all_reduce(sums, group=place.group)
        norm = sums[0].log() + top
        nats = norm - (1 - label_smoothing) * sums[1] - label_smoothing * sums[2] / place.vocabulary
        if not learning:
            return nats, None
        slope = (wide - norm[:, None]).exp_()
        if label_smoothing:
            slope -= label_smoothing / place.vocabulary
        if wide.shape[1]:
            slope.scatter_add_(1, own, (hit * (label_smoothing - 1.0)).to(slope.dtype)[:, None])
        return nats, slope.to(logits.dtype)

    return judge


@functools.cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor | None]]:
    return torch.compile(_judged_in_one, dynamic=True)


def _nats(known: Tensor, place: Tensor, label_smoothing: float) -> Tensor:
    """Each token's cross-entropy [chunk], of log-probabilities [chunk, vocabulary]."""
    nats = -known.gather(1, place)[:, 0]
    return (1 - label_smoothing) * nats - label_smoothing * known.mean(1) if label_smoothing else nats


def _slope(known: Tensor, place: Tensor, label_smoothing: float) -> Tensor:
    """The derivative of each token's cross-entropy by its logits, in the place of the log-probabilities."""
    slope = known.exp_()
    if label_smoothing:
        slope -= label_smoothing / slope.shape[1]
    return slope.scatter_add_(1, place, torch.full_like(place, label_smoothing - 1.0, dtype=slope.dtype))
