"""Running the stage as the runner would, and looking at what it made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

import luban
from luban.corpus.config import CurateConfig
from luban.corpus.documents import SPLITS, Document, read_documents
from luban.corpus.stage import run
from luban.foundation.artifacts import Work
from luban.foundation.config import build

DATA = Path(luban.__file__).parent / "recipes" / "quickstart" / "data"


def curate(target: Path, sources: Sequence[Path | str], filters: Sequence[str] = (), **config: object) -> Work:
    """Run the stage on sources into ``target``."""
    target.mkdir(parents=True, exist_ok=True)
    config = {"workers": 1, **config}
    built = build(CurateConfig, {"sources": [str(source) for source in sources], "filters": list(filters), **config})
    work = Work(target, {"sources": [Path(source) for source in sources], "filters": [Path(f) for f in filters]})
    run(built, work)
    return work


def documents(target: Path) -> dict[str, list[Document]]:
    return {split: list(read_documents(target, split)) for split in SPLITS}


def texts(target: Path) -> list[str]:
    return [document.text for split in documents(target).values() for document in split]


def rejects(target: Path) -> list[dict]:
    return [row for file in sorted((target / "rejects").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def digest(target: Path) -> dict[str, str]:
    """Hash of every file below a folder."""
    return {file.relative_to(target).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(target.rglob("*")) if file.is_file()}


def write_jsonl(path: Path, rows: Sequence[dict]) -> Path:
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return path
