"""Which documents stay and in which split. Every decision looks only at the document itself and at earlier ones.

Documents are taken in the order of the input. A document is left out if its text is an earlier one's, or if it is a
near-duplicate of one that was kept. So nothing that is added after the old documents changes what became of them;
and wherever it is added, a document's split is drawn from its own hash, so none ever moves to another split.
Two kept near-duplicates never lie in different splits, because (under ``near: keep``) the later one is left out then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luban.corpus.config import DeduplicateConfig
from luban.corpus.minhash import similarity
from luban.corpus.shards import HASH, UnitFiles

KEPT, EXACT, NEAR, TIE = range(4)  # what became of a document
_PARTITION = 4_000_000  # keys sorted at a time: 32 bytes of working memory each
_COMPARED = 1000  # kept documents of one bucket that a new one is compared with: boilerplate must not cost the square


@dataclass
class Decisions:
    """For every document in order: what became of it, its split (index into SPLITS), the document it repeats and how similar it is."""

    fate: np.ndarray  # uint8 [documents]
    split: np.ndarray  # uint8 [documents]
    other: np.ndarray  # int32 [documents], -1 where there is none
    similar: np.ndarray  # float16 [documents]

    @classmethod
    def empty(cls, count: int) -> Decisions:
        return cls(np.zeros(count, np.uint8), np.zeros(count, np.uint8), np.full(count, -1, np.int32), np.zeros(count, np.float16))


class Store:
    """The hashes, band keys and signatures that the cleaned units left on disk, as if they were one array each.

    Only what is asked for is read, by plain reads rather than a memory map, so that it does not count as resident.
    """

    def __init__(self, working: Path, units: int, config: DeduplicateConfig):
        self.files = [UnitFiles(working, number) for number in range(units)]
        self.counts = np.array([files.path("hashes").stat().st_size // HASH.itemsize for files in self.files], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.documents = int(self.starts[-1])
        self.bands, self.signature_length = config.bands, config.bands * config.rows
        self._open: dict[int, int] = {}

    def hashes(self) -> Iterator[tuple[int, np.ndarray]]:
        """Each unit's first document and hashes."""
        for files, start in zip(self.files, self.starts[:-1], strict=True):
            yield int(start), np.frombuffer(files.path("hashes").read_bytes(), dtype=HASH)

    def band(self, band: int) -> Iterator[tuple[int, np.ndarray]]:
        """Each unit's first document and keys in one band."""
        for files, start, count in zip(self.files, self.starts[:-1], self.counts, strict=True):
            yield int(start), np.fromfile(files.path("bands"), dtype=np.uint64, count=int(count), offset=int(8 * band * count))

    def signature(self, document: int) -> np.ndarray:
        """uint16 [bands * rows]"""
        unit = int(np.searchsorted(self.starts, document, side="right")) - 1
        if unit not in self._open:
            if len(self._open) >= 200:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[unit] = os.open(self.files[unit].path("signatures"), os.O_RDONLY)
        size = 2 * self.signature_length
        return np.frombuffer(os.pread(self._open[unit], size, (document - int(self.starts[unit])) * size), dtype=np.uint16)

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def equal_groups(columns: Callable[[], Iterator[tuple[int, np.ndarray]]], total: int, alive: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Documents with equal 64-bit keys: arrays of document numbers in order, one array for each key that occurs twice or more.

    The keys are sorted a slice of their range at a time, so that memory stays bounded whatever their number.
    """
    parts = max(1, -(-total // _PARTITION))
    edges = [(part << 64) // parts for part in range(parts + 1)]
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        keys, numbers = [], []
        for start, column in columns():
            chosen = np.ones(len(column), dtype=bool) if alive is None else alive[start : start + len(column)].copy()
            if parts > 1:
                chosen &= (column >= np.uint64(low)) & (column <= np.uint64(high - 1))
            keys.append(column[chosen])
            numbers.append((np.flatnonzero(chosen) + start).astype(np.int32))
        key, number = np.concatenate(keys or [np.zeros(0, np.uint64)]), np.concatenate(numbers or [np.zeros(0, np.int32)])
        order = np.argsort(key, kind="stable")
        key, number = key[order], number[order]
        bounds = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1], [True]])) if len(key) else np.zeros(1, np.int64)
        for group in np.flatnonzero(np.diff(bounds) > 1):
            yield number[bounds[group] : bounds[group + 1]]


def first_copies(store: Store) -> np.ndarray:
    """For every document the first one with the same text (itself if it is the first), int32 [documents]."""
    first = np.arange(store.documents, dtype=np.int32)
    low = np.empty(store.documents, dtype=np.uint64)
    for start, hashes in store.hashes():
        low[start : start + len(hashes)] = hashes["low"]
    for group in equal_groups(lambda: ((start, hashes["high"]) for start, hashes in store.hashes()), store.documents):
        seen: dict[int, int] = {}
        for number in group:
            first[number] = seen.setdefault(int(low[number]), int(number))
    return first


@dataclass
class Candidates:
    """Buckets (documents that agree in a band) of every document that shares one, in compressed rows."""

    documents: np.ndarray  # int32 [involved], ascending
    starts: np.ndarray  # int64 [involved + 1]
    buckets: np.ndarray  # int32 [entries]
    bucket_count: int


def find_candidates(store: Store, alive: np.ndarray) -> Candidates:
    """Sort each band's keys and note who shares a bucket with whom."""
    members, buckets, count = [], [], 0
    for band in range(store.bands):
        sizes, found = [], []
        for group in equal_groups(lambda band=band: store.band(band), store.documents, alive):  # type: ignore[misc]
            found.append(group)
            sizes.append(len(group))
        if found:
            members.append(np.concatenate(found))
            buckets.append(np.repeat(np.arange(count, count + len(sizes), dtype=np.int32), sizes))
            count += len(sizes)
    if not members:
        return Candidates(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int32), 0)
    member, bucket = np.concatenate(members), np.concatenate(buckets)
    del members, buckets
    order = np.argsort(member, kind="stable")
    member, bucket = member[order], bucket[order]
    documents, starts = np.unique(member, return_index=True)
    return Candidates(documents, np.append(starts, len(member)), bucket, count)


def near_duplicates(store: Store, config: DeduplicateConfig, alive: np.ndarray, splits: Callable[[int], int], decisions: Decisions) -> None:
    """Go through the candidates in order and leave out what repeats a kept document; ``splits`` draws a document's own split."""
    candidates = find_candidates(store, alive)
    head = np.full(candidates.bucket_count, -1, dtype=np.int32)  # the first kept document of a bucket
    more: dict[int, list[int]] = {}  # the others, where there are any
    for index, document in enumerate(candidates.documents.tolist()):
        mine = candidates.buckets[candidates.starts[index] : candidates.starts[index + 1]]
        earlier = {int(kept) for kept in head[mine] if kept >= 0}
        for bucket in mine.tolist():
            earlier.update(more.get(bucket, ()))
        if earlier and _repeats(store, config, document, sorted(earlier), splits, decisions):
            continue
        for bucket in mine.tolist():
            if head[bucket] < 0:
                head[bucket] = document
            elif len(others := more.setdefault(bucket, [])) < _COMPARED:
                others.append(document)


def _repeats(store: Store, config: DeduplicateConfig, document: int, earlier: list[int], splits: Callable[[int], int], decisions: Decisions) -> bool:
    """Decide on one document that has candidates among the kept ones; True if it is left out."""
    likeness = similarity(store.signature(document), np.stack([store.signature(kept) for kept in earlier]))
    alike = np.flatnonzero(likeness >= config.threshold)
    if not len(alike):
        return False
    best = int(alike[np.argmax(likeness[alike])])
    decisions.other[document], decisions.similar[document] = earlier[best], likeness[best]
    ties = len({splits(document)} | {splits(earlier[i]) for i in alike.tolist()}) > 1
    if config.near == "keep" and not ties:
        return False
    decisions.fate[document] = TIE if ties else NEAR
    return True
