"""training/log.jsonl as it is read again: by a run that goes on, and by whoever draws it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
GUARD = "guard.jsonl"  # steps that were skipped, and why
ALERTS = "alerts.jsonl"  # only ever added to: an alert stays when its step is retracted
ABOUT = "about.json"  # what the run is, beside its log
MEASURED = ("seconds", "tokens_per_second", "peak_share", "memory_bytes")  # columns that tell of the machine; the others are the same whenever the run is repeated


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


def read_about(folder: Path) -> dict[str, Any]:
    """What a run wrote about itself in its training folder; nothing where it is missing or damaged."""
    try:
        found = json.loads((folder / ABOUT).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
