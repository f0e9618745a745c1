"""The files that one unit of work leaves in the working folder, and how they become whole in one step."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from luban.foundation.artifacts import from_os_error

HASH = np.dtype([("high", "<u8"), ("low", "<u8")])  # 128 bits of a text
REJECT_SCHEMA = pa.schema([("source", pa.string()), ("rule", pa.string()), ("reason", pa.string()), ("language", pa.string()), ("text", pa.string())])


@dataclass
class Reject:
    """What was set aside: where it stood, the rule and its figure, and the text."""

    source: str
    rule: str
    reason: str
    language: str
    text: str


@dataclass(frozen=True)
class UnitFiles:
    """Paths of unit ``number`` below the working folder."""

    working: Path
    number: int

    def path(self, kind: str) -> Path:
        return self.working / "units" / f"{self.number:05d}.{kind}"

    @property
    def is_clean(self) -> bool:
        return self.path("cleaned.json").exists()

    @property
    def is_written(self) -> bool:
        return self.path("written.json").exists()

    def summary(self, kind: str) -> dict[str, Any]:
        return json.loads(self.path(f"{kind}.json").read_bytes())


def write_whole(path: Path, data: bytes) -> None:
    """As foundation's write_bytes but without waiting for the disk: a lost unit is only done again."""
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise from_os_error(error, path) from error


def write_table(path: Path, table: pa.Table, within: Path | None = None) -> None:
    """A parquet file whose bytes depend on the table alone. It grows in the folder ``within`` (default: its own), where a kill may leave a part of it."""
    temporary = (within or path.parent) / f".{path.name}.tmp{os.getpid()}"
    try:
        pq.write_table(table, temporary, compression="zstd", row_group_size=4096)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise from_os_error(error, path) from error


def reject_table(rejects: Sequence[Reject]) -> pa.Table:
    return pa.table({name: [getattr(reject, name) for reject in rejects] for name in REJECT_SCHEMA.names}, schema=REJECT_SCHEMA)


def read_rejects(path: Path) -> list[Reject]:
    return [Reject(**row) for row in pq.read_table(path, use_threads=False).to_pylist()]
