"""Noise on batches: a loader whose batches are changed at random, as a pure function of seed, step and row, so that position is all there is to resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from luban.tokens.batch import Batch

_TRAINING, _VALIDATION = 0, 1


class Noise:
    """Random numbers of one row, from Philox's raw 64-bit words (see order.py): no later numpy changes them."""

    def __init__(self, *key: int):
        self._bits = np.random.Philox(np.random.SeedSequence([part % 2**64 for part in key]))

    def uniform(self, size: int) -> np.ndarray:
        """[size] float64 from 0 to below 1."""
        return (self._bits.random_raw(size) >> np.uint64(11)) * 2.0**-53

    def chance(self) -> float:
        """One number from 0 to below 1."""
        return float(self.uniform(1)[0])

    def below(self, limit: int, size: int) -> np.ndarray:
        """[size] int64 from 0 to below ``limit``."""
        return (self.uniform(size) * limit).astype(np.int64)

    def order(self, size: int) -> np.ndarray:
        """A random order of ``size`` things [size] int64."""
        return np.argsort(self._bits.random_raw(size), kind="stable")

    def chosen(self, size: int, count: int) -> np.ndarray:
        """``count`` of ``size`` things, in their order [count] int64."""
        return np.sort(self.order(size)[:count])

    def rounded(self, value: float) -> int:
        """The whole number below or above, so that the mean over many draws is ``value``."""
        return int(value + self.chance())

    def poisson(self, mean: float, size: int) -> np.ndarray:
        """[size] int64 of a Poisson distribution, by its distribution function."""
        terms = [np.exp(-mean)]
        while len(terms) < 10 * mean + 40:
            terms.append(terms[-1] * mean / len(terms))
        return np.searchsorted(np.cumsum(terms), self.uniform(size), side="right")

    def composition(self, total: int, parts: int) -> np.ndarray:
        """``total`` as a sum of ``parts`` positive numbers [parts], every way of writing it equally likely."""
        cuts = self.chosen(total - 1, parts - 1) + 1
        return np.diff(np.concatenate([[0], cuts, [total]]))


Change = Callable[[Batch, Sequence[Noise]], Batch]


class Transformed:
    """A loader's batches, each changed by ``function(batch, noises)``, which gets a :class:`Noise` for every row.

    The noise of a row is drawn from (seed, the row's number over the whole run): new in every epoch, the same whenever the
    step is asked for again, and the same however rows are shared among ranks. That of ``pass_once`` (validation) never changes.
    """

    def __init__(self, loader: Any, function: Change, seed: int):
        self.loader, self.function, self.seed = loader, function, seed

    @property
    def epoch_steps(self) -> int:
        """Steps in one pass over the data."""
        return self.loader.epoch_steps

    def step(self, index: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The batch of optimizer step ``index``, or the share of one of ``ranks``."""
        batch = self.loader.step(index) if ranks == 1 else self.loader.step(index, rank, ranks)
        return self._changed(batch, _TRAINING, index * ranks + rank)

    def pass_once(self) -> Iterator[Batch]:
        """Everything once, for validation."""
        first = 0
        for batch in self.loader.pass_once():
            yield self._changed(batch, _VALIDATION, 0, first)
            first += len(batch.inputs)

    def _changed(self, batch: Batch, kind: int, share: int, first: int = 0) -> Batch:
        rows = len(batch.inputs)
        first += share * rows
        return self.function(batch, [Noise(self.seed, kind, first + row) for row in range(rows)])


# ---- pieces of text in rows, and rows made of pieces ---------------------------------------------------------------------

Pair = tuple[np.ndarray, np.ndarray]  # source ids, target ids


def pieces_of(batch: Batch) -> list[list[np.ndarray]]:
    """The ids of each piece of text in each row, in order; padding is left out."""
    inputs = batch.inputs.numpy()
    if batch.segments is None:
        return [[row] for row in inputs]
    rows = []
    for ids, segments in zip(inputs, batch.segments.numpy(), strict=True):
        ends = np.flatnonzero(segments[1:] != segments[:-1]) + 1
        pieces = np.split(np.arange(len(ids)), ends)
        rows.append([ids[places] for places in pieces if segments[places[0]] >= 0])
    return rows


def next_tokens(batch: Batch) -> Batch:
    """The batch with the token that follows in its own piece as the target of each place; the last place of a piece has none."""
    targets = batch.inputs.roll(-1, dims=1)
    follows = torch.ones_like(batch.inputs, dtype=torch.bool)
    follows[:, -1] = False
    if batch.segments is not None:
        follows[:, :-1] = (batch.segments[:, 1:] == batch.segments[:, :-1]) & (batch.segments[:, :-1] >= 0)
    return replace(batch, targets=torch.where(follows, targets, batch.inputs), weights=follows.float())


def packed(rows: Sequence[Sequence[np.ndarray]], like: Batch, pad_id: int, width: int) -> Batch:
    """Rows of pieces as a batch of ``width`` places: ids, segments and positions; nothing is scored yet."""
    inputs, segments, positions = _filled(rows, pad_id, width)
    weights = torch.zeros(inputs.shape, dtype=torch.float32)
    return Batch(inputs, inputs.clone(), weights, positions, segments, like.sources, like.row_sources)


def paired(rows: Sequence[Sequence[Pair]], like: Batch, pad_id: int, start_id: int) -> Batch:
    """Rows of (source, target) pairs for an encoder–decoder: the decoder reads each target one place later, behind ``start_id``.

    Source and target of a pair have the same segment number, so that pairs in one row do not see each other.
    """
    widths = [max((sum(len(pair[side]) for pair in row) for row in rows), default=1) for side in (0, 1)]
    source, source_segments, _ = _filled([[pair[0] for pair in row] for row in rows], pad_id, _rounded(widths[0]))
    width = _rounded(widths[1])
    targets, segments, positions = _filled([[pair[1] for pair in row] for row in rows], pad_id, width)
    read, _, _ = _filled([[np.concatenate([[start_id], pair[1][:-1]]) for pair in row] for row in rows], pad_id, width)
    return Batch(
        read, targets, (segments >= 0).float(), positions, segments, like.sources, like.row_sources,
        source=source, source_segments=source_segments,
    )  # fmt: skip


def _filled(rows: Sequence[Sequence[np.ndarray]], pad_id: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, segments and positions [rows, width] of rows of pieces."""
    ids = np.full((len(rows), width), pad_id, np.int64)
    segments = np.full((len(rows), width), -1, np.int32)
    positions = np.zeros((len(rows), width), np.int64)
    for row, pieces in enumerate(rows):
        place = 0
        for number, piece in enumerate(pieces):
            here = slice(place, place + len(piece))
            ids[row, here], segments[row, here], positions[row, here] = piece, number, np.arange(len(piece))
            place += len(piece)
    return torch.from_numpy(ids), torch.from_numpy(segments), torch.from_numpy(positions)


def _rounded(size: int) -> int:
    """Up to a multiple of 8, and at least that: what matrix units like."""
    return max(8, -(-size // 8) * 8)
