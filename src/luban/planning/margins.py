"""How far predictions were from what was measured: the error bars that are printed, and the ledger of this user's own runs that narrows them.

The ledger is a file of JSON lines in the user's cache folder. A training adds a line with what it predicted and held; later plans for the same kind of device take the ratio of both into account.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luban.foundation.environment import cache_folder

FILE = "measured-peaks.jsonl"
# Half-widths of intervals that held the truth in four cases of five, and of memory on processors in all (docs/planner.md): of memory, and of the time of a step.
MEMORY = {"cpu": 0.05, "gpu": 0.15, "npu": 0.20, "tpu": 0.20}
TIME = {"cpu": 0.40, "gpu": 0.35, "npu": 0.50, "tpu": 0.50}
ENOUGH = 5  # runs in the ledger from which its own spread counts
NEWEST = 50


@dataclass(frozen=True)
class Margin:
    """Predicted bytes times ``ratio`` are the best guess, and the truth lies within ``memory`` and ``time`` of it, as shares."""

    memory: float
    time: float
    ratio: float = 1.0
    runs: int = 0

    def upper(self, size: float) -> float:
        """What must be there so that a prediction of ``size`` bytes fits."""
        return size * self.ratio * (1 + self.memory)


def margin_of(kind: str, name: str, folder: Path | None = None) -> Margin:
    """The margin for a kind of device, narrowed by the ledger's runs on devices of that name."""
    usual = Margin(MEMORY[kind], TIME[kind])
    ratios = [entry["measured"] / entry["predicted"] for entry in read(folder) if entry["device"] == name][-NEWEST:]
    if not ratios:
        return usual
    ratio = statistics.median(ratios)
    if len(ratios) < ENOUGH:
        return Margin(usual.memory, usual.time, ratio, len(ratios))
    spread = sorted(abs(one / ratio - 1) for one in ratios)
    return Margin(max(0.01, spread[min(len(spread) - 1, int(0.9 * len(spread)))]), usual.time, ratio, len(ratios))


def read(folder: Path | None = None) -> Sequence[dict[str, Any]]:
    """The ledger's entries, the oldest first; a line that is broken (a process died over it) is passed over."""
    file = (folder or cache_folder()) / FILE
    entries = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            entry = json.loads(line)
            if float(entry["measured"]) > 0 and float(entry["predicted"]) > 0 and isinstance(entry["device"], str):
                entries.append(entry)
        except (ValueError, KeyError, TypeError):
            continue
    return entries


def add(entry: dict[str, Any], folder: Path | None = None) -> bool:
    """Append an entry, with ``device``, ``measured`` and ``predicted`` bytes and what else tells of the run; False where the folder cannot be written to."""
    folder = folder or cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(folder / FILE, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
    except OSError:
        return False
    return True
