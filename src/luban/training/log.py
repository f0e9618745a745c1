"""training/log.jsonl as it is read again: by a run that goes on, and by whoever draws it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a training log; a half-written line of a killed run is passed over."""
    if not path.is_file():
        return
    with path.open("rb") as stream:
        for line in stream:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry
