"""`luban check RUN --ledger`: which data a training has learned from, proved by reading all of it again."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import MANIFEST, Artifact, Work, fingerprint, listed, read_json
from luban.foundation.config import build
from luban.foundation.console import count_text, table, track
from luban.foundation.errors import DataError, LubanError
from luban.foundation.messages import t
from luban.objectives.base import Loader
from luban.pipeline.check import Tick
from luban.tokens.batch import Batch
from luban.tokens.loader import text_reader
from luban.tokens.store import TokenStore
from luban.training.config import TrainConfig
from luban.training.consumed import EMPTY, read_ledger, source_of, verify_ledger
from luban.training.log import CONSUMED, GUARD, read_about, read_log
from luban.training.retention import number_of, saved
from luban.training.sources import FIELDS, Description, changed, describe, read_sources, reopened
from luban.training.stage import open_objective, read_data

Lines = list[dict[str, Any]]


def ledgers(path: Path) -> list[Path]:
    """The training folders with a ledger, of a run or of one train stage. DataError where there is none."""
    found = [file.parent for pattern in (f"training/{CONSUMED}", f"*/training/{CONSUMED}") for file in sorted(path.glob(pattern))]
    if not found:
        raise DataError("{path} holds no ledger of a training", "", "name a run, or the folder of a train stage", path=path)
    return found


def check_ledger(path: Path) -> Iterator[Tick]:
    """For each training at a path: its places follow each other, its sources are byte for byte what they were, and reading them again gives the same digests."""
    for folder in ledgers(path):
        try:
            yield from _checked(folder)
        except LubanError as error:
            yield Tick(False, error.text())


def _checked(folder: Path) -> Iterator[Tick]:
    place, lines, noted = folder.parent, read_ledger(folder), read_sources(folder)
    if not lines:
        yield Tick(False, t("{path}: the ledger is empty: no checkpoint has been written", path=place))
        return
    yield _in_order(folder, lines)
    if not noted or not all(line.get("data") in noted["sources"] for line in lines):
        yield Tick(False, t("{path}: it was trained before ledgers noted their sources, shard by shard: what those held is not known", path=place))
        return
    work = Work(folder, reopened(folder, noted), noted.get("seed", 0), place.name)
    now = describe(work)
    present = fingerprint(now)
    for digest in dict.fromkeys(line["data"] for line in lines if line["data"] != present):
        steps = [step for line in lines if line["data"] == digest for step in line["steps"]]
        what = changed(noted["sources"][digest], now)
        yield Tick(False, t("{path}: steps {first} to {last} read data that is not what it was: {changed} was changed", path=place, first=min(steps), last=max(steps), changed=what))
    for item in (item for field in FIELDS for item in listed(work.inputs.get(field)) if isinstance(item, Artifact) and item.kind == "encode"):
        TokenStore(item.path, "train").verify()  # of other files every byte has been read by now
    for source, held in now.items():
        yield Tick(True, t("{source}: each byte of its {count} shards or files is as it was written", source=source, count=len(held)))
    before = max((number for number, line in enumerate(lines) if line["data"] != present), default=-1)
    if rest := lines[before + 1 :]:
        yield _read_again(folder, rest, lines[before]["sha256"] if before >= 0 else EMPTY, work, now)


def _in_order(folder: Path, lines: Lines) -> Tick:
    """That places follow each other up to the training's last step; those that rollbacks passed over are counted against the guard's own words."""
    spans = [span for line in lines for span in line["places"]]
    starts = [0 if lines[0]["steps"][0] == 1 else spans[0][0], *(stop + 1 for _, stop in spans)]  # a branch begins where the other training stood
    skipped = [[expected, start - 1] for expected, (start, _) in zip(starts, spans, strict=False) if start > expected]
    passed_over = sum(entry.get("passed_over", 0) for entry in read_log(folder / GUARD) if entry.get("event") == "rollback")
    count, last = sum(stop - start + 1 for start, stop in skipped), lines[-1]["step"]
    ends = max([read_json(folder.parent / MANIFEST).get("metrics", {}).get("steps", 0), *map(number_of, saved(folder))])
    told = {"path": folder.parent, "first": lines[0]["steps"][0], "last": last, "places": sum(stop - start + 1 for start, stop in spans), "skipped": ", ".join(f"{start}–{stop}" for start, stop in skipped)}
    if ends != last:
        return Tick(False, t("{path}: the ledger ends with step {last}, and the training with step {end}", **told, end=ends))
    if count != passed_over:
        return Tick(False, t("{path}: places {skipped} of the data were skipped, and no rollback says why", **told))
    if count:
        return Tick(True, t("{path}: steps {first} to {last} read {places} places of the data in order, none twice; {skipped} were passed over by rollbacks", **told))
    return Tick(True, t("{path}: steps {first} to {last} read {places} places of the data in order, none twice, none skipped", **told))


def _read_again(folder: Path, lines: Lines, digest: str, work: Work, sources: Description) -> Tick:
    """Read what the lines tell of once more, and print what it was."""
    config = build(TrainConfig, read_about(folder).get("config", {}))
    with tempfile.TemporaryDirectory(prefix="luban-ledger-") as scratch:
        (Path(scratch) / "training").mkdir()
        _, loaders = read_data(config, work, open_objective(config, work), Path(scratch))
        seen = Seen(loaders.train)
        verify_ledger(track(lines, "reading {path} again", total=len(lines), path=folder.parent), seen, digest)
    table(t("data read by {path}", path=folder.parent), [t("source"), t("shard or file"), t("documents or rows"), t("from"), t("to"), t("pieces"), t("checksum")], seen.rows(sources))
    told = {"path": folder.parent, "first": lines[0]["steps"][0], "last": lines[-1]["step"], "sha256": lines[-1]["sha256"][:16]}
    return Tick(True, t("{path}: what steps {first} to {last} read was read again and is the same, sha256 {sha256}…", **told))


class Seen:
    """A loader that counts what it gives: documents by source and shard, or rows by file and line."""

    def __init__(self, loader: Loader):
        self.loader, self.text = loader, text_reader(loader)
        self.counts: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)  # by source and shard: how often each document was read

    def step(self, index: int) -> Batch:
        if self.text:
            for store, document in self.text.pieces(index):
                self.counts[store.name, store.shard(document)][document] += 1
            return self.loader.step(index)
        batch = self.loader.step(index)
        for name in batch.sources:
            number = name.rpartition(":")[2]
            self.counts[source_of(name), ""][int(number) if number.isdecimal() else 0] += 1
        return batch

    def rows(self, sources: Description) -> Iterator[tuple[Any, ...]]:
        """Of each shard or file: its name, how many documents or rows of it were read, from which to which, in how many pieces, and its checksum."""
        for (source, shard), counted in sorted(self.counts.items()):
            name, held = (source, sources[source][shard]) if shard else _file(source, sources)
            yield name, shard, len(counted), min(counted), max(counted), count_text(counted.total()), (held.get("sha256") or held["xxh3"][".bin"])[:12]


def _file(path: str, sources: Description) -> tuple[str, dict[str, Any]]:
    """The name and description of a file whose rows go by its path."""
    for source, held in sources.items():
        for file, facts in held.items():
            name = file if file == source else f"{source}/{file}"
            if f"/{path}".endswith(f"/{name}"):
                return name, facts
    return path, {"sha256": "?"}
