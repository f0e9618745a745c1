"""How well a model predicts given texts: the negative log-probability of every token, each counted once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from luban.models.decoder import Decoder

POOL_BATCHES = 16  # documents are collected until there are so many batches, then sorted by length: little padding
CHUNK_NUMBERS = 2**24  # logits that exist at once


@dataclass
class _Window:
    """A part of a document: what the model reads, and how many of its last tokens are scored here."""

    document: int
    tokens: list[int]
    scored: int


def score_documents(
    model: Decoder,
    sequences: Iterable[Sequence[int]],
    *,
    sequence_length: int,
    batch_rows: int = 8,
    start_id: int | None = None,
    stride: int | None = None,
) -> Iterator[tuple[float, int]]:
    """For each document, in order, the nats of its tokens and how many were scored. See ``score_tokens``."""
    for nats in score_tokens(model, sequences, sequence_length=sequence_length, batch_rows=batch_rows, start_id=start_id, stride=stride):
        yield float(nats.double().sum()), len(nats)


def score_tokens(
    model: Decoder,
    sequences: Iterable[Sequence[int]],
    *,
    sequence_length: int,
    batch_rows: int = 8,
    start_id: int | None = None,
    stride: int | None = None,
) -> Iterator[Tensor]:
    """For each document, in order, the nats [tokens] of its tokens given those before them in it.

    ``start_id`` (end of text, as in training) is what the first token is predicted from; without it the first token is
    context only. A document longer than ``sequence_length`` is read in windows: the first scores all it holds, each
    further one moves on by ``stride`` (half of ``sequence_length``) and scores the new tokens, so that each has at least
    ``sequence_length - stride`` tokens of context. Documents never see each other.
    """
    stride = stride or max(1, sequence_length // 2)
    if not 0 < stride <= sequence_length:
        raise ValueError("stride must be between 1 and sequence_length")
    sizes: list[int] = []
    windows: list[_Window] = []
    for sequence in sequences:
        tokens = ([] if start_id is None else [start_id]) + list(sequence)
        windows += _windows(len(sizes), tokens, sequence_length, stride)
        sizes.append(max(0, len(tokens) - 1))
        if len(windows) >= POOL_BATCHES * batch_rows:
            yield from _score(model, windows, sizes, batch_rows)
            sizes, windows = [], []
    yield from _score(model, windows, sizes, batch_rows)


def _windows(document: int, tokens: list[int], length: int, stride: int) -> Iterator[_Window]:
    """Windows of up to ``length`` inputs and the token after each."""
    done = 0  # targets scored so far; target i is token i + 1
    targets = len(tokens) - 1
    while done < targets:
        end = min(targets, done + (length if done == 0 else stride))
        yield _Window(document, tokens[max(0, end - length) : end + 1], end - done)
        done = end


@torch.inference_mode()
def _score(model: Decoder, windows: list[_Window], sizes: list[int], batch_rows: int) -> Iterator[Tensor]:
    """Nats of every document of a pool. Rows are padded on the right, which a causal model does not see."""
    pieces: list[Tensor] = [torch.empty(0)] * len(windows)
    order = sorted(range(len(windows)), key=lambda place: -len(windows[place].tokens))
    for start in range(0, len(order), batch_rows):
        chosen = order[start : start + batch_rows]
        rows = [windows[place].tokens for place in chosen]
        longest = len(rows[0]) - 1
        padded = torch.tensor([row + [0] * (longest + 1 - len(row)) for row in rows], device=model.device)  # [rows, longest + 1]
        hidden = model(padded[:, :-1])  # [rows, longest, dim]
        ends = [(len(row) - 1 - windows[place].scored, len(row) - 1) for row, place in zip(rows, chosen, strict=True)]
        states = torch.cat([hidden[row, first:last] for row, (first, last) in enumerate(ends)])  # [scored, dim]
        targets = torch.cat([padded[row, first + 1 : last + 1] for row, (first, last) in enumerate(ends)])  # [scored]
        nats = token_nats(model, states, targets).cpu()
        for place, piece in zip(chosen, nats.split([last - first for first, last in ends]), strict=True):
            pieces[place] = piece
    place = 0
    for document, size in enumerate(sizes):
        own = []
        while place < len(windows) and windows[place].document == document:
            own.append(pieces[place])
            place += 1
        total = torch.cat(own) if own else torch.empty(0)
        assert len(total) == size
        yield total


def token_nats(model: Decoder, states: Tensor, targets: Tensor) -> Tensor:
    """Negative log-probabilities [n] of targets [n] from hidden states [n, dim], a chunk of logits at a time."""
    rows = max(1, CHUNK_NUMBERS // model.shape.vocabulary_size)
    parts = [
        F.cross_entropy(_wide(model.logits(states[start : start + rows])), targets[start : start + rows], reduction="none")
        for start in range(0, len(targets), rows)
    ]
    return torch.cat(parts)


def _wide(logits: Tensor) -> Tensor:
    """float32 at least: a half-precision softmax loses the tail."""
    return logits if logits.dtype == torch.float64 else logits.float()
