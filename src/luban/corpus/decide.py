"""From hashes and band keys to the fate and split of every document; kept on disk for the writers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Hashable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from luban.corpus.config import CurateConfig
from luban.corpus.deduplicate import EXACT, Decisions, Store, first_copies, near_duplicates
from luban.corpus.shards import UnitFiles, write_whole
from luban.corpus.split import TRAIN, Last, Stratified, draw, random_split

_ARRAYS = {"fate": np.uint8, "split": np.uint8, "other": np.int32, "similar": np.float16}


def decide(config: CurateConfig, store: Store, working: Path) -> Decisions:
    """Exact copies first, then each document's split, then near-duplicates among what is left."""
    decisions = Decisions.empty(store.documents)
    first = first_copies(store)
    copies = first != np.arange(store.documents, dtype=np.int32)
    _draw_splits(config, store, working, first, decisions)
    if config.deduplicate.exact:
        decisions.fate[copies] = EXACT
        decisions.other[copies] = first[copies]
        decisions.similar[copies] = 1
    if config.deduplicate.near != "off":
        near_duplicates(store, config.deduplicate, ~copies, lambda document: int(decisions.split[document]), decisions)
    if not config.deduplicate.exact:  # a copy shares the fate of the first
        for name in _ARRAYS:
            array = getattr(decisions, name)
            array[copies] = array[first[copies]]
    return decisions


def _draw_splits(config: CurateConfig, store: Store, working: Path, first: np.ndarray, decisions: Decisions) -> None:
    stratum, last = config.split.stratify_by, config.split.held_out == "last"
    if not stratum and not last:
        for start, hashes in store.hashes():
            decisions.split[start : start + len(hashes)] = random_split(draw(hashes, config.split.salt), config.split)
        return
    stratum = stratum or "source"
    sampler = Last(config.split, (sized for files in store.files for sized in zip(_strata(files, stratum), _sizes(files), strict=True))) if last else Stratified(config.split)
    for (start, hashes), files in zip(store.hashes(), store.files, strict=True):
        numbers = _sizes(files) if last else draw(hashes, config.split.salt)
        for document, value, number in zip(itertools.count(start), _strata(files, stratum), numbers):
            copied = int(first[document])
            own = sampler.next(value, float(number)) if last or copied == document else TRAIN  # the end is an end with its copies
            decisions.split[document] = own if copied == document else decisions.split[copied]


def _sizes(files: UnitFiles) -> np.ndarray:
    """Characters of each document of a unit, int [documents]."""
    return pc.utf8_length(pq.read_table(files.path("documents"), columns=["text"], use_threads=False)["text"]).to_numpy()


def _strata(files: UnitFiles, name: str) -> Iterator[Hashable]:
    """The stratum of each document of a unit: its language, source file, or a value of its metadata."""
    column = name if name in ("language", "source") else "metadata"
    for value in pq.read_table(files.path("documents"), columns=[column], use_threads=False)[column].to_pylist():
        if column == "source":
            yield value.rpartition(":")[0]
        elif column == "metadata":
            yield json.dumps(json.loads(value).get(name)) if value else None
        else:
            yield value


def save(decisions: Decisions, working: Path) -> None:
    for name, kind in _ARRAYS.items():
        write_whole(working / f"decisions.{name}", np.ascontiguousarray(getattr(decisions, name), dtype=kind).tobytes())
    write_whole(working / "decided.json", json.dumps({"documents": len(decisions.fate)}).encode())


def load(working: Path, start: int = 0, count: int = -1) -> Decisions:
    """The decisions on ``count`` documents from ``start`` (all by default)."""
    return Decisions(**{name: np.fromfile(working / f"decisions.{name}", dtype=kind, count=count, offset=start * np.dtype(kind).itemsize) for name, kind in _ARRAYS.items()})
