"""Heads that are Luban's own: a label read from two marked places, and tags with relations between pairs of tokens.

They stand on the bare trunk of any family. transformers has no class for them: config.json names the trunk's, which its AutoModel opens,
and ``luban_head`` beside it says the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from luban.models.heads import Head

if TYPE_CHECKING:
    from luban.models.base import Model

PAIR_WIDTH = 128


class MarkerClassifier(nn.Linear):
    """A label from the states of two places, side by side ("Matching the Blanks", arXiv:1906.03158): ``weight`` is [labels, 2 * dim]."""

    def __init__(self, width: int, outputs: int, dropout: float):
        super().__init__(2 * width, outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, markers: Tensor) -> Tensor:
        """[rows, labels] of hidden states [rows, seq, dim] and places [rows, 2]."""
        marked = hidden.gather(1, markers[..., None].expand(-1, -1, hidden.shape[-1]))  # [rows, 2, dim]
        return super().forward(self.dropout(marked.flatten(1)))


class PairScorer(nn.Module):
    """Tags of tokens, and for every ordered pair of tokens a score of each relation: a biaffine form (Dozat and Manning 2017,
    arXiv:1611.01734) on narrow projections, as in multi-head selection (Bekoulis et al. 2018, arXiv:1804.07847)."""

    def __init__(self, width: int, tags: int, relations: int, pair_width: int, dropout: float):
        super().__init__()
        self.tags = nn.Linear(width, tags)
        self.head, self.tail = nn.Linear(width, pair_width), nn.Linear(width, pair_width)
        self.relations = nn.Linear(pair_width + 1, relations * (pair_width + 1), bias=False)
        self.dropout = nn.Dropout(dropout)
        self.count = relations

    def forward(self, hidden: Tensor) -> Tensor:
        """[rows, seq, tags + seq * relations] of hidden states [rows, seq, dim]; :func:`parted` takes it apart."""
        rows, seq, _ = hidden.shape
        hidden = self.dropout(hidden)
        head, tail = (_with_one(self.dropout(torch.nn.functional.gelu(part(hidden)))) for part in (self.head, self.tail))  # [rows, seq, pair + 1]
        turned = self.relations(head).view(rows, seq * self.count, -1)  # [rows, seq * relations, pair + 1]
        pairs = turned @ tail.transpose(1, 2)  # [rows, seq * relations, seq]
        pairs = pairs.view(rows, seq, self.count, seq).transpose(2, 3).reshape(rows, seq, seq * self.count)
        return torch.cat([self.tags(hidden), pairs], dim=-1)


def parted(scores: Tensor, tags: int) -> tuple[Tensor, Tensor]:
    """Scores of tags [rows, seq, tags] and of relations [rows, seq of heads, seq of tails, relations]."""
    rows, seq, _ = scores.shape
    return scores[..., :tags], scores[..., tags:].reshape(rows, seq, seq, -1)


def _with_one(states: Tensor) -> Tensor:
    return torch.cat([states, torch.ones_like(states[..., :1])], dim=-1)


def attach_own(model: Model, head: Head) -> None:
    """Put the modules of a head that is Luban's own on a model that is a trunk alone."""
    shape, width = model.shape, model.shape.hidden_size
    shares = (getattr(shape, name, None) for name in ("classifier_dropout", "dropout"))
    dropout = next((float(share) for share in shares if share is not None), 0.1)
    if head.structure == "pairs":
        model.luban_pairs = PairScorer(width, len(head.settings["tags"]), len(head.labels), head.settings.get("pair_width", PAIR_WIDTH), dropout)
    else:
        model.classifier = MarkerClassifier(width, head.outputs, dropout)


def own_scores(model: Model, hidden: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
    """What such a head makes of hidden states [rows, seq, dim]; ``extra["markers"]`` [rows, 2] are the places that are read."""
    return model.luban_pairs(hidden) if model.head.structure == "pairs" else model.classifier(hidden, extra["markers"])
