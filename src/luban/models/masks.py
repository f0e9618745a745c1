"""What tokens may see of each other, as tensors of bool: the causal rule, documents that are packed into a row, windows, prefixes."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_mask(
    seq: int, segments: Tensor | None, window: int | None, device: torch.device, prefix: Tensor | None = None
) -> Tensor | None:
    """What each token may see, [batch or 1, 1, seq, seq] of bool; None where the plain causal rule says it all.

    Tokens where ``prefix`` [batch, seq] holds see each other from both sides, inside the window and the segment.
    """
    if segments is None and prefix is None and (window is None or window >= seq):
        return None
    places = torch.arange(seq, device=device)
    return mask_of(places, places, segments, segments, prefix, prefix, window if window is not None and window < seq else None)[:, None]


def mask_of(
    places: Tensor, others: Tensor, segments: Tensor | None, other_segments: Tensor | None, prefix: Tensor | None, other_prefix: Tensor | None, window: int | None, causal: bool = True
) -> Tensor:
    """What tokens at ``places`` [seq] see of those at ``others`` [total], [batch or 1, seq, total] of bool: what comes not after them (or, not ``causal``, all), and what shares their prefix
    [batch, …]; nothing beyond the window or of other segments [batch, …]. Nothing wider than a bool is made of that size."""
    mask = (places[:, None] >= others)[None] if causal else torch.ones(1, len(places), len(others), dtype=torch.bool, device=places.device)
    if prefix is not None:
        mask = (prefix[:, :, None] & other_prefix[:, None, :]).logical_or_(mask)
    if window is not None:
        mask &= others > places[:, None] - window
        mask &= others < places[:, None] + window
    if segments is not None:
        mask = (segments[:, :, None] == other_segments[:, None, :]).logical_and_(mask)
    return mask


def added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Where gradients are kept, a mask of bool as what is added to the scores, 0 or -inf, in the type that attention is computed in. From bool each layer would make that for itself, and keep it for its backward pass."""
    if mask is None or mask.dtype != torch.bool or not torch.is_grad_enabled():
        return mask
    if torch.is_autocast_enabled(mask.device.type) and dtype != torch.float64:  # which autocast leaves as it is
        dtype = torch.get_autocast_dtype(mask.device.type)
    nothing, never = (torch.full((), value, dtype=dtype, device=mask.device) for value in (0.0, -torch.inf))
    return torch.where(mask, nothing, never)
