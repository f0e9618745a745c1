"""Cross-entropy of a product with the vocabulary, some tokens at a time, whose logits never exist for all.

Its derivative is known as soon as a chunk's logits are: softmax minus target. So the gradients by the states and by the matrix are made in the forward pass, while the logits are in
cache, and nothing is computed twice (as Hsu et al. 2024, "Liger kernel", arXiv:2410.10989, do on GPUs). The backward pass multiplies them by what comes from above.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from luban.models.products import gradient_memory, widened, workspace_of


def chunked_sum(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, label_smoothing: float, rows: int, fused: bool = False) -> Tensor:
    """Weighted sum of the cross-entropies (nats, a scalar) of ``hidden @ weight.T + bias``, ``rows`` of the tokens at a time.

    ``hidden`` [tokens, dim], ``weight`` [vocabulary, dim], ``bias`` [vocabulary], ``targets`` and ``weights`` [tokens]. Under autocast the products are taken in its type; the loss is
    float32 at least. ``fused``: what happens to a chunk's logits is compiled.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):  # which would take the sum of the losses in half precision
        return _ChunkedSum.apply(hidden, weight, bias, targets, weights, label_smoothing, rows, fused)


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, label_smoothing: float, rows: int, fused: bool) -> Tensor:
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        workspace = workspace_of(weight)
        wide = torch.float32 if hidden.dtype.itemsize < 4 else hidden.dtype
        matrix = widened(weight, hidden.dtype, workspace)
        by_hidden = torch.empty_like(hidden) if for_hidden else None
        by_weight = gradient_memory(weight, wide, workspace).zero_() if for_weight else None
        judge = _compiled() if fused else _judged
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
        # In place: the whole loss has one backward pass, and a second table of the vocabulary's size would be as large as the first.
        made = [None if gradient is None else gradient.mul_(above.to(gradient.dtype)) for gradient in ctx.saved_tensors]
        return (*made, None, None, None, None, None)


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
