"""The files in training/ that grow by lines, as they are written and as they are read again: by a run that goes on, and by whoever draws it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import read_json, write_bytes

LOG = "log.jsonl"
GUARD = "guard.jsonl"  # steps that were skipped, and why
ALERTS = "alerts.jsonl"  # only ever added to: an alert stays when its step is retracted
TIME = "time.json"  # where the time went, over every restart
CONSUMED = "consumed.jsonl"  # the data that was learned from
ABOUT = "about.json"  # what the run is, beside its log
MEASURED = ("seconds", "tokens_per_second", "peak_share", "memory_bytes", "time", "checkpoint")  # columns that tell of the machine; the others are the same whenever the run is repeated


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a training log; a half-written line of a killed run is passed over."""
    if not path.is_file():
        return
    with path.open("rb") as stream:
        for line in stream:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict):
                yield entry


def add_line(path: Path, entry: dict[str, Any]) -> None:
    """One line more in a log. Raises OSError where the disk refuses."""
    with path.open("ab") as stream:
        stream.write(_line(entry))


def write_log(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """A log with these entries alone, in the place of the one that is there."""
    write_bytes(path, b"".join(map(_line, entries)))


def _line(entry: dict[str, Any]) -> bytes:
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")  # a file's name may hold half a character


def deterministic(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a training log without what tells of the machine: a run that was killed and continued has the same as an undisturbed one."""
    for entry in read_log(path):
        kept = {name: value for name, value in entry.items() if name not in MEASURED}
        if kept.keys() != {"step"}:
            yield kept


def read_about(folder: Path) -> dict[str, Any]:
    """What a run wrote about itself in its training folder; nothing where it is missing or damaged."""
    return read_json(folder / ABOUT)
