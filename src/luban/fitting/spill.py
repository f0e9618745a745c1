"""Sums by integer key in bounded memory: sorted runs on disk, merged block by block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

_RUNS_AT_ONCE = 64
_ROW_BYTES = 24
_PARTS = ("keys", "values", "carried")

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # keys int64, values, carried int64, all [rows]


class Spill:
    """Adds up the values of equal keys. ``carried`` is a number that depends on the key alone and travels with it.

    Memory stays near ``memory`` bytes (with room for the sort; at least a few MB); the disk holds about 24 bytes a distinct key of each run.
    """

    def __init__(self, folder: Path, memory: int, value_type: type = np.int64):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.value_type = folder, np.dtype(value_type)
        self._limit = max(memory // (_ROW_BYTES * 5), 1000)  # rows: they, their order, and the sorted copy
        self._waiting: list[Rows] = []
        self._rows = 0
        self._runs: list[int] = []
        self._made = 0

    def add(self, keys: np.ndarray, values: np.ndarray, carried: np.ndarray | None = None) -> None:
        """Add rows; the arrays are all [rows]."""
        carried = np.zeros(len(keys), np.int64) if carried is None else carried
        for start in range(0, len(keys), self._limit):
            part = slice(start, start + self._limit)
            self._waiting.append((keys[part].astype(np.int64), values[part].astype(self.value_type), carried[part].astype(np.int64)))
            self._rows += len(self._waiting[-1][0])
            if self._rows >= self._limit:
                self._settle()

    def _settle(self) -> None:
        """Add up what waits; write it as a run unless much of the room came free."""
        rows = summed(self._waiting)
        self._waiting, self._rows = [rows], len(rows[0])
        if self._rows > self._limit // 2:
            self._write(rows)
            self._waiting, self._rows = [], 0

    def _write(self, rows: Rows) -> None:
        for name, array in zip(_PARTS, rows, strict=True):
            array.tofile(self.folder / f"{self._made}.{name}")
        self._runs.append(self._made)
        self._made += 1

    @property
    def runs(self) -> int:
        """Sorted runs on disk so far."""
        return len(self._runs)

    def merged(self) -> Iterator[Rows]:
        """Blocks of (keys ascending and distinct, summed values, carried), once; the runs are removed on the way."""
        if not self._runs:
            rows = summed(self._waiting) if self._waiting else (np.zeros(0, np.int64), np.zeros(0, self.value_type), np.zeros(0, np.int64))
            self._waiting = []
            for start in range(0, len(rows[0]), self._limit):
                yield tuple(array[start : start + self._limit] for array in rows)  # type: ignore[misc]
            return
        if self._waiting and self._rows:
            self._write(summed(self._waiting))
        self._waiting = []
        while len(self._runs) > _RUNS_AT_ONCE:  # many runs are first merged into fewer
            group, self._runs = self._runs[:_RUNS_AT_ONCE], self._runs[_RUNS_AT_ONCE:]
            made, self._made = self._made, self._made + 1
            for rows in self._merge(group):
                for name, array in zip(_PARTS, rows, strict=True):
                    with (self.folder / f"{made}.{name}").open("ab") as stream:
                        array.tofile(stream)
            self._runs.append(made)
        yield from self._merge(self._runs)

    def _merge(self, runs: list[int]) -> Iterator[Rows]:
        block = max(self._limit // (2 * len(runs)), 500)
        cursors = [_Cursor(self.folder, run, block, self.value_type) for run in runs]
        while cursors:
            bound = min(int(cursor.rows[0][-1]) for cursor in cursors)
            yield summed([cursor.take(bound) for cursor in cursors])
            for cursor in [cursor for cursor in cursors if cursor.finished]:
                cursor.remove()
                cursors.remove(cursor)


class _Cursor:
    """Reads one run block by block."""

    def __init__(self, folder: Path, run: int, block: int, value_type: np.dtype):
        self.files = [folder / f"{run}.{name}" for name in _PARTS]
        self.types = [np.dtype(np.int64), value_type, np.dtype(np.int64)]
        self.block, self.position = block, 0
        self._read()

    def _read(self) -> None:
        self.rows: Rows = tuple(
            np.fromfile(file, kind, count=self.block, offset=self.position * kind.itemsize) for file, kind in zip(self.files, self.types, strict=True)
        )  # type: ignore[assignment]
        self.position += len(self.rows[0])
        self.finished = not len(self.rows[0])

    def take(self, bound: int) -> Rows:
        """The rows up to and with the key ``bound``; the next block is read when none is left."""
        end = int(np.searchsorted(self.rows[0], bound, side="right"))
        taken: Rows = tuple(array[:end] for array in self.rows)  # type: ignore[assignment]
        self.rows = tuple(array[end:] for array in self.rows)  # type: ignore[assignment]
        if not len(self.rows[0]):
            self._read()
        return taken

    def remove(self) -> None:
        for file in self.files:
            file.unlink()


def summed(parts: list[Rows]) -> Rows:
    """The rows of several parts in the order of their keys, equal keys added up."""
    keys, values, carried = (np.concatenate([part[index] for part in parts]) for index in range(3))
    if not len(keys):
        return keys, values, carried
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[first], np.add.reduceat(values[order], first), carried[order[first]]
