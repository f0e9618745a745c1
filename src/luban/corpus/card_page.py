"""Drawing the data card as one HTML page: no script, no font and no picture from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from luban.foundation.console import bytes_text
from luban.foundation.messages import t

_BAR_WIDTH, _ROW = 560, 26


def render(facts: dict[str, Any], language: str) -> str:
    """The card in ``"en"`` or ``"zh"``; every text from the data is escaped."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.get_template("card.html.j2")
    lengths = [(f"{2 ** int(power):,}–{2 ** (int(power) + 1) - 1:,}", count, f"{count:,}") for power, count in facts["lengths"].items()]
    languages = [(name, figures["bytes"], f"{bytes_text(figures['bytes'])} · {figures['documents']:,}") for name, figures in facts["languages"].items()]
    removed = [(rule, found["count"], f"{found['count']:,}") for rule, found in facts["rejected"].items()]
    return template.render(
        facts=facts, language=language, t=t, size=bytes_text, lengths=bars(lengths), languages=bars(languages), removed=bars(removed),
        total_bytes=sum(split["bytes"] for split in facts["splits"].values()), total_characters=sum(split["characters"] for split in facts["splits"].values()),
    )  # fmt: skip


def bars(rows: list[tuple[str, int, str]]) -> Markup:
    """A horizontal bar chart as inline SVG: label, value, what is written beside the bar."""
    if not rows:
        return Markup("")
    most = max(value for _, value, _ in rows) or 1
    parts = [Markup('<svg class="chart" role="img" viewBox="0 0 {} {}" width="100%">').format(_BAR_WIDTH + 340, _ROW * len(rows) + 4)]
    for index, (label, value, shown) in enumerate(rows):
        y = index * _ROW
        width = max(2, round(_BAR_WIDTH * value / most))
        parts.append(
            Markup('<text x="150" y="{}" text-anchor="end">{}</text><rect x="160" y="{}" width="{}" height="16" rx="3"/><text class="value" x="{}" y="{}">{}</text>').format(
                y + 17, label, y + 5, width, 168 + width, y + 17, shown
            )
        )
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)
