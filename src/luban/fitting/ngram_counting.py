"""Counting and smoothing n-grams in bounded memory: every table is made on disk, order by order.

A pass over the symbols for each order names the k-gram that ends at each position by the rank of its key (see models/ngram_tables.py), sums
the occurrences of keys in sorted runs (spill.py), and writes the ranks for the next order. Continuation counts come from the k-gram that
each distinct (k+1)-gram ends in. Nothing is hashed or estimated: the tables are those that fitting in memory gives.

Pruning follows KenLM: discounts and totals are those of all k-grams; one whose occurrences lie below its order's minimum is then left out and
what it would have had goes to the shorter history. Minimums do not fall with the order, so the history of a k-gram that stays, stays too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from luban.fitting.spill import Spill
from luban.foundation.console import progress
from luban.foundation.errors import DataError
from luban.models.ngram import modified_discounts
from luban.models.ngram_tables import START

_POSITION_BYTES = 120  # of a position while its order is counted: keys, their order, ranks


class NgramCounter:
    """Fits tables of one order to a file of symbols (uint32; order - 1 start symbols before each document, an end symbol behind)."""

    def __init__(self, symbols: Path, order: int, radix: int, folder: Path, memory: int):
        """``memory``: bytes that the arrays may take, about; the tables themselves lie in ``folder``."""
        self.order, self.radix, self.folder, self.memory = order, radix, folder, memory
        self.symbols_file = symbols
        self.positions = symbols.stat().st_size // 4
        self.block = max(min(memory // 2 // _POSITION_BYTES, max(self.positions, 1)), 1000)
        self.sizes: list[int] = []  # k-grams of each order
        self.runs: list[int] = []  # runs that each order's count was spilled to
        folder.mkdir(parents=True, exist_ok=True)

    def fit(self) -> None:
        """Count every order, then discount; the files direct-k and backoff-k stand beside keys-k."""
        with progress("counting n-grams (positions)", total=self.positions * self.order) as advance:
            for k in range(1, self.order + 1):
                self._count(k)
                self._name(k)
                advance(self.positions)
        for k in range(1, self.order + 1):
            self._discount(k, self._file(k, "occurrences") if k == self.order else self._continuations(k))

    def _file(self, k: int, name: str) -> Path:
        return self.folder / f"{name}-{k}.raw"

    def array(self, k: int, name: str) -> np.ndarray:
        """A table as a memory map [k-grams], or [(k-1)-grams] for backoff."""
        kind = {
            "keys": np.int64,
            "direct": np.float64,
            "backoff": np.float64,
            "occurrences": np.int64,
            "suffix": np.int64,
            "continuations": np.int64,
            "total": np.float64,
            "ranks": np.int64,
        }[name]
        file = self._file(k, name)
        return np.memmap(file, kind, "r+") if file.stat().st_size else np.zeros(0, kind)

    # ---- counting

    def _blocks(self, k: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(first position, symbols [positions], keys of the k-grams that end there [positions])."""
        for start in range(0, self.positions, self.block):
            count = min(self.block, self.positions - start)
            symbols = np.fromfile(self.symbols_file, np.uint32, count=count, offset=start * 4).astype(np.int64)
            if k == 1:
                yield start, symbols, symbols
                continue
            before = np.fromfile(self._file(k - 1, "ranks"), np.int64, count=count - (start == 0), offset=max(start - 1, 0) * 8)
            history = np.concatenate([[0], before]) if start == 0 else before
            yield start, symbols, np.where(symbols == START, 0, history * self.radix + symbols)

    def _count(self, k: int) -> None:
        if k > 1 and self.sizes[k - 2] * self.radix >= 1 << 62:
            raise DataError(
                "there are too many n-grams to be numbered",
                "{count} histories times {symbols} units",
                "lower the order or the vocabulary",
                count=self.sizes[k - 2],
                symbols=self.radix,
            )
        spill = Spill(self.folder / f"runs-{k}", self.memory // 2)
        spill.add(np.zeros(1, np.int64), np.zeros(1, np.int64))  # the k-gram of start symbols is number 0, seen or not
        for start, symbols, keys in self._blocks(k):
            suffix = np.fromfile(self._file(k - 1, "ranks"), np.int64, count=len(keys), offset=start * 8) if k > 1 else None
            spill.add(keys, (symbols != START).astype(np.int64), suffix)
        size = 0
        with (
            self._file(k, "keys").open("wb") as keys_out,
            self._file(k, "occurrences").open("wb") as counts_out,
            self._file(k, "suffix").open("wb") as suffix_out,
        ):
            for keys, counts, carried in spill.merged():
                keys.tofile(keys_out)
                counts.tofile(counts_out)
                carried.tofile(suffix_out)
                size += len(keys)
        self.sizes.append(size)
        self.runs.append(spill.runs)
        (self.folder / f"runs-{k}").rmdir()

    def _name(self, k: int) -> None:
        """Write the rank of the k-gram that ends at each position; the shorter ones' are not needed any more."""
        if k == self.order:
            self._file(k - 1, "ranks").unlink(missing_ok=True)
            return
        keys = self.array(k, "keys")
        with self._file(k, "ranks").open("wb") as out:
            for _, _, found in self._blocks(k):
                distinct, place = np.unique(found, return_inverse=True)  # ascending, so the map is read front to back
                np.searchsorted(keys, distinct).astype(np.int64)[place].tofile(out)
        self._file(k - 1, "ranks").unlink(missing_ok=True)

    def _continuations(self, k: int) -> Path:
        """How many different symbols were seen before each k-gram: the (k+1)-grams that end in it. Part by part of the k-grams."""
        part = max(self.memory // 4 // 8, 1000)
        with self._file(k, "continuations").open("wb") as out:
            for low in range(0, self.sizes[k - 1], part):
                size = min(part, self.sizes[k - 1] - low)
                counts = np.zeros(size, np.int64)
                for first, last in self._slices(self.sizes[k]):
                    suffix, seen = self._read(k + 1, "suffix", first, last), self._read(k + 1, "occurrences", first, last)
                    inside = (seen > 0) & (suffix >= low) & (suffix < low + size)
                    counts += np.bincount(suffix[inside] - low, minlength=size)
                counts.tofile(out)
        return self._file(k, "continuations")

    def _slices(self, size: int) -> Iterator[tuple[int, int]]:
        step = max(self.memory // 2 // 64, 1000)
        for first in range(0, size, step):
            yield first, min(first + step, size)

    def _read(self, k: int, name: str, first: int, last: int, file: Path | None = None) -> np.ndarray:
        kind = np.float64 if name in ("direct", "backoff", "total") else np.int64
        return np.fromfile(file or self._file(k, name), kind, count=last - first, offset=first * 8)

    # ---- discounting

    def _discount(self, k: int, counts_file: Path) -> None:
        """direct and backoff of order k from its counts. Histories come in order, so each block touches one stretch of them."""
        size, histories = self.sizes[k - 1], self.sizes[k - 2] if k > 1 else 1
        discounts = modified_discounts(*self._counts_of_counts(size, counts_file))
        total = np.memmap(self._file(k, "total"), np.float64, "w+", shape=(histories,))
        taken = np.memmap(self._file(k, "backoff"), np.float64, "w+", shape=(histories,))
        for first, last in self._slices(size):
            counts, history = self._read(k, "counts", first, last, counts_file), self._read(k, "keys", first, last) // self.radix * (k > 1)
            low, inner = history[0], history - history[0]
            total[low : history[-1] + 1] += np.bincount(inner, weights=counts)
            taken[low : history[-1] + 1] += np.bincount(inner, weights=np.minimum(discounts[np.minimum(counts, 3)], counts))
        with self._file(k, "direct").open("wb") as out:
            for first, last in self._slices(size):
                counts, history = self._read(k, "counts", first, last, counts_file), self._read(k, "keys", first, last) // self.radix * (k > 1)
                share = np.maximum(counts - discounts[np.minimum(counts, 3)], 0) / np.maximum(total[history], 1)
                share.tofile(out)
        for first, last in self._slices(histories):
            taken[first:last] = np.where(total[first:last] > 0, taken[first:last] / np.maximum(total[first:last], 1), 1.0)
        taken.flush()
        del total, taken
        self._file(k, "total").unlink()

    def _counts_of_counts(self, size: int, file: Path) -> list[int]:
        found = np.zeros(5, np.int64)
        for first, last in self._slices(size):
            counts = self._read(0, "counts", first, last, file)
            found += np.bincount(np.minimum(counts, 5), minlength=6)[:5]
        return [int(count) for count in found[1:]]

    # ---- pruning and writing

    def write(self, folder: Path, minimum_counts: Sequence[int]) -> list[dict[str, int]]:
        """The finished tables as npy files under ``folder``; how many k-grams each order saw and kept.

        ``minimum_counts`` [order]: a k-gram that occurs less often is left out. Ascending; 1 keeps all.
        """
        sizes: list[dict[str, int]] = []
        place: np.ndarray | None = None  # [(k-1)-grams] rank after pruning, -1 where left out
        for k in range(1, self.order + 1):
            size, histories = self.sizes[k - 1], self.sizes[k - 2] if k > 1 else 1
            kept_count = sum(int(self._kept(k, first, last, minimum_counts[k - 1]).sum()) for first, last in self._slices(size))
            keys_out, direct_out = (
                np.lib.format.open_memmap(folder / f"{name}-{k}.npy", "w+", kind, (kept_count,)) for name, kind in (("keys", np.int64), ("direct", np.float32))
            )
            mass = self.array(k, "backoff")
            following = np.memmap(self._file(k, "place"), np.int64, "w+", shape=(size,))
            written = 0
            for first, last in self._slices(size):
                keys, direct, kept = self._read(k, "keys", first, last), self._read(k, "direct", first, last), self._kept(k, first, last, minimum_counts[k - 1])
                history = keys // self.radix * (k > 1)
                mass[history[0] : history[-1] + 1] += np.bincount((history - history[0])[~kept], weights=direct[~kept], minlength=history[-1] - history[0] + 1)
                now, count = (keys[kept] if place is None else place[history[kept]] * self.radix + keys[kept] % self.radix), int(kept.sum())
                keys_out[written : written + count], direct_out[written : written + count] = now, direct[kept]
                following[first:last] = np.where(kept, written + np.cumsum(kept) - 1, -1)
                written += count
            self._write_backoff(folder / f"backoff-{k}.npy", mass, place, histories, sizes[-1]["kept"] if sizes else 1)
            keys_out.flush()
            direct_out.flush()
            del keys_out, direct_out, mass
            sizes.append({"order": k, "seen": size, "kept": kept_count})
            place = following
        return sizes

    def _kept(self, k: int, first: int, last: int, minimum: int) -> np.ndarray:
        """[k-grams] those that stay: often enough, or nothing but start symbols (rank 0)."""
        kept = self._read(k, "occurrences", first, last) >= minimum
        if first == 0:
            kept[0] = True
        return kept

    def _write_backoff(self, file: Path, mass: np.ndarray, place: np.ndarray | None, histories: int, kept: int) -> None:
        out = np.lib.format.open_memmap(file, "w+", np.float32, (kept,))
        written = 0
        for first, last in self._slices(histories):
            stays = np.ones(last - first, bool) if place is None else place[first:last] >= 0
            count = int(stays.sum())
            out[written : written + count] = mass[first:last][stays]
            written += count
        out.flush()
