"""The geometry of a search's charts: how the best value came down, every trial's curve, and all trials across all spaces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luban.foundation.messages import t
from luban.pipeline.card_charts import HEIGHT, WIDTH, Chart, Series, line_chart, number_text
from luban.pipeline.spaces import Space

Trial = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """One space, or the metric, of the parallel coordinates: where it stands from the left, in percent, and its ends or options."""

    name: str
    left: float
    ticks: list[tuple[float, str]]  # percent from the bottom


@dataclass(frozen=True)
class Line:
    """One trial across the axes; ``rank`` goes from 0, the best, to 1."""

    path: str
    rank: float
    text: str


@dataclass(frozen=True)
class Parallel:
    """Parallel coordinates (Inselberg 1985), ready to draw."""

    axes: list[Axis]
    lines: list[Line]


def best_so_far(trials: Sequence[Trial], maximize: bool, metric: str) -> Chart | None:
    """Each trial's value, and the best up to it."""
    points = [(trial["number"], trial["value"]) for trial in trials if trial["value"] is not None and trial["state"] == "complete"]
    best: list[tuple[float, float]] = []
    for number, value in points:
        if best and not (value > best[-1][1] if maximize else value < best[-1][1]):
            value = best[-1][1]
        elif best:
            best.append((number, best[-1][1]))  # a step, not a slope
        best.append((number, value))
    return line_chart(t("{metric} by trial", metric=metric), [Series(t("best so far"), best), Series(t("trial"), points, "validation")]) if points else None


def curves(trials: Sequence[Trial], best: int | None, metric: str) -> Chart | None:
    """What each trial reported on its way, the best one's in full strength. None where nothing was reported, or only once."""
    series = []
    for trial in sorted(trials, key=lambda one: one["number"] == best):
        points = [(int(index), value) for index, value in trial["curve"].items()]
        if points:
            series.append(Series("", points, "smooth" if trial["number"] == best else "raw"))
    if not any(len(line.points) > 1 for line in series):
        return None
    chart = line_chart(t("{metric} at each validation", metric=metric), series)
    return Chart(chart.title, chart.paths, chart.dots, chart.ticks_x, chart.ticks_y, [("smooth", t("best trial")), ("raw", t("the others"))]) if chart else None


def parallel(trials: Sequence[Trial], spaces: Sequence[Space], names: dict[str, str], maximize: bool, metric: str) -> Parallel | None:
    """All complete trials; a space that a trial does not have lifts the pen. None for fewer than two."""
    trials = [trial for trial in trials if trial["value"] is not None and math.isfinite(trial["value"])]
    used = [space for space in spaces if any(space.name in trial["values"] for trial in trials)]
    if len(trials) < 2 or not used:
        return None
    low, high = min(trial["value"] for trial in trials), max(trial["value"] for trial in trials)
    lefts = [100 * index / len(used) for index in range(len(used) + 1)]
    axes = [Axis(names[space.name], left, _ticks(space)) for space, left in zip(used, lefts, strict=False)]
    axes.append(Axis(metric, 100.0, [(0.0, number_text(low)), (100.0, number_text(high))]))
    ranked = sorted(trials, key=lambda trial: -trial["value"] if maximize else trial["value"])
    lines = []
    for rank, trial in reversed(list(enumerate(ranked))):  # the best is drawn last, on top
        places = [_place(space, trial["values"][space.name]) if space.name in trial["values"] else None for space in used]
        places.append((trial["value"] - low) / (high - low) if high > low else 0.5)
        lines.append(Line(_path(places, lefts), rank / max(1, len(ranked) - 1), t("trial {number}", number=trial["number"]) + f": {trial['value']:.5g}"))
    return Parallel(axes, lines)


def _ticks(space: Space) -> list[tuple[float, str]]:
    if space.is_choice:
        return [(100 * _place(space, label), label) for label in space.labels]
    return [(0.0, number_text(space.low)), (100.0, number_text(space.high))]


def _place(space: Space, value: Any) -> float:
    """From 0 to 1 on the space's own scale; options are evenly apart."""
    if space.is_choice:
        return space.labels.index(str(value)) / (len(space.labels) - 1)
    if space.log:
        return math.log(value / space.low) / math.log(space.high / space.low)
    return (value - space.low) / (space.high - space.low)


def _path(places: Sequence[float | None], lefts: Sequence[float]) -> str:
    pieces, pen_down = [], False
    for place, left in zip(places, lefts, strict=True):
        if place is not None:
            pieces.append(f"{'L' if pen_down else 'M'}{left * WIDTH / 100:.1f} {HEIGHT - place * HEIGHT:.1f}")
        pen_down = place is not None
    return "".join(pieces)
