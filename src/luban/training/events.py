"""training/guard.jsonl: what the guards saw and did, for the owner of the run and for whoever draws it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from luban.training.log import GUARD, add_line, read_log, write_log


class Events:
    """Lines ``{"step", "event", "time", …}``."""

    def __init__(self, folder: Path):
        self.file = folder / GUARD

    def add(self, event: str, step: int, **facts: Any) -> None:
        """One line more. A disk that refuses is no reason to end a run."""
        entry = {"step": step, "event": event, "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **facts}
        try:
            add_line(self.file, entry)
        except OSError:
            return

    def retract(self, step: int) -> None:
        """Take away what will happen again in a run that goes on from ``step``. What happened to a process (a hang, a stop) stays."""
        entries = list(read_log(self.file))
        kept = [entry for entry in entries if not _again(entry, step)]
        if len(kept) < len(entries):
            write_log(self.file, kept)


def _again(entry: dict[str, Any], step: int) -> bool:
    if entry.get("event") == "rollback":  # a checkpoint that knows of it lies after the one it went back to
        return isinstance(entry.get("to"), int) and entry["to"] >= step
    return entry.get("event") not in ("hang", "stopped", "slow", "straggler") and isinstance(entry.get("step"), int) and entry["step"] > step
