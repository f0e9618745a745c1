"""Loaders: ``step(index)`` is a pure function of seed and index, so that position is a number and resuming is free.

Rows are put together in global order before anything is split among ranks or micro-batches: whoever asks, row r of the run
holds the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

from luban.foundation.errors import ConfigError, DataError
from luban.tokens.batch import Batch, Example
from luban.tokens.order import ConcatenatedRows, FixedRows, Mixture, Piece
from luban.tokens.store import TokenStore

Packing = Literal["concatenate", "best_fit", "none"]
_MOST_STORES = 32
Filled = tuple[np.ndarray, np.ndarray, np.ndarray, str]  # inputs, targets, weights [n], source


class _Loader:
    """Rows from one or several sources, as batches."""

    sequence_length: int
    rows_per_step: int
    rows_per_epoch: int
    pad_id: int

    def step(self, index: int, rank: int = 0, ranks: int = 1) -> Batch:
        """Optimizer step ``index``: its rows, or the share of one of ``ranks``. Steps go on through as many epochs as asked for."""
        if self.rows_per_step % ranks:
            raise ConfigError(
                "{rows} rows a step cannot be shared by {ranks} processes",
                "each must take the same number",
                "choose a multiple of {ranks}",
                rows=self.rows_per_step,
                ranks=ranks,
            )
        share = self.rows_per_step // ranks
        first = index * self.rows_per_step
        rows = [self._global_row(row) for row in range(first, first + self.rows_per_step)]
        return self._assemble(rows[rank * share : (rank + 1) * share], self._width(rows))

    @property
    def epoch_steps(self) -> int:
        """Steps until everything has been read once (the last of them may begin the next epoch)."""
        return -(-self.rows_per_epoch // self.rows_per_step)

    def pass_once(self, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        """Everything exactly once, in stored order if ``shuffle`` is off: for validation. The last batch is filled with empty rows."""
        share = self.rows_per_step // ranks
        for first in range(0, self.rows_per_epoch, self.rows_per_step):
            rows = [self._global_row(row) if row < self.rows_per_epoch else (0, []) for row in range(first, first + self.rows_per_step)]
            yield self._assemble(rows[rank * share : (rank + 1) * share], self._width(rows))

    def _global_row(self, row: int) -> tuple[int, list[Piece]]:
        raise NotImplementedError

    def _fetch(self, store: int, piece: Piece) -> Filled:
        raise NotImplementedError

    def _width(self, rows: list[tuple[int, list[Piece]]]) -> int:
        return self.sequence_length

    def _assemble(self, rows: list[tuple[int, list[Piece]]], width: int) -> Batch:
        shape = (len(rows), width)
        inputs = np.full(shape, self.pad_id, dtype=np.int64)
        targets = np.full(shape, self.pad_id, dtype=np.int64)
        weights = np.zeros(shape, dtype=np.float32)
        positions = np.zeros(shape, dtype=np.int64)
        segments = np.full(shape, -1, dtype=np.int32)
        sources: list[str] = []
        for row, (store, pieces) in enumerate(rows):
            place = 0
            for number, piece in enumerate(pieces):
                given, wanted, weight, source = self._fetch(store, piece)
                size = len(given)
                here = slice(place, place + size)
                inputs[row, here], targets[row, here], weights[row, here] = given, wanted, weight
                positions[row, here] = np.arange(size)
                segments[row, here] = number
                sources.append(source)
                place += size
        alone = all(len(pieces) == 1 for _, pieces in rows) and bool((segments == 0).all())
        as_tensor = torch.from_numpy
        return Batch(
            as_tensor(inputs), as_tensor(targets), as_tensor(weights), as_tensor(positions), None if alone else as_tensor(segments),
            sources, [len(pieces) for _, pieces in rows],
        )  # fmt: skip


class PackedLoader(_Loader):
    """Documents of token stores, packed into rows of ``sequence_length`` inputs and as many targets.

    A document of n tokens is n+1 pairs: the end-of-text token (or the tokenizer's begin-of-text token) stands before it as the first
    input, and the end-of-text token behind it is the last target. So a row is what lies between end-of-text tokens, each document's
    first word is predicted from end-of-text alone, and no place attends to another document.

    ``packing``: ``concatenate`` (no padding; a document may be cut between two rows, and its second part starts without context),
    ``best_fit`` (only documents longer than a row are cut), ``none`` (one document a row).
    ``stores``: pairs (store, weight); weights are shares of rows. Each store is read epoch by epoch in an order of its own.
    """

    def __init__(
        self,
        stores: Sequence[tuple[TokenStore, float]],
        *,
        sequence_length: int,
        rows_per_step: int,
        seed: int,
        packing: Packing = "concatenate",
        shuffle: bool = True,
    ):
        _check_stores(stores)
        self.stores = [store for store, _ in stores]
        self.sequence_length, self.rows_per_step, self.seed = sequence_length, rows_per_step, seed
        self.pad_id = self.stores[0].end_of_text_id
        self.epoch_tokens = sum(store.tokens + store.documents for store in self.stores)  # targets in all documents, each once
        self._orders: list[ConcatenatedRows | FixedRows] = []
        for number, store in enumerate(self.stores):
            own = seed + (number << 40)  # two stores of the same size must not be read in the same order
            self._orders.append(self._make_order(store, own, packing, shuffle))
        self.rows_per_epoch = sum(order.rows_per_epoch for order in self._orders)
        self._mixture = Mixture([weight for _, weight in stores], seed)

    def _make_order(self, store: TokenStore, seed: int, packing: Packing, shuffle: bool) -> ConcatenatedRows | FixedRows:
        lengths = store.lengths + np.uint32(1)
        if packing == "concatenate":
            return ConcatenatedRows(lengths, self.sequence_length, seed, shuffle)
        return FixedRows(lengths, self.sequence_length, seed, packing, shuffle)

    def repeats(self, steps: int) -> dict[str, float]:
        """How many times each store is read in so many steps: above four, training gains little (Muennighoff et al. 2023)."""
        return {
            store.name: steps * self.rows_per_step * share / order.rows_per_epoch
            for store, share, order in zip(self.stores, self._mixture.weights, self._orders, strict=True)
        }

    def consumed(self, steps: int) -> dict[str, int]:
        """Rows of each store in the first so many steps."""
        found: dict[str, int] = {}
        for store, rows in zip(self.stores, self._mixture.given(steps * self.rows_per_step), strict=True):
            found[store.name] = found.get(store.name, 0) + rows
        return found

    def pieces(self, index: int) -> Iterator[tuple[TokenStore, int]]:
        """The store and the document of each piece that step ``index`` reads."""
        for row in range(index * self.rows_per_step, (index + 1) * self.rows_per_step):
            store, pieces = self._global_row(row)
            yield from ((self.stores[store], piece.item) for piece in pieces)

    def rows_by_source(self) -> dict[str, int]:
        """Rows of each store when it is read once."""
        found: dict[str, int] = {}
        for store, order in zip(self.stores, self._orders, strict=True):
            found[store.name] = found.get(store.name, 0) + order.rows_per_epoch
        return found

    def pass_once(self, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        """Every document of every store once, store after store."""
        share = self.rows_per_step // ranks
        rows = [(number, index) for number, order in enumerate(self._orders) for index in range(order.rows_per_epoch)]
        for first in range(0, len(rows), self.rows_per_step):
            chosen: list[tuple[int, list[Piece]]] = [
                (number, self._orders[number].row(0, index)) for number, index in rows[first : first + self.rows_per_step]
            ]
            chosen += [(0, [])] * (self.rows_per_step - len(chosen))
            yield self._assemble(chosen[rank * share : (rank + 1) * share], self._width(chosen))

    def _global_row(self, row: int) -> tuple[int, list[Piece]]:
        store, number = self._mixture.choose(row)
        order = self._orders[store]
        return store, order.row(*divmod(number, order.rows_per_epoch))

    def _fetch(self, store: int, piece: Piece) -> Filled:
        held = self.stores[store]
        end = held.end_of_text_id
        lead = end if held.begin_of_text_id is None else held.begin_of_text_id
        # The pairs start to stop of the sequence lead, body, end.
        around = [held.document(piece.item, max(piece.start - 1, 0), piece.stop)]
        if piece.start == 0:
            around.insert(0, [lead])
        if piece.stop == int(held.lengths[piece.item]) + 1:
            around.append([end])
        ids = np.concatenate(around) if len(around) > 1 else around[0]
        return ids[:-1], ids[1:], np.ones(len(ids) - 1, np.float32), f"{held.name}:{held.identity(piece.item)}"


class PieceLoader(PackedLoader):
    """Documents of token stores in pieces, each with all its tokens as inputs, whole pieces packed into rows (``best_fit``): what
    objectives that hide or move tokens start from. Nothing is scored yet, and targets are the inputs.

    A document longer than ``longest`` is cut into pieces of that many tokens. ``before`` and ``after`` stand around every piece or, with
    ``every_piece`` off, around the document: before its first piece and behind its last. A piece of n tokens takes ``cost(n)`` places in
    a row, which may be more than it has, where the objective will need them.
    """

    def __init__(
        self,
        stores: Sequence[tuple[TokenStore, float]],
        *,
        sequence_length: int,
        rows_per_step: int,
        seed: int,
        longest: int,
        cost: Callable[[np.ndarray], np.ndarray],
        pad_id: int,
        before: Sequence[int] = (),
        after: Sequence[int] = (),
        every_piece: bool = True,
        packing: Packing = "best_fit",
        shuffle: bool = True,
    ):
        if longest < 1 or cost(np.array([longest]))[0] > sequence_length:
            raise ConfigError("sequence_length {length} leaves no room for text", "special tokens fill the row", "give a longer one", length=sequence_length)
        self.longest, self.cost, self.every_piece = longest, cost, every_piece
        self.before, self.after = np.array(before, np.int64), np.array(after, np.int64)
        super().__init__(stores, sequence_length=sequence_length, rows_per_step=rows_per_step, seed=seed, packing=packing, shuffle=shuffle)
        self.pad_id = pad_id

    def _make_order(self, store: TokenStore, seed: int, packing: Packing, shuffle: bool) -> FixedRows:
        return FixedRows(store.lengths, self.sequence_length, seed, packing, shuffle, longest=self.longest, cost=self.cost)

    def _width(self, rows: list[tuple[int, list[Piece]]]) -> int:
        """A row, or more where pieces will take fewer places than they have now."""
        return max(self.sequence_length, *(sum(piece.stop - piece.start for piece in pieces) for _, pieces in rows))

    def _fetch(self, store: int, piece: Piece) -> Filled:
        held = self.stores[store]
        body = held.document(piece.item)
        first = self.every_piece or piece.start == 0
        last = self.every_piece or piece.stop == len(body)
        ids = np.concatenate([self.before if first else (), body[piece.start : piece.stop], self.after if last else ()]).astype(np.int64)
        return ids, ids, np.zeros(len(ids), np.float32), f"{held.name}:{held.identity(piece.item)}"


class ExampleLoader(_Loader):
    """Supervised examples as rows: ``packing="none"`` pads each step to its longest example, ``"best_fit"`` packs whole examples.

    Longer examples than ``sequence_length`` lose their end (the guard has counted them). With ``none`` rows of like length meet
    in a step; a step is as wide as its longest row, rounded up to 8.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        sequence_length: int,
        rows_per_step: int,
        seed: int,
        packing: Literal["none", "best_fit"] = "none",
        pad_id: int = 0,
        shuffle: bool = True,
    ):
        if not examples:
            raise DataError("there are no examples to train on", "", "look at what was set aside, and why")
        self.examples = examples
        self.sequence_length, self.rows_per_step, self.seed, self.pad_id = sequence_length, rows_per_step, seed, pad_id
        lengths = np.array([min(max(len(example.ids) - 1, 1), sequence_length) for example in examples], dtype=np.uint32)
        self.epoch_tokens = int(lengths.sum(dtype=np.int64))
        self.padded = packing == "none"
        self._order = FixedRows(lengths, sequence_length, seed, packing, shuffle)
        if self.padded and shuffle:
            self._order.bucket(rows_per_step)
        self.rows_per_epoch = self._order.rows_per_epoch

    def _width(self, rows: list[tuple[int, list[Piece]]]) -> int:
        if not self.padded:
            return self.sequence_length
        longest = max((pieces[0].stop for _, pieces in rows if pieces), default=1)
        return min(self.sequence_length, -(-longest // 8) * 8)

    def _global_row(self, row: int) -> tuple[int, list[Piece]]:
        return 0, self._order.row(*divmod(row, self.rows_per_epoch))

    def _fetch(self, store: int, piece: Piece) -> Filled:
        example = self.examples[piece.item]
        if len(example.ids) < 2:  # nothing to predict: one place of weight 0
            return np.full(1, self.pad_id), np.full(1, self.pad_id), np.zeros(1, np.float32), example.source
        ids, weights = np.asarray(example.ids), np.asarray(example.weights, dtype=np.float32)
        return (
            ids[piece.start : piece.stop],
            ids[piece.start + 1 : piece.stop + 1],
            weights[piece.start + 1 : piece.stop + 1],
            example.source,
        )


def text_reader(loader: Any) -> PackedLoader | None:
    """What reads the text of token stores, at the bottom of what changes its batches or notes them; None where no text is read."""
    while not isinstance(loader, PackedLoader) and hasattr(loader, "loader"):
        loader = loader.loader
    return loader if isinstance(loader, PackedLoader) else None


def _check_stores(stores: Sequence[tuple[TokenStore, float]]) -> None:
    if not stores:
        raise DataError("there are no tokens to train on", "", "name an encode stage")
    if len(stores) > _MOST_STORES:
        raise ConfigError(
            "{count} stores are more than a mixture takes ({most})",
            "",
            "encode several corpora into one store",
            count=len(stores),
            most=_MOST_STORES,
        )
    first = stores[0][0]
    for store, weight in stores:
        if not weight > 0:
            raise ConfigError(
                "{name}: the weight {weight} is not above zero", "", "leave the store out instead", name=store.name, weight=weight
            )
        if not store.documents:
            raise DataError("{path} holds no documents", "", "look at what its filters removed: luban show", path=store.folder)
        if store.index["tokenizer"] != first.index["tokenizer"]:
            raise DataError(
                "{one} and {other} were encoded with different tokenizers",
                "their ids mean different words",
                "encode both with one tokenizer",
                one=first.folder,
                other=store.folder,
            )
