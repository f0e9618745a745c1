"""Word vectors by word2vec: skip-gram and continuous bag of words with negative sampling (Mikolov et al. 2013, arXiv 1301.3781 and 1310.4546).

The objective, subsampling, shrunken windows and the linear decay of the rate are those of the papers. Two things differ, so that the work is
matrix products: updates of a batch of pairs are added up before they are applied (all those of one word scaled down together where they
are many), and the negative words are drawn once for a batch, each weighted so that a pair expects ``negatives`` of them.
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
_LONGEST_STEP = 0.5  # rate times the updates of one word in one batch; more are scaled down together, or small vocabularies diverge


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
    noise = np.cumsum(counts.astype(np.float64) ** 0.75)
    noise /= noise[-1]
    share = counts / counts.sum()
    rarity = settings.subsample / np.maximum(share, 1e-300)
    keep = np.minimum(1.0, np.sqrt(rarity) + rarity) if settings.subsample else np.ones(rows)
    network = _Network(inner, settings)
    layout, update = (_pairs, network.skip_gram) if settings.architecture == "skip_gram" else (_windows, network.bag_of_words)
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
                    total += update(torch.from_numpy(given), torch.from_numpy(wanted), negatives, rate)
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


class _Network:
    """The two tables [words, dimension]: of words as given and as predicted."""

    def __init__(self, inner: torch.Tensor, settings: Word2VecSettings):
        self.inner, self.outer = inner, torch.zeros_like(inner)
        self.negatives = settings.negatives
        self._number = torch.zeros(len(inner))  # updates of each word in this batch; zero between batches

    def skip_gram(self, given: torch.Tensor, wanted: torch.Tensor, negatives: torch.Tensor, rate: float) -> float:
        """One batch of pairs, given [pairs] and wanted [pairs]; the summed loss."""
        slope, loss = self._predict(self.inner[given], wanted, negatives, rate)
        self._add(self.inner, given, slope, torch.ones(len(given)), rate)
        return loss

    def bag_of_words(self, given: torch.Tensor, wanted: torch.Tensor, negatives: torch.Tensor, rate: float) -> float:
        """One batch of words with their neighbours, given [words, 2 * window] (-1 where none); the summed loss."""
        there = given >= 0
        hidden = (self.inner[given.clamp(min=0)] * there.unsqueeze(-1)).sum(1) / there.sum(1, keepdim=True)  # [words, dimension]
        slope, loss = self._predict(hidden, wanted, negatives, rate)
        place, _ = there.nonzero(as_tuple=True)
        self._add(self.inner, given[there], slope[place], torch.ones(len(place)), rate)
        return loss

    def _predict(self, hidden: torch.Tensor, wanted: torch.Tensor, negatives: torch.Tensor, rate: float) -> tuple[torch.Tensor, float]:
        """Move the output vectors; the slope of the log-likelihood in ``hidden`` [rows, dimension], and the summed loss."""
        weight = self.negatives / len(negatives)
        right, wrong = self.outer[wanted], self.outer[negatives]  # [rows, dimension], [negatives, dimension]
        agree = (hidden * right).sum(1)  # [rows]
        against = hidden @ wrong.T  # [rows, negatives]
        missing = torch.sigmoid(-agree).unsqueeze(1)  # [rows, 1]
        counted = (wanted.unsqueeze(1) != negatives).float().mul_(weight)  # a word is not its own negative
        excess = torch.sigmoid(against) * counted  # [rows, negatives]
        loss = float(torch.nn.functional.softplus(-agree).sum() + (torch.nn.functional.softplus(against) * counted).sum())
        slope = missing * right - excess @ wrong
        updates = torch.cat([missing * hidden, -(excess.T @ hidden)])
        share = torch.cat([torch.ones(len(wanted)), torch.full((len(negatives),), len(hidden) * weight)])
        self._add(self.outer, torch.cat([wanted, negatives]), updates, share, rate)
        return slope, loss

    def _add(self, table: torch.Tensor, rows: torch.Tensor, updates: torch.Tensor, share: torch.Tensor, rate: float) -> None:
        """Add ``updates`` [updates, dimension] times the rate to rows of the table; ``share`` [updates] is how many pairs each sums over."""
        self._number.index_add_(0, rows, share)
        step = (_LONGEST_STEP / self._number[rows]).clamp(max=rate).unsqueeze(1)
        self._number[rows] = 0.0
        table.index_add_(0, rows, updates * step)
