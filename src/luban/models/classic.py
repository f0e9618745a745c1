"""What GPT-2 and BERT compute alike: positions and masks of segments, attention with dropout, activations, pooled vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from luban.foundation.errors import ConfigError, DataError
from luban.models.classic_shape import Activation
from luban.models.heads import Head, first_state, last_state, mean_state


def _gelu_by_tanh(states: Tensor) -> Tensor:
    return F.gelu(states, approximate="tanh")


FUNCTIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "gelu_new": _gelu_by_tanh, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh,
}  # fmt: skip


def text_positions(tokens: Tensor, segments: Tensor | None, limit: int) -> Tensor:
    """Positions [rows or 1, seq] of tokens [rows, seq]: 0, 1, …, anew where a segment begins. DataError where a row without segments is longer than ``limit``."""
    places = torch.arange(tokens.shape[1], device=tokens.device)[None]  # [1, seq]
    if segments is None:
        if tokens.shape[1] > limit:
            raise DataError(
                "a text of {count} tokens is longer than the {limit} positions of the model",
                "it has learned no positions beyond",
                "cut it, or read it in windows",
                count=tokens.shape[1],
                limit=limit,
            )
        return places
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    positions = places - torch.where(begins, places, 0).cummax(1).values  # [rows, seq]
    return torch.where(segments >= 0, positions, 0)  # padding may be longer than the table


def segment_mask(segments: Tensor | None) -> Tensor | None:
    """What each token of an encoder sees, [rows, 1, seq, seq] of bool: its own segment. None: all. Padding sees padding, so that no row is empty."""
    return None if segments is None else (segments[:, :, None] == segments[:, None, :])[:, None]


def split_heads(states: Tensor, heads: int) -> Tensor:
    """[rows, seq, heads * head_dim] to [rows, heads, seq, head_dim]."""
    rows, seq, _ = states.shape
    return states.view(rows, seq, heads, -1).transpose(1, 2)


def join_heads(states: Tensor) -> Tensor:
    """[rows, heads, seq, head_dim] to [rows, seq, heads * head_dim]."""
    rows, _, seq, _ = states.shape
    return states.transpose(1, 2).reshape(rows, seq, -1)


def vector(head: Head, hidden: Tensor, segments: Tensor | None, default: str) -> Tensor:
    """A row's vector [rows, dim] from hidden states [rows, seq, dim], as the head's setting ``pooling`` says: first, mean or last."""
    pooling = head.settings.get("pooling", default)
    if pooling == "first":
        return first_state(hidden)
    if pooling == "mean":
        return mean_state(hidden, segments)
    if pooling == "last":
        return last_state(hidden, segments)
    raise ConfigError("pooling {name!r} is not known", "", "choose first, mean or last", name=pooling)
