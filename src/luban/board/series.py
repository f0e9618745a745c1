"""Curves as the page draws them: a million steps as a few hundred buckets, each with its least, its mean and its greatest value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from luban.board.log import RunLog, Table

FEWEST_POINTS, MOST_POINTS = 50, 2000
AXES = ("tokens", "seconds")  # what may stand on the horizontal axis beside the step


def answer(log: RunLog, points: int, window: tuple[float, float] | None, known: dict[str, Any]) -> dict[str, Any]:
    """What the page lacks. ``known`` is what it holds: its generation, and by table the level and rows it has; events and samples by count.

    Of a table whose level is still the same only the buckets that changed are given, so that a run that is watched costs little.
    """
    points = min(MOST_POINTS, max(FEWEST_POINTS, points))
    same = known.get("generation") == log.generation
    held = known.get("tables") if same and isinstance(known.get("tables"), dict) else {}
    tables = {name: part for name, table in log.tables.items() if table.size and (part := table_part(log, name, points, window, held.get(name))) is not None}
    counts = {key: _count(known.get(key)) if same else 0 for key in ("events", "samples")}
    return {
        "generation": log.generation,
        "reading": round(log.reading, 3),
        "broken": log.broken,
        "tables": tables,
        "events": {"count": log.events.count, "items": log.events.since(counts["events"])},
        "samples": {"count": log.samples.count, "items": log.samples.since(counts["samples"])},
        "last": {name: _last(table) for name, table in log.tables.items() if table.size},
    }


def table_part(log: RunLog, name: str, points: int, window: tuple[float, float] | None, held: Any) -> dict[str, Any] | None:
    """Buckets of one table from the first that the page has not whole; None where it has them all."""
    table = log.tables[name]
    first, stop = (0, table.size) if window is None else _rows(table, window)
    level = max(0, math.ceil(math.log2(max(1, stop - first) / points)))
    first = first >> level << level  # buckets are counted from the first row of all, so that they stay what they are
    start, more = first, False
    if isinstance(held, list) and len(held) == 3 and held[0] == level and held[1] == first:
        rows = _count(held[2])
        if rows == stop:
            return None
        if first < rows < stop:
            start, more = rows >> level << level, True
    made = buckets(log, name, start, stop, level)
    return {"level": level, "first": first, "rows": stop, "at": (start - first) >> level if more else 0, **made}


def _rows(table: Table, window: tuple[float, float]) -> tuple[int, int]:
    """Rows inside a window of steps, and one on either side, so that a line leaves the picture."""
    first, stop = np.searchsorted(table["step"], window[0]) - 1, np.searchsorted(table["step"], window[1], side="right") + 1
    return max(0, int(first)), min(table.size, int(stop))


def buckets(log: RunLog, name: str, start: int, stop: int, level: int) -> dict[str, Any]:
    """Rows ``start`` to ``stop`` in buckets of 2^level: the horizontal place of each (its last row's) and of each column mean, low and high."""
    table, main = log.tables[name], log.tables[""]
    edges = np.arange(start, stop, 1 << level)
    ends = np.minimum(edges + (1 << level), stop) - 1
    steps = table["step"][ends]
    places = {"step": [int(step) for step in steps]}
    for axis in AXES:
        if axis in main.columns and main.size:
            places[axis] = _plain(main[axis][ends] if table is main else np.interp(steps, main["step"], main[axis]))
    series = {}
    for column in table.columns:
        if column in ("step", *AXES):
            continue
        values = table[column][start:stop]
        if level == 0:
            series[column] = [_plain(values)]
        else:
            series[column] = [_plain(part) for part in _aggregated(values, edges - start)]
    return {"places": places, "series": series}


def _aggregated(values: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, least and greatest of each bucket [buckets]; NaN where a bucket holds no number."""
    there = np.isfinite(values)
    counts = np.add.reduceat(there.astype(np.int64), edges)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.add.reduceat(np.where(there, values, 0.0), edges)
        means = sums / np.where(counts, counts, 1)
    means[counts == 0] = np.nan
    return means, np.fmin.reduceat(values, edges), np.fmax.reduceat(values, edges)


def _last(table: Table) -> dict[str, float | None]:
    return {name: _plain(table[name][-1:])[0] for name in table.columns}


def _plain(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON with seven digits; null for what is none."""
    return [float(f"{value:.7g}") if math.isfinite(value) else None for value in values.tolist()]


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
