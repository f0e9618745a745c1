"""Next-token cross-entropy that holds no logits it does not need."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch.utils.checkpoint import checkpoint

from luban.models.decoder import Decoder
from luban.tokens.batch import Batch

LARGEST_LOGITS = 1 << 27  # elements; above it the logits are made chunk by chunk and again in the backward pass


def next_token_sum(model: Decoder, batch: Batch) -> torch.Tensor:
    """Weighted sum of nats over the scored positions of a batch: a scalar.

    Positions of weight 0 get no logits at all, which is most of the work saved in instruction tuning.
    """
    hidden = model(batch.inputs, positions=batch.positions, segments=batch.segments)  # [rows, seq, dim]
    scored = batch.weights.reshape(-1).nonzero().squeeze(1)  # [scored]
    hidden = hidden.reshape(-1, hidden.shape[-1])  # [rows*seq, dim]
    if scored.numel() < hidden.shape[0]:
        hidden = hidden.index_select(0, scored)
    targets = batch.targets.reshape(-1).index_select(0, scored)
    weights = batch.weights.reshape(-1).index_select(0, scored)
    rows = max(1, LARGEST_LOGITS // model.shape.vocabulary_size)
    if hidden.shape[0] <= rows:
        return _weighted_sum(model, hidden, targets, weights)
    parts = zip(hidden.split(rows), targets.split(rows), weights.split(rows), strict=True)
    return torch.stack([checkpoint(_weighted_sum, model, *part, use_reentrant=False) for part in parts]).sum()


def _weighted_sum(model: Decoder, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    nats = functional.cross_entropy(model.logits(hidden).float(), targets, reduction="none")  # [scored]
    return (nats * weights).sum()
