"""A training log held in memory as columns, and kept up with the file: what was read once is not read again."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import deque
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from luban.board.runs import Place, open_plain, parse
from luban.training.log import ALERTS, GUARD

CHUNK = 2**21  # bytes that are read and parsed in one go
LONGEST_LINE = 2**23
MOST_GROUPS, MOST_COLUMNS, LONGEST_NAME = 16, 256, 120
MOST_CELLS = 2**26  # of a table: half a GiB
KEPT_SAMPLES, KEPT_EVENTS = 400, 2000
LARGEST_STEP = 2.0**53


class Lines:
    """A file of JSON lines that grows. ``generation`` counts how often it was another file, shorter, or gone."""

    def __init__(self) -> None:
        self.identity: tuple[int, int] | None = None
        self.offset = self.size = self.generation = self.broken = 0

    def read(self, path: Path) -> list[Any]:
        """The next values, up to a chunk of the file; a line that is not whole yet waits. What is not JSON is counted and passed over."""
        if (descriptor := open_plain(path)) is None:
            return []
        with os.fdopen(descriptor, "rb") as stream:
            facts = os.fstat(descriptor)
            if (facts.st_dev, facts.st_ino) != self.identity or facts.st_size < self.offset:
                self.generation += self.identity is not None
                self.identity, self.offset, self.broken = (facts.st_dev, facts.st_ino), 0, 0
            self.size = facts.st_size
            if self.size == self.offset:
                return []
            stream.seek(self.offset)
            chunk = stream.read(CHUNK)
            while b"\n" not in chunk[-CHUNK:] and len(chunk) < LONGEST_LINE and (more := stream.read(CHUNK)):
                chunk += more
        end = chunk.rfind(b"\n") + 1
        if not end:
            if len(chunk) >= LONGEST_LINE:  # no log of ours has such a line: what follows up to its end is broken too
                self.offset += len(chunk)
                self.broken += 1
            return []
        self.offset += end
        return self._parse(chunk[:end])

    @property
    def left(self) -> int:
        return max(0, self.size - self.offset)

    def _parse(self, text: bytes) -> list[Any]:
        lines = [line for line in text.split(b"\n") if line.strip()]
        try:
            values = json.loads(b"[" + b",".join(lines) + b"]")  # one call for all: twice as fast as one for each
            if len(values) == len(lines):
                return values
        except (ValueError, RecursionError):
            pass
        values = [value for line in lines if (value := parse(line)) is not None]
        self.broken += len(lines) - len(values)
        return values


class Table:
    """Rows of numbers by rising step. A step that was there already begins anew from there, as a log does when its run was set back."""

    def __init__(self) -> None:
        self.size = 0
        self.columns: dict[str, np.ndarray] = {"step": np.empty(1024)}

    def __getitem__(self, name: str) -> np.ndarray:
        """A column [size]; what is not a number is NaN."""
        return self.columns[name][: self.size]

    def add(self, steps: list[float], rows: list[dict[str, Any]]) -> bool:
        """Append rows; True when some that were there had to go."""
        last = self["step"][-1] if self.size else -1.0
        if steps[0] > last and all(one < other for one, other in pairwise(steps)):
            self._append(steps, rows)
            return False
        again = False
        for step, row in zip(steps, rows, strict=True):
            if self.size and step <= self["step"][-1]:
                self.size, again = int(np.searchsorted(self["step"], step)), True
            self._append([step], [row])
        return again

    def _append(self, steps: list[float], rows: list[dict[str, Any]]) -> None:
        end = self.size + len(rows)
        for name in dict.fromkeys(chain.from_iterable(rows)):
            if name not in self.columns and self._may_have(name):
                self.columns[name] = np.full(len(self.columns["step"]), np.nan)
        for name, column in self.columns.items():
            if end > len(column):
                column = self.columns[name] = np.concatenate([column, np.full(max(end, 2 * len(column)) - len(column), np.nan)])
            column[self.size : end] = steps if name == "step" else _numbers([row.get(name) for row in rows])
        self.size = end

    def _may_have(self, name: str) -> bool:
        return len(self.columns) < MOST_COLUMNS and (len(self.columns) + 1) * len(self.columns["step"]) <= MOST_CELLS and len(name) <= LONGEST_NAME


def _numbers(values: list[Any]) -> np.ndarray:
    """Finite numbers [n]; NaN for anything else."""
    try:
        found = np.array(values, dtype=np.float64)
        if found.ndim != 1 or any(isinstance(value, str) for value in values):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        found = np.array([_number(value) for value in values])
    found[~np.isfinite(found)] = np.nan
    return found


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


class Kept:
    """The last of a list that grows, with how many there were before."""

    def __init__(self, most: int):
        self.items: deque[dict[str, Any]] = deque(maxlen=most)
        self.count = 0

    def add(self, item: dict[str, Any]) -> None:
        self.items.append(item)
        self.count += 1

    def since(self, number: int) -> list[dict[str, Any]]:
        """Those from the ``number``-th on that are still held."""
        return list(self.items)[max(0, number - (self.count - len(self.items))) :]


class RunLog:
    """All that a run has written: tables by group ("" for the steps, "validation", "data" …), samples, and events."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.generation = 0
        self._files = {name: Lines() for name in ("log", GUARD, ALERTS)}
        self._clear()

    def _clear(self) -> None:
        self.tables: dict[str, Table] = {"": Table()}
        self.samples, self.events = Kept(KEPT_SAMPLES), Kept(KEPT_EVENTS)

    @property
    def reading(self) -> float:
        """The share of the log that has been read."""
        file = self._files["log"]
        return 1.0 if file.left < CHUNK else file.offset / file.size

    @property
    def broken(self) -> int:
        return sum(file.broken for file in self._files.values())

    def refresh(self, place: Place, seconds: float = 0.5) -> None:
        """Read what was added, for so long at most; a log of many steps takes several calls. The caller holds the lock."""
        deadline = time.monotonic() + seconds
        for name, file in self._files.items():
            path = place.log if name == "log" else place.training / name
            while True:
                generation, offset = file.generation, file.offset
                values = file.read(path)
                if file.generation != generation:  # another file in its place: begin anew, with all of them
                    self._restart(name)
                    offset = -1
                self._take(name, [value for value in values if isinstance(value, dict)])
                if file.offset == offset or time.monotonic() > deadline:
                    break

    def _restart(self, name: str) -> None:
        """Forget everything; the other files are read again from their beginnings."""
        self.generation += 1
        self._clear()
        for other, file in self._files.items():
            if other != name:
                file.offset = 0

    def _take(self, name: str, entries: list[dict[str, Any]]) -> None:
        groups: dict[str, tuple[list[float], list[dict[str, Any]]]] = {}
        for entry in entries:
            step = _number(entry.get("step"))
            if not 0 <= step <= LARGEST_STEP:
                continue
            if name != "log" or isinstance(entry.get("event"), str):
                self.events.add(_event(step, entry))
            elif isinstance(entry.get("samples"), list):
                self.samples.add({"step": step, "samples": [_sample(sample) for sample in entry["samples"][:50] if isinstance(sample, dict)]})
            else:
                group = next((key for key, value in entry.items() if isinstance(value, dict)), "")
                steps, rows = groups.setdefault(group, ([], []))
                steps.append(step)
                rows.append(entry[group] if group else entry)
        for group, (steps, rows) in groups.items():
            if group in self.tables or (len(self.tables) < MOST_GROUPS and len(group) <= LONGEST_NAME):
                self.generation += self.tables.setdefault(group, Table()).add(steps, rows)


def _sample(sample: dict[str, Any]) -> dict[str, str]:
    return {key: str(sample.get(key, ""))[:4000] for key in ("prompt", "text")}


def _event(step: float, entry: dict[str, Any]) -> dict[str, Any]:
    """A line of guard.jsonl or alerts.jsonl: its kind is what it names itself, or its first key that is none of the usual."""
    kind = next((str(entry[key]) for key in ("rule", "event", "kind") if isinstance(entry.get(key), str)), None) or next((key for key in entry if key not in ("step", "time")), "")
    rest = {key: value for key, value in entry.items() if key not in ("step", "time", "rule", "event", "kind", "text", "run", "folder", "host", "threshold", "value")}
    detail = json.dumps(rest, ensure_ascii=False) if rest else ""
    return {"step": step, "kind": kind[:60], "time": str(entry.get("time", ""))[:40], "text": str(entry.get("text", ""))[:600], "detail": detail[:600]}
