"""training/sources.json: what a run's data was when it was read, source by source, shard by shard, and where its inputs lie, so that all of it can be read and compared again.

A token shard goes by the xxh3 checksums that were written with it, so that nothing has to be read for this; any other file by its SHA-256. The whole goes by one digest, which each line of
the ledger names (consumed.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luban.corpus.readers import find_files
from luban.foundation.artifacts import Artifact, Input, Work, fingerprint, is_artifact, listed, open_artifact, read_json, sha256_of, write_json
from luban.foundation.paths import named_files, without_part
from luban.tokens.store import TokenStore

SOURCES = "sources.json"
FIELDS = ("data", "replay.data")  # inputs that are learned from
OF_A_SHARD = (".bin", ".offsets.npy", ".ids.npy")  # what a row of it is made of
Description = dict[str, dict[str, dict[str, Any]]]  # of each source its shards or files, and what each holds


def note_sources(work: Work, folder: Path) -> str:
    """Describe the data of a training in ``folder``, beside what it was before if it has changed; returns its digest."""
    described = describe(work)
    digest = fingerprint(described)
    file = folder / SOURCES
    known = read_json(file).get("sources")
    inputs = {name: [_from(folder, item) for item in listed(value)] for name, value in work.inputs.items()}
    write_json(file, {"seed": work.seed, "inputs": inputs, "sources": {**(known if isinstance(known, dict) else {}), digest: described}})
    return digest


def describe(work: Work) -> Description:
    """Each source by the name that its documents have in the ledger."""
    return {name: held for field in FIELDS for item in listed(work.inputs.get(field)) for name, held in _described(item)}


def _described(item: Input) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    if isinstance(item, Artifact) and item.kind == "encode":
        store, first = TokenStore(item.path, "train"), 0
        held = {}
        for shard in store.index["shards"]:
            held[shard["name"]] = {"documents": [first, first + shard["documents"] - 1], "tokens": shard["tokens"], "xxh3": {part: shard["xxh3"][part] for part in OF_A_SHARD}}
            first += shard["documents"]
        yield store.name, held
        return
    for path in [item.path] if isinstance(item, Artifact) else named_files(item):
        files = [path] if path.is_file() else sorted(path.rglob("*.jsonl")) if isinstance(item, Artifact) else find_files([path])  # beside its rows an artifact has reports
        yield path.name, {(file.name if path.is_file() else file.relative_to(path).as_posix()): {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files}


def changed(was: Description, now: Description) -> str:
    """The first shard or file that is not what it was, as ``source: shard``; "" where all are."""
    for source, held in was.items():
        for name, facts in held.items():
            if now.get(source, {}).get(name) != facts:
                return f"{source}: {name}"
        if more := sorted(now.get(source, {}).keys() - held.keys()):
            return f"{source}: {more[0]}"
    return next(iter(now.keys() - was.keys()), "")


def read_sources(folder: Path) -> dict[str, Any]:
    """What :func:`note_sources` wrote; an empty one where it is missing or damaged."""
    found = read_json(folder / SOURCES)
    return found if all(isinstance(found.get(name), dict) for name in ("inputs", "sources")) else {}


def reopened(folder: Path, noted: dict[str, Any]) -> dict[str, Input | list[Input] | None]:
    """The inputs of a training, where they lay when it ran."""
    opened: dict[str, Input | list[Input] | None] = {}
    for name, texts in noted["inputs"].items():
        items = [_opened(folder, text) for text in texts]
        opened[name] = items[0] if len(items) == 1 else items or None
    return opened


def _from(folder: Path, item: Input) -> dict[str, Any]:
    """Where an input lies, seen from ``folder``: its files, and what stands behind ``#`` of the path that named them."""
    path = item.path if isinstance(item, Artifact) else item
    return {"files": [os.path.relpath(file.absolute(), folder.absolute()) for file in named_files(path)], "part": str(path)[len(without_part(path)) :]}


def _opened(folder: Path, told: dict[str, Any]) -> Input:
    path = Path(",".join(os.path.normpath(folder.absolute() / file) for file in told["files"]) + told["part"])
    return open_artifact(path) if is_artifact(path) else path
