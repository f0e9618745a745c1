"""The order in which data is read, as a pure function of (seed, epoch, place): nothing is remembered between calls.

Numbers come from Philox (Salmon et al. 2011) keyed by what they are for, through its raw 64-bit words, whose stream is fixed
by the algorithm, and not through numpy's distributions, which a later version may change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_BLOCK = 256  # documents between two remembered sums of lengths
_MIXTURE_ROWS = 1024


class Piece(NamedTuple):
    """Part of an item in a row: its targets ``start`` to ``stop``."""

    item: int
    start: int
    stop: int


def permutation(size: int, *key: int) -> np.ndarray:
    """A random order of ``size`` things [size] uint32 or int64, the same for the same key wherever it is computed."""
    words = np.random.Philox(np.random.SeedSequence([part % 2**64 for part in key])).random_raw(size)
    order = np.argsort(words, kind="stable")
    return order.astype(np.uint32) if size < 2**32 else order


class Remembered:
    """The last two values of a function of one number (an epoch's order and the one before it)."""

    def __init__(self, make: Callable[[int], object]):
        self.make, self.kept = make, OrderedDict()

    def __call__(self, number: int):
        if number not in self.kept:
            self.kept[number] = self.make(number)
            while len(self.kept) > 2:
                self.kept.popitem(last=False)
        return self.kept[number]


class ConcatenatedRows:
    """Documents in a random order, end to end, cut into rows: no place is wasted, documents may be cut between rows.

    A row holds the targets ``i·S`` to ``(i+1)·S`` of the epoch's stream; the stream's last row may be shorter. The rows come in a random
    order, so that a step does not read one document from end to end. Memory: lengths and order, 8 bytes a document, 4 bytes a row.
    """

    def __init__(self, lengths: np.ndarray, sequence_length: int, seed: int, shuffle: bool = True):
        self.lengths, self.width, self.seed, self.shuffle = lengths, sequence_length, seed, shuffle
        self.total = int(lengths.sum(dtype=np.int64))
        self.rows_per_epoch = -(-self.total // sequence_length)
        self._order = Remembered(self._make_order)

    def _make_order(self, epoch: int) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
        """The epoch's order, where every 256th document of it starts, and the order of the rows."""
        size = len(self.lengths)
        order = permutation(size, self.seed, epoch) if self.shuffle else None
        sums = np.zeros(-(-size // _BLOCK) + 1, dtype=np.int64)
        for block in range(len(sums) - 1):
            part = slice(block * _BLOCK, (block + 1) * _BLOCK)
            sums[block + 1] = (self.lengths[part] if order is None else self.lengths[order[part]]).sum(dtype=np.int64)
        return order, np.cumsum(sums), permutation(self.rows_per_epoch, self.seed, epoch, 1) if self.shuffle else None

    def row(self, epoch: int, index: int) -> list[Piece]:
        """The pieces of a row, in order."""
        order, sums, rows = self._order(epoch)
        index = index if rows is None else int(rows[index])
        begin, end = index * self.width, min((index + 1) * self.width, self.total)
        block = int(np.searchsorted(sums, begin, side="right")) - 1
        position, place = block * _BLOCK, int(sums[block])
        inside = slice(position, position + _BLOCK)
        ends = place + np.cumsum(self.lengths[inside] if order is None else self.lengths[order[inside]], dtype=np.int64)
        before = int(np.searchsorted(ends, begin, side="right"))  # documents of the block that end before the row begins
        position, place = position + before, int(ends[before - 1]) if before else place
        pieces = []
        while place < end:
            item = position if order is None else int(order[position])
            length = int(self.lengths[item])
            if place + length > begin:
                pieces.append(Piece(item, max(begin - place, 0), min(end - place, length)))
            place += length
            position += 1
        return pieces

    def row_lengths(self) -> np.ndarray | None:
        return None


@dataclass
class _Table:
    """Pieces row after row: row ``i`` holds the pieces ``first[i]`` to ``first[i+1]``."""

    first: np.ndarray
    items: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


class FixedRows:
    """Rows whose content is settled once, read in another order each epoch.

    ``packing="none"``: one document a row (a long one fills several, each its own context). ``packing="best_fit"``: documents that
    fit a row are never cut; each goes where it leaves the least room, longest first (best-fit decreasing, as Ding et al. 2024,
    arXiv 2404.10830), in windows of 65,536 documents drawn at random. A row's company does not matter, as attention stays inside documents.
    ``longest`` cuts items shorter than a row; ``cost`` says how many places pieces of given lengths take.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        sequence_length: int,
        seed: int,
        packing: str,
        shuffle: bool = True,
        window: int = 65_536,
        *,
        longest: int | None = None,
        cost: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        self.width, self.seed, self.shuffle = sequence_length, seed, shuffle
        items, starts, stops = _cut(lengths, longest or sequence_length)
        if packing == "best_fit":
            sizes = stops - starts if cost is None else cost(stops - starts)
            rows = _best_fit(sizes, sequence_length, permutation(len(items), seed, 2**63) if shuffle else np.arange(len(items)), window)
            flat = np.array([piece for row in rows for piece in row], dtype=np.int64)
            first = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
            self.table = _Table(first, items[flat], starts[flat], stops[flat]) if len(flat) else _Table(first, items, starts, stops)
        else:
            self.table = _Table(np.arange(len(items) + 1), items, starts, stops)
        self.rows_per_epoch = len(self.table.first) - 1
        self._order = Remembered(self._make_order)
        self.bucket_rows = 0

    def bucket(self, rows_per_step: int) -> None:
        """Let rows of like length meet in a step, so that little of it is padding; which rows meet stays random."""
        self.bucket_rows = rows_per_step
        self._order = Remembered(self._make_order)

    def _make_order(self, epoch: int) -> np.ndarray:
        order = permutation(self.rows_per_epoch, self.seed, epoch) if self.shuffle else np.arange(self.rows_per_epoch)
        return self._bucketed(order, epoch) if self.bucket_rows else order

    def _bucketed(self, order: np.ndarray, epoch: int) -> np.ndarray:
        """In windows of 32 steps sort rows by length, cut them into steps, and shuffle the steps."""
        size, lengths = self.bucket_rows, self.row_lengths()
        lead = -(epoch * self.rows_per_epoch) % size  # rows that complete the last step of the epoch before
        parts = [order[:lead]]
        for begin in range(lead, len(order), 32 * size):
            window = order[begin : begin + 32 * size]
            window = window[np.argsort(lengths[window], kind="stable")]
            whole = len(window) // size * size
            # What fills no whole step is the last of an epoch; taken at random, so that it is not always the longest rows.
            left_out = np.sort(permutation(len(window), self.seed, epoch, begin, 1)[: len(window) - whole])
            steps = np.delete(window, left_out).reshape(-1, size)
            parts += [steps[permutation(len(steps), self.seed, epoch, begin, 2)].reshape(-1), window[left_out]]
        return np.concatenate(parts)

    def row(self, epoch: int, index: int) -> list[Piece]:
        """The pieces of a row, in order."""
        row = int(self._order(epoch)[index])
        table = self.table
        return [
            Piece(int(table.items[i]), int(table.starts[i]), int(table.stops[i])) for i in range(table.first[row], table.first[row + 1])
        ]

    def row_lengths(self) -> np.ndarray:
        """Targets in each row, before shuffling [rows]."""
        sums = np.concatenate([[0], np.cumsum(self.table.stops - self.table.starts)])
        return np.diff(sums[self.table.first])


def _cut(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every item as pieces of at most ``width`` targets: items, starts and stops of the pieces."""
    lengths = lengths.astype(np.int64)
    counts = np.maximum(1, -(-lengths // width))
    items = np.repeat(np.arange(len(lengths)), counts)
    inside = np.arange(len(items)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = inside * width
    return items, starts, np.minimum(starts + width, lengths[items])


def _best_fit(lengths: np.ndarray, width: int, order: np.ndarray, window: int) -> list[list[int]]:
    """Pieces packed into rows. A bit set of the room that is left in open rows finds the tightest in one step."""
    rows: list[list[int]] = []
    for begin in range(0, len(order), window):
        part = order[begin : begin + window]
        part = part[np.argsort(-lengths[part], kind="stable")]
        open_rows: dict[int, list[int]] = {}  # room left -> rows with that room
        rooms = 0  # bit r is set if some row has room r
        for piece in part.tolist():
            length = int(lengths[piece])
            fitting = rooms >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1
                row = open_rows[room].pop()
                if not open_rows[room]:
                    rooms &= ~(1 << room)
            else:
                room, row = width, len(rows)
                rows.append([])
            rows[row].append(piece)
            if left := room - length:
                open_rows.setdefault(left, []).append(row)
                rooms |= 1 << left
    return rows


class Mixture:
    """Which store gives the next row, so that the shares hold exactly in every 1,024 rows (within one row a store).

    Of the rows before ``1024·b``, store k has given ``floor(w_k·1024·b)``; the heaviest store gives the rest. Inside a block the
    order is random by (seed, block). So the choice for any row is computed, not remembered.
    """

    def __init__(self, weights: list[float], seed: int):
        total = sum(weights)
        self.weights, self.seed = [weight / total for weight in weights], seed
        self.heaviest = max(range(len(weights)), key=lambda k: self.weights[k])
        self._block = Remembered(self._make_block)

    def _given(self, block: int) -> list[int]:
        counts = [int(weight * _MIXTURE_ROWS * block) for weight in self.weights]
        counts[self.heaviest] = 0
        counts[self.heaviest] = _MIXTURE_ROWS * block - sum(counts)
        return counts

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each row of the block: its store, and which of the store's rows it is."""
        before, after = self._given(block), self._given(block + 1)
        stores = np.repeat(np.arange(len(before)), np.subtract(after, before))
        stores = stores[permutation(_MIXTURE_ROWS, self.seed, block, 2**62)]
        numbers = np.zeros(_MIXTURE_ROWS, dtype=np.int64)
        for k, start in enumerate(before):
            chosen = stores == k
            numbers[chosen] = start + np.arange(int(chosen.sum()))
        return stores, numbers

    def given(self, rows: int) -> list[int]:
        """How many of the first ``rows`` rows each store has given."""
        if len(self.weights) == 1:
            return [rows]
        block, rest = divmod(rows, _MIXTURE_ROWS)
        inside = np.bincount(self._block(block)[0][:rest], minlength=len(self.weights)) if rest else np.zeros(len(self.weights), int)
        return [int(before + more) for before, more in zip(self._given(block), inside, strict=True)]

    def choose(self, row: int) -> tuple[int, int]:
        """Store and row number in that store's own stream, for a row of the mixture."""
        if len(self.weights) == 1:
            return 0, row
        stores, numbers = self._block(row // _MIXTURE_ROWS)
        return int(stores[row % _MIXTURE_ROWS]), int(numbers[row % _MIXTURE_ROWS])
