"""The page of a comparison: a table, and quality against memory, time and what learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import write_bytes
from luban.foundation.console import bytes_text, count_text, say, seconds_text, table
from luban.foundation.messages import language, t
from luban.pipeline.card import page_templates
from luban.pipeline.card_charts import nice_ticks, number_text
from luban.tuning.comparison import Found

COSTS: list[tuple[str, Callable[[Found], float]]] = [
    ("peak memory, MB", lambda one: one.peak_memory_bytes / 1e6),
    ("training, seconds", lambda one: one.training_seconds),
    ("parameters that learn", lambda one: one.learning_parameters),
]
NEAR = (14.0, 7.0)  # percent across and up within which two names would lie on each other


def write_report(folder: Path, name: str, stage: str, metric: str, maximize: bool, found: Sequence[Found]) -> None:
    """Write report.html and report.md, and print the table."""
    good = sorted((one for one in found if not one.error), key=lambda one: -one.value if maximize else one.value)
    columns, rows = _rows(metric, good)
    table(t("{name}: {stage}", name=name, stage=stage), columns, rows)
    page = {
        "name": name, "stage": stage, "metric": metric, "columns": columns, "rows": rows, "failed": [(one.name, one.error) for one in found if one.error],
        "plots": [_plot(t(title), metric, [(one.name, cost(one), one.value) for one in good]) for title, cost in COSTS] if len(good) > 1 else [],
        "t": t, "lang": language(),
    }  # fmt: skip
    write_bytes(folder / "report.html", page_templates(Path(__file__).parent).get_template("comparison.html.j2").render(page).encode("utf-8", "replace"))
    lines = [f"# {name}: {stage}", "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), *("| " + " | ".join(row) + " |" for row in rows)]
    lines += [f"- {one.name}: {one.error}" for one in found if one.error]
    write_bytes(folder / "report.md", ("\n".join(lines) + "\n").encode("utf-8", "replace"))
    say("report: {path}", path=folder / "report.html")


def _rows(metric: str, found: Sequence[Found]) -> tuple[list[str], list[list[str]]]:
    general = any(one.general for one in found)
    columns = [t("method"), metric, t("before"), t("learn"), t("peak memory"), t("time"), t("on disk"), t("rate")]
    rows = []
    for one in found:
        value = f"{one.value:.4f}" + (f" ± {one.deviation:.4f}" if one.deviation is not None else "")
        share = f"{count_text(one.learning_parameters)} ({min(1.0, one.learning_parameters / max(1, one.parameters)):.2%})"
        rate = f"{one.learning_rate:g}" if isinstance(one.learning_rate, int | float) else "–"
        rows.append([one.name, value, "–" if one.before is None else f"{one.before:.4f}", share, bytes_text(one.peak_memory_bytes), seconds_text(one.training_seconds), bytes_text(one.saved_bytes), rate])
        if general:
            rows[-1].append(f"{one.general[1] - one.general[0]:+.3f}" if one.general else "–")
    return [*columns, *([t("forgotten (bits a byte)")] if general else [])], rows


def _plot(title: str, metric: str, points: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    """A scatter of named points, places in percent from the left and bottom. Costs that span more than a factor of thirty stand on powers of ten."""
    low, high = _ends([x for _, x, _ in points])
    log = low > 0 and high / low > 30
    scaled = math.log10 if log else float
    across = [float(power) for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)] if log else nice_ticks(low, high)
    up = nice_ticks(*_ends([y for _, _, y in points]))

    def place(value: float, ticks: Sequence[float]) -> float:
        return 100 * (value - ticks[0]) / (ticks[-1] - ticks[0])

    named: list[tuple[str, float, float, float]] = []
    for name, x, y in sorted(points, key=lambda point: point[1]):
        left = place(scaled(x), across)
        bottom = at = place(y, up)
        while any(abs(left - other) < NEAR[0] and abs(at - height) < NEAR[1] for _, other, _, height in named):
            at += NEAR[1]  # its name stands above the one beside it
        named.append((name, left, bottom, at))
    ticks = [(place(tick, across), number_text(10**tick if log else tick)) for tick in across]
    return {"title": title, "metric": metric, "points": named, "across": ticks, "up": [(place(tick, up), number_text(tick)) for tick in up]}


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)
