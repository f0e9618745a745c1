"""Line charts as plain geometry: the template draws them with the page's own colours and fonts.

A chart is an SVG stretched over its box (strokes keep their width) with axis labels as HTML beside it. So text
keeps its size on a phone, follows dark and light, and wears the page's Chinese font; a plotting library's fixed colours,
random ids and embedded dates would not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 1000.0, 400.0  # of the viewBox; the page stretches it
_MOST_POINTS = 500

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A named line. ``style`` is raw, smooth or validation (a line with dots)."""

    name: str
    points: Sequence[Point]
    style: str = "smooth"


@dataclass(frozen=True)
class Chart:
    """Ready to draw: path data per style, tick labels with their place in percent."""

    title: str
    paths: list[tuple[str, str]]
    dots: list[tuple[float, float, str]]  # x, y in percent from the left and bottom, text when pointed at
    ticks_x: list[tuple[float, str]]
    ticks_y: list[tuple[float, str]]
    legend: list[tuple[str, str]] = field(default_factory=list)  # style, name


def line_chart(title: str, series: Sequence[Series], from_zero: bool = False) -> Chart | None:
    """Geometry of a chart, or None when not one point is finite. Points that are not finite leave a gap."""
    finite = [point for line in series for point in line.points if _finite(point)]
    if not finite:
        return None
    left, right = _range([x for x, _ in finite])
    ticks = nice_ticks(*_visible([y for _, y in finite], from_zero))
    bottom, top = ticks[0], ticks[-1]

    def place(point: Point) -> Point:
        x = (point[0] - left) / (right - left)
        y = min(1.02, max(-0.02, (point[1] - bottom) / (top - bottom)))  # an outlier is cut at the frame
        return x, y

    paths, dots = [], []
    for line in series:
        points = thin(line.points, _MOST_POINTS)
        data = _path([place(point) if _finite(point) else None for point in points])
        if data:
            paths.append((line.style, data))
        if line.style == "validation":
            dots += [(100 * place(p)[0], 100 * place(p)[1], f"{line.name} {number_text(p[1])} @ {p[0]:g}") for p in points if _finite(p)]
    steps = [tick for tick in nice_ticks(left, right) if left <= tick <= right]
    return Chart(
        title,
        paths,
        dots,
        [(100 * (tick - left) / (right - left), number_text(tick)) for tick in steps],
        [(100 * (tick - bottom) / (top - bottom), number_text(tick)) for tick in ticks],
        [(line.style, line.name) for line in series] if len(series) > 1 else [],
    )


def smooth(points: Sequence[Point], share: float = 0.015) -> list[Point]:
    """Exponential moving average over about ``share`` of the points, forwards and backwards, so that it does not lag."""
    finite = [point for point in points if _finite(point)]
    keep = 1 - 1 / max(4.0, share * len(finite))
    forwards, backwards = running_average([y for _, y in finite], keep), running_average([y for _, y in reversed(finite)], keep)[::-1]
    return [(x, (first + second) / 2) for (x, _), first, second in zip(finite, forwards, backwards, strict=True)]


def running_average(values: Sequence[float], keep: float) -> list[float]:
    """Bias-corrected exponential moving average."""
    average = weight = 0.0
    averages = []
    for value in values:
        average, weight = keep * average + (1 - keep) * value, keep * weight + 1 - keep
        averages.append(average / weight)
    return averages


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most about ``most`` points: of each stretch its lowest and highest, so that spikes stay, and any gap."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    chosen: list[Point] = []
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        finite = [index for index in stretch if _finite(points[index])]
        if not finite:
            chosen.append(points[start])
            continue
        low, high = min(finite, key=lambda index: points[index][1]), max(finite, key=lambda index: points[index][1])
        chosen += [points[index] for index in sorted({low, high})]
    if chosen[-1] != points[-1] and _finite(points[-1]):
        chosen.append(points[-1])
    return chosen


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that enclose [low, high], some ``about`` steps apart."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / about
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number_text(value: float) -> str:
    """A short number for an axis: ``0.001``, ``2.5``, ``12k``, ``3e-05``."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e9):
        return f"{value:.2g}"
    for scale, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}"


def _visible(values: list[float], from_zero: bool) -> tuple[float, float]:
    """The range worth showing: a lone spike far above the rest does not flatten the curve."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    usual = ordered[int(0.99 * (len(ordered) - 1))]
    if len(ordered) > 50 and high - low > 5 * (usual - low) > 0:
        high = usual * 1.1
    return (min(0.0, low) if from_zero else low), high


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _path(points: list[Point | None]) -> str:
    """SVG path data; None lifts the pen."""
    pieces, pen_down = [], False
    for point in points:
        if point is not None:
            pieces.append(f"{'L' if pen_down else 'M'}{point[0] * WIDTH:.1f} {HEIGHT - point[1] * HEIGHT:.1f}")
        pen_down = point is not None
    return "".join(pieces)
