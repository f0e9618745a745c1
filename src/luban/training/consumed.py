"""training/consumed.jsonl: which data a run has learned from, in order, a line for each checkpoint.

A line says which steps it is of, which places of the data they read (loaders are functions of seed and place), how many pieces of documents of each source, what the sources were (``data``,
a digest whose shards and checksums stand in sources.json), and a digest: SHA-256 over what each step read (document names, tokens, targets, weights), chained from step to step. Two runs
with the same digest have read the same, in the same order. Rows are put together before ranks and micro-batches, so neither changes it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luban.foundation.errors import DataError
from luban.objectives.base import Loader
from luban.parallel.ranks import here
from luban.tokens.batch import Batch
from luban.training.log import CONSUMED, add_line, read_log, write_log
from luban.training.run import Run
from luban.training.sources import changed, read_sources

EMPTY = hashlib.sha256().hexdigest()


class Witness:
    """A loader that remembers what it has given. Everything else is the loader's own."""

    def __init__(self, loader: Loader):
        self.loader = loader
        self.given: dict[int, tuple[str, Counter[str], int]] = {}  # by place: digest, pieces of each source, tokens

    def step(self, index: int) -> Batch:
        batch = self.loader.step(index)
        self.given[index] = digest_of(batch), Counter(source_of(source) for source in batch.sources), int((batch.weights > 0).sum())
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


class Ledger:
    """A hook that writes down what the steps between two checkpoints have read."""

    section = "other"

    def __init__(self, run: Run, data: str, accepted: Sequence[str] = ()):
        """``data`` is the digest of the sources as they are now; ``accepted`` names changes that are no reason to end a run which has read others."""
        self.file, self.witness, self.data, self.accepted = run.folder / CONSUMED, Witness(run.loaders.train), data, accepted
        run.loaders.train = self.witness
        self.places: list[int] = []  # of the steps since the last line
        self.step, self.digest = 0, EMPTY

    def after_step(self, run: Run) -> None:
        self.places.append(run.place - 1)

    def before_checkpoint(self, run: Run) -> None:
        """A line for the steps since the last one. It is written before the checkpoint, so that one which is whole has its line."""
        if not self.places:
            return
        pieces: Counter[str] = Counter()
        scored = 0
        for place in self.places:
            digest, found, tokens = self.witness.given.pop(place)
            self.digest = chained(self.digest, digest)
            pieces.update(found)
            scored += tokens
        self.witness.given.clear()  # of steps that were given up
        line = {"step": run.step, "steps": [self.step + 1, run.step], "places": ranges(self.places), "data": self.data, "pieces": dict(sorted(pieces.items())), "scored": scored, "sha256": self.digest}
        self.step, self.places = run.step, []
        run.history["consumed"] = line  # a power cut may take the file's end, and not the checkpoint
        if here().leads:
            add_line(self.file, line)

    def resumed(self, run: Run) -> None:
        """The run stands at a checkpoint: what was read after it is read again, or passed over."""
        self.places, self.step, self.digest = [], run.step, EMPTY
        kept = [line for line in read_log(self.file) if isinstance(line.get("step"), int) and 0 < line["step"] <= run.step]
        if known := run.history.get("consumed"):
            self.digest = known["sha256"]
            kept += [known] if not kept or kept[-1]["step"] < known["step"] else []
        if kept and not self.accepted and (was := kept[-1].get("data", self.data)) != self.data:
            noted = read_sources(self.file.parent).get("sources", {})
            raise DataError(
                "the data is not what this training has read so far: {changed} was changed", "its steps so far and those to come would be of different data", "restore it, or remove {folder} to begin anew",
                folder=self.file.parent.parent, changed=changed(noted.get(was, {}), noted.get(self.data, {})) or "?",
            )  # fmt: skip
        if here().leads:
            write_log(self.file, kept)


def digest_of(batch: Batch) -> str:
    """SHA-256 of what a step reads: the names of its documents (without the folders, which may be moved), tokens, targets and weights."""
    digest = hashlib.sha256("\n".join(name.rpartition("/")[2] for name in batch.sources).encode("utf-8", "surrogatepass"))
    for tensor in (batch.inputs, batch.targets, batch.weights, batch.source):
        if tensor is not None:
            digest.update(np.ascontiguousarray(tensor.numpy()))
    return digest.hexdigest()


def chained(before: str, digest: str) -> str:
    return hashlib.sha256(f"{before}{digest}".encode("ascii")).hexdigest()


def source_of(name: str) -> str:
    """The file or store of a document's name, ``store:identity`` or ``file:line``."""
    return name.rpartition(":")[0] or name


def ranges(places: Iterable[int]) -> list[list[int]]:
    """Places in their order as runs [first, last]."""
    found: list[list[int]] = []
    for place in places:
        if found and place == found[-1][1] + 1:
            found[-1][1] = place
        else:
            found.append([place, place])
    return found


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ledger. DataError where its steps do not follow each other or a place was read twice."""
    lines = list(read_log(folder / CONSUMED))
    step, place = 0, -1  # a run that began with a Luban without ledger has one from its second half on
    for number, line in enumerate(lines, start=1):
        try:
            first, last = line["steps"]
            spans = line["places"]
            whole = isinstance(line["sha256"], str) and first == (step + 1 if number > 1 else first) and last == line["step"] and sum(stop - start + 1 for start, stop in spans) == last - first + 1
            for start, stop in spans:
                whole = whole and place < start <= stop
                place = stop
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise DataError("{file}:{line}: the steps or places do not follow what stands before", "data was read twice, or the file was changed", file=folder / CONSUMED, line=number)
        step = last
    return lines


def verify_ledger(lines: Iterable[dict[str, Any]], loader: Loader, digest: str = EMPTY) -> None:
    """Read everything again from the loader and compare; ``digest`` is that of the line before. DataError names the first steps that read something else."""
    for line in lines:
        for start, stop in line["places"]:
            for place in range(start, stop + 1):
                digest = chained(digest, digest_of(loader.step(place)))
        if digest != line["sha256"]:
            raise DataError("steps {first} to {last} have read other data than this", "", first=line["steps"][0], last=line["steps"][1])
