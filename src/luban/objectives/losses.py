"""Cross-entropy over tokens that holds no logits it does not need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch.utils.checkpoint import checkpoint

from luban.models.base import Model
from luban.objectives.chunks import chunked_sum
from luban.tokens.batch import Batch

LARGEST_LOGITS = 1 << 27  # elements; above it logits are made chunk by chunk and again in the backward pass, where a loss is made of them in some way of its own
# Cross-entropy needs nothing twice (chunks.py): so many logits at a time, and at least so many tokens. Measured, processor time beside plain cross-entropy: 0.83 at vocabulary 4,096, 0.98 at 32,000.
CHUNK_LOGITS, CHUNK_TOKENS, DEVICE_CHUNK_LOGITS = 1 << 25, 256, 1 << 28  # a device adds up the matrix's gradient in its own memory: fewer, larger parts
CROSS_ENTROPIES = ("plain", "chunked")


def wide(values: torch.Tensor) -> torch.Tensor:
    """In float32 at least: a loss is never computed in half precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def token_sum(model: Model, batch: Batch, label_smoothing: float = 0.0) -> torch.Tensor:
    """Weighted sum of nats over the scored positions of a batch: a scalar. Decoder, encoder and encoder–decoder alike.

    Positions of weight 0 get no logits at all, which is most of the work saved in instruction tuning.
    """
    hidden = model(batch.inputs, **batch.context())  # [rows, seq, dim]
    scored = batch.scored
    hidden = hidden.reshape(-1, hidden.shape[-1])  # [rows*seq, dim]
    if scored.numel() < hidden.shape[0]:
        hidden = hidden.index_select(0, scored)
    targets = batch.targets.reshape(-1).index_select(0, scored)
    weights = batch.weights.reshape(-1).index_select(0, scored)
    return hidden_sum(model, hidden, targets, weights, label_smoothing, model.cross_entropy)


def hidden_sum(model: Model, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, label_smoothing: float = 0.0, form: str = "chunked") -> torch.Tensor:
    """:func:`token_sum` of hidden states [scored, dim] with targets and weights [scored]; ``form`` of :data:`CROSS_ENTROPIES`, where the model can do both and so many logits may be held."""
    if (factors := model.output_product(hidden)) is not None and not (form == "plain" and may_be_plain(model, len(hidden))):
        return chunked_sum(*factors, targets, weights, label_smoothing, _chunk_tokens(model), "own" if model.own_layers else "compiled" if model.compiled else "torch", model.split_backward)
    rows = max(1, LARGEST_LOGITS // model.shape.vocabulary_size)
    if len(hidden) <= rows:
        return _weighted_sum(model, hidden, targets, weights, label_smoothing)
    parts = zip(hidden.split(rows), targets.split(rows), weights.split(rows), strict=True)
    return torch.stack([checkpoint(_weighted_sum, model, *part, label_smoothing, use_reentrant=False) for part in parts]).sum()


def may_be_plain(model: Model, tokens: int) -> bool:
    """Whether the logits of so many tokens are no more than a chunk's."""
    return tokens <= _chunk_tokens(model)


def _chunk_tokens(model: Model) -> int:
    return max(CHUNK_TOKENS, (CHUNK_LOGITS if model.device.type == "cpu" else DEVICE_CHUNK_LOGITS) // model.shape.vocabulary_size)


def token_nats(model: Model, batch: Batch, scored: torch.Tensor) -> torch.Tensor:
    """[rows, seq] nats of the targets at the places that ``scored`` [rows, seq] marks, 0 elsewhere. Only these get logits, and many of them in parts."""
    return _at_places(model, batch, scored, _nats)[0]


def token_nats_and_entropy(model: Model, batch: Batch, scored: torch.Tensor, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`token_nats` of the distribution at a temperature, and its entropy there in nats [rows, seq] each; the entropy is only a figure."""

    def figures(model: Model, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        known = (wide(model.logits(hidden)) / temperature).log_softmax(-1)  # [scored, vocabulary]
        with torch.no_grad():
            entropy = -(known.exp() * known).sum(-1)
        return -known.gather(1, targets[:, None])[:, 0], entropy

    nats, entropy = _at_places(model, batch, scored, figures)
    return nats, entropy


def _at_places(model: Model, batch: Batch, scored: torch.Tensor, function: Callable[..., Any]) -> list[torch.Tensor]:
    """What ``function(model, hidden, targets)`` says of the marked places, each of its figures [rows, seq]."""
    hidden = model(batch.inputs, **batch.context())  # [rows, seq, dim]
    places = scored.reshape(-1).nonzero().squeeze(1)  # [scored]
    hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, places)
    targets = batch.targets.reshape(-1).index_select(0, places)
    rows = max(1, LARGEST_LOGITS // model.shape.vocabulary_size)
    if hidden.shape[0] <= rows:
        found = function(model, hidden, targets)
    else:
        parts = [checkpoint(function, model, *part, use_reentrant=False) for part in zip(hidden.split(rows), targets.split(rows), strict=True)]
        found = tuple(torch.cat(some) for some in zip(*parts, strict=True))
    return [values.new_zeros(scored.numel()).index_copy(0, places, values).view(scored.shape) for values in found]


def _nats(model: Model, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor]:
    return (functional.cross_entropy(wide(model.logits(hidden)), targets, reduction="none"),)  # [scored]


def _weighted_sum(model: Model, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    nats = functional.cross_entropy(wide(model.logits(hidden)), targets, reduction="none", label_smoothing=label_smoothing)  # [scored]
    return (nats * weights).sum()


def scored_logits(model: Model, batch: Batch) -> torch.Tensor:
    """[scored, vocabulary] logits of the scored positions, all of them at once: for what compares outputs."""
    hidden = model(batch.inputs, **batch.context())
    scored = batch.scored
    return wide(model.logits(hidden.reshape(-1, hidden.shape[-1]).index_select(0, scored)))


def logits_sum(logits: torch.Tensor, batch: Batch, label_smoothing: float = 0.0) -> torch.Tensor:
    """Weighted sum of nats from :func:`scored_logits`: the same number as :func:`token_sum`."""
    scored = batch.scored
    targets, weights = batch.targets.reshape(-1)[scored], batch.weights.reshape(-1)[scored]
    return (functional.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing) * weights).sum()
