"""A bar for each side: tokens a second, as SVG that follows a dark page. The interquartile range of the rounds is a line across the bar's end."""

from __future__ import annotations

import html
import statistics
from typing import Any

from benchmarks.throughput.shapes import SHAPES
from luban.pipeline.card_charts import nice_ticks, number_text

WIDTH, LABELS, BAR, GAP, TOP = 900, 420, 18, 10, 34  # pixels
STYLE = """<style>
text { font: 13px system-ui, "Noto Sans CJK SC", sans-serif; fill: #333 } .title { font-weight: 600 } .tick { fill: #777 } .grid { stroke: #8884 } .range { stroke: #333; stroke-width: 1.5 }
.peer { fill: #9aa7b5 } .luban { fill: #3a7d5c }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .tick { fill: #999 } .range { stroke: #ddd } .peer { fill: #667585 } .luban { fill: #5fae88 } }
</style>"""


def chart(found: dict[str, Any], names: dict[str, str], title: str) -> str:
    """The SVG of one shape's results; ``names`` says what is written beside each side's bar."""
    tokens = SHAPES[found["shape"]].tokens
    speeds = {side: sorted(tokens / seconds for seconds in measured["seconds"]) for side, measured in found["sides"].items()}
    order = sorted(speeds, key=lambda side: -statistics.median(speeds[side]))
    ticks = nice_ticks(0.0, max(values[-1] for values in speeds.values()))
    scale = (WIDTH - LABELS - 70) / ticks[-1]
    height = TOP + len(order) * (BAR + GAP) + 24
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"><title>{html.escape(title)}</title>{STYLE}', f'<text class="title" x="0" y="16">{html.escape(title)}</text>']
    for tick in ticks:
        x = LABELS + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{height - 24}"/><text class="tick" text-anchor="middle" x="{x:.1f}" y="{height - 8}">{number_text(tick)}</text>')
    for row, side in enumerate(order):
        y, middle = TOP + row * (BAR + GAP), statistics.median(speeds[side])
        low, _, high = statistics.quantiles(speeds[side], n=4) if len(speeds[side]) > 1 else (middle,) * 3
        parts.append(
            f'<text text-anchor="end" x="{LABELS - 8}" y="{y + 14}">{html.escape(names[side])}</text><rect class="{"luban" if side.startswith("luban") else "peer"}" x="{LABELS}" y="{y}" width="{middle * scale:.1f}" height="{BAR}"/>'
            f'<line class="range" x1="{LABELS + low * scale:.1f}" x2="{LABELS + high * scale:.1f}" y1="{y + BAR / 2}" y2="{y + BAR / 2}"/><text x="{LABELS + max(middle, high) * scale + 6:.1f}" y="{y + 14}">{middle:,.0f}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
