"""Word vectors by word2vec: skip-gram and continuous bag of words with negative sampling (Mikolov et al. 2013, arXiv 1301.3781 and 1310.4546).

The objective, subsampling, shrunken windows and the linear decay of the rate are those of the papers. Two things differ, so that the work is
matrix products: updates of a batch of pairs are added up before they are applied (the sum over one word is bounded, since a frequent word
stands in many pairs), and the negative words are drawn once for a batch, each weighted so that a pair expects ``negatives`` of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from luban.foundation.console import progress, say

_BLOCK = 100_000  # words whose windows are laid out at once; no window reaches over a block's end
_BATCH = 512  # pairs (skip-gram) or words (bag of words) whose updates are added up
_SHARED = 80  # negative words of one batch
_MOST_UPDATES = 32.0  # of one word in one batch; more are scaled down to this many


@dataclass(frozen=True)
class Word2VecSettings:
    """``subsample``: share of the text above which a word is left out at random (0 keeps all)."""

    architecture: str = "skip_gram"  # or "bag_of_words"
    dimension: int = 100
    window: int = 5
    negatives: int = 5
    epochs: int = 5
    learning_rate: float = 0.025
    subsample: float = 1e-3


def train_word2vec(ids: np.ndarray, counts: np.ndarray, settings: Word2VecSettings, seed: int) -> tuple[np.ndarray, list[float]]:
    """Vectors [words, dimension] float32, and the mean loss of each epoch.

    ``ids`` [text] int32 are word numbers with -1 between documents (a memory map will do); ``counts`` [words] how often each occurs. The
    result is the same for the same seed and number of threads.
    """
    random, rows = np.random.default_rng(seed), len(counts)
    inner = torch.from_numpy(((random.random((rows, settings.dimension)) - 0.5) / settings.dimension).astype(np.float32))
    outer = torch.zeros(rows, settings.dimension)
    noise = np.cumsum(counts.astype(np.float64) ** 0.75)
    noise /= noise[-1]
    share = counts / counts.sum()
    keep = np.ones(rows) if not settings.subsample else np.minimum(1.0, np.sqrt(settings.subsample / np.maximum(share, 1e-300)) + settings.subsample / np.maximum(share, 1e-300))
    layout, update = (_pairs, _skip_gram) if settings.architecture == "skip_gram" else (_windows, _bag_of_words)
    losses, work = [], max(len(ids) * settings.epochs, 1)
    with progress("training word vectors (words)", total=work) as advance, torch.no_grad():
        for epoch in range(settings.epochs):
            total = number = 0.0
            for start in range(0, len(ids), _BLOCK):
                done = (epoch * len(ids) + start) / work
                rate = settings.learning_rate * max(1.0 - done, 1e-4)
                words, documents = _subsampled(np.asarray(ids[start : start + _BLOCK]), keep, random)
                for given, wanted in layout(words, documents, settings.window, random):
                    negatives = torch.from_numpy(np.searchsorted(noise, random.random(_SHARED), side="right").clip(max=rows - 1))
                    total += update(inner, outer, torch.from_numpy(given), torch.from_numpy(wanted), negatives, settings.negatives, rate)
                    number += len(wanted)
                advance(min(_BLOCK, len(ids) - start))
            losses.append(total / max(number, 1.0))
            say("  epoch {epoch} of {epochs}: loss {loss}", epoch=epoch + 1, epochs=settings.epochs, loss=f"{losses[-1]:.4f}")
    return inner.numpy(), losses


def _subsampled(block: np.ndarray, keep: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The words of a block that stay, and the number of the document each is in, both [kept]."""
    documents = np.cumsum(block < 0)
    stays = (block >= 0) & (random.random(len(block)) < keep[np.maximum(block, 0)])
    return block[stays].astype(np.int64), documents[stays]


def _pairs(words: np.ndarray, documents: np.ndarray, window: int, random: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of (word [pairs], neighbour [pairs]) in random order; each word's window is drawn from 1 to ``window``."""
    reach = random.integers(1, window + 1, len(words))
    given, wanted = [], []
    for distance in range(1, min(window, len(words) - 1) + 1):
        together = documents[:-distance] == documents[distance:]
        for centre, other in ((slice(None, -distance), slice(distance, None)), (slice(distance, None), slice(None, -distance))):
            chosen = together & (reach[centre] >= distance)
            given.append(words[centre][chosen])
            wanted.append(words[other][chosen])
    if not given:
        return
    given_all, wanted_all = np.concatenate(given), np.concatenate(wanted)
    order = random.permutation(len(given_all))
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        yield given_all[batch], wanted_all[batch]


def _windows(words: np.ndarray, documents: np.ndarray, window: int, random: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of (neighbours [words, 2 * window], -1 where none, word [words]) in random order."""
    if len(words) < 2:
        return
    reach = random.integers(1, window + 1, len(words))
    neighbours = np.full((len(words), 2 * window), -1, np.int64)
    for distance in range(1, min(window, len(words) - 1) + 1):
        together = documents[:-distance] == documents[distance:]
        neighbours[:-distance, distance - 1] = np.where(together & (reach[:-distance] >= distance), words[distance:], -1)
        neighbours[distance:, window + distance - 1] = np.where(together & (reach[distance:] >= distance), words[:-distance], -1)
    order = random.permutation(np.flatnonzero((neighbours >= 0).any(1)))
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        yield neighbours[batch], words[batch]


def _skip_gram(inner: torch.Tensor, outer: torch.Tensor, given: torch.Tensor, wanted: torch.Tensor, negatives: torch.Tensor, wanted_negatives: int, rate: float) -> float:
    hidden = inner[given]  # [pairs, dimension]
    slope, loss = _output_step(outer, hidden, wanted, negatives, wanted_negatives, rate)
    _add(inner, given, slope.mul_(rate))
    return loss


def _bag_of_words(inner: torch.Tensor, outer: torch.Tensor, given: torch.Tensor, wanted: torch.Tensor, negatives: torch.Tensor, wanted_negatives: int, rate: float) -> float:
    there = given >= 0  # [words, 2 * window]
    hidden = (inner[given.clamp(min=0)] * there.unsqueeze(-1)).sum(1) / there.sum(1, keepdim=True)  # [words, dimension]
    slope, loss = _output_step(outer, hidden, wanted, negatives, wanted_negatives, rate)
    place, _ = there.nonzero(as_tuple=True)
    _add(inner, given[there], slope.mul_(rate)[place])
    return loss


def _output_step(outer: torch.Tensor, hidden: torch.Tensor, wanted: torch.Tensor, negatives: torch.Tensor, wanted_negatives: int, rate: float) -> tuple[torch.Tensor, float]:
    """Move the output vectors; the slope of the log-likelihood in ``hidden`` [rows, dimension], and the summed loss."""
    weight = wanted_negatives / len(negatives)
    right, wrong = outer[wanted], outer[negatives]  # [rows, dimension], [negatives, dimension]
    agree = (hidden * right).sum(1)  # [rows]
    against = hidden @ wrong.T  # [rows, negatives]
    missing = torch.sigmoid(-agree).unsqueeze(1)  # [rows, 1]
    counted = (wanted.unsqueeze(1) != negatives).float().mul_(weight)  # a word is not its own negative
    excess = torch.sigmoid(against) * counted  # [rows, negatives]
    loss = float(torch.nn.functional.softplus(-agree).sum() + (torch.nn.functional.softplus(against) * counted).sum())
    slope = missing * right - excess @ wrong
    toward = (missing * hidden).mul_(rate)
    away = (excess.T @ hidden).mul_(-rate * min(1.0, _MOST_UPDATES / (len(hidden) * weight)))
    _add(outer, wanted, toward)
    outer.index_add_(0, negatives, away)
    return slope, loss


def _add(table: torch.Tensor, rows: torch.Tensor, updates: torch.Tensor) -> None:
    """Add updates to rows; a row that gets more than `_MOST_UPDATES` gets them scaled down to that many."""
    number = torch.bincount(rows, minlength=1)[rows]
    table.index_add_(0, rows, updates * (_MOST_UPDATES / number.clamp(min=_MOST_UPDATES)).unsqueeze(1))
