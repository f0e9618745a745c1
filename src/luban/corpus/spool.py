"""Large files that cannot be cut where they lie (compressed, csv, JSON arrays) are cut into pieces on disk once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luban.corpus.readers import BadLine
from luban.corpus.records import file_records

if TYPE_CHECKING:
    from luban.corpus.plan import SourceFile

PIECES = "pieces"


def spool_file(index: int, file: SourceFile, working: Path, piece_bytes: int, characters: int) -> list[str]:
    """Write a file's records as JSON lines into pieces; their names relative to ``working``."""
    (working / PIECES).mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    piece: list[bytes] = []
    size = 0

    def flush() -> None:
        nonlocal piece, size
        name = f"{PIECES}/{index:05d}-{len(names):05d}.jsonl"
        temporary = working / f"{name}.tmp"
        temporary.write_bytes(b"".join(piece))
        os.replace(temporary, working / name)
        names.append(name)
        piece, size = [], 0

    def put(record: Any) -> None:
        nonlocal size
        line = json.dumps(record, default=str).encode() + b"\n"
        piece.append(line)
        size += len(line)

    for number, content in file_records(file, lambda bad: put(["bad", bad.line, bad.reason, bad.text]), characters=characters):
        put(["row", number, content])
        if size >= piece_bytes:
            flush()
    if piece:
        flush()
    return names


def piece_records(path: Path, label: str, on_bad: Any) -> Iterator[tuple[int, Any]]:
    """What :func:`spool_file` wrote."""
    with path.open("rb") as stream:
        for line in stream:
            kind, number, *rest = json.loads(line)
            if kind == "bad":
                on_bad(BadLine(label, number, rest[0], rest[1]))
            else:
                yield number, rest[0]
