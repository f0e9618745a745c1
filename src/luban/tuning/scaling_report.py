"""The picture, the page and the data of a ladder: law.svg, report.md, results.json; picture and page in English and Chinese (law.zh.svg, report.zh.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from luban.foundation.artifacts import write_bytes, write_json
from luban.foundation.console import count_text, say, seconds_text, table
from luban.foundation.messages import language, set_language, t
from luban.pipeline.card_charts import nice_ticks, number_text
from luban.tuning.power_law import COVER, FACTOR
from luban.tuning.scaling import Rung, Scaling, curve

_WIDE, _HIGH, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 440, 64, 28, 64, 52
_STYLE = (
    "<style>:root{color-scheme:light dark}svg{background:#fffefc;font:13px system-ui,'Noto Sans CJK SC',sans-serif}text{fill:#1d1f21}.quiet{fill:#6d7076}.grid{stroke:#e7e4dd}"
    ".band{fill:#0d7a68;opacity:.14}.law{stroke:#0d7a68;stroke-width:2;fill:none}.seed{fill:#0d7a68;opacity:.55}.naive{stroke:#6d7076;stroke-dasharray:4 3}.bar{stroke:#b23a2e;stroke-width:2}.fore{fill:#fffefc;stroke:#b23a2e;stroke-width:2}.true{fill:#b23a2e}"
    "@media(prefers-color-scheme:dark){svg{background:#1a1d20}text{fill:#e9e7e2}.quiet{fill:#9a9da2}.grid{stroke:#2b2f33}.band,.seed{fill:#4fc0a8}.law{stroke:#4fc0a8}.bar,.fore{stroke:#e0695c}.fore{fill:#1a1d20}.true{fill:#e0695c}}</style>"
)


def write_report(found: Scaling) -> None:
    """Write all of it, and say the outcome."""
    found.folder.mkdir(parents=True, exist_ok=True)
    write_json(found.folder / "results.json", found.plain())
    for tongue, mark in (("en", ""), ("zh", ".zh")):
        with speaking(tongue):
            write_bytes(found.folder / f"law{mark}.svg", draw(found).encode("utf-8"))
            write_bytes(found.folder / f"report{mark}.md", page(found, mark).encode("utf-8"))
    columns, rows = _rows(found)
    table(t("{name}: {stage}", name=found.name, stage=found.stage), columns, rows)
    for line in outcome(found):
        say("{line}", line=line)
    mark = ".zh" if language() == "zh" else ""
    say("the picture: {picture}; the page: {page}", picture=found.folder / f"law{mark}.svg", page=found.folder / f"report{mark}.md")


@contextmanager
def speaking(tongue: str) -> Iterator[None]:
    """Messages in one language for a while."""
    before = language()
    set_language(tongue)
    try:
        yield
    finally:
        set_language(before)


def outcome(found: Scaling) -> list[str]:
    """The law, the forecast, and how it did where that is known; a sentence each."""
    law, told = found.fitted, found.forecast
    lines = [
        t("law: L = {E:.3f} + {A:.4g} / N^{alpha:.3f}, N without embeddings; alpha between {low:.2f} and {high:.2f}, where its prior is {prior:g} within a factor of {factor:g}", E=law.E, A=law.A, alpha=law.alpha, low=told.alpha_low, high=told.alpha_high, prior=law.prior, factor=FACTOR),
        t("seeds differ by {seeds:.4f}, sizes miss the curve by {misfit:.4f}", seeds=law.seed_deviation, misfit=law.misfit),
        t("{size} parameters: loss {loss:.4f}, between {low:.4f} and {high:.4f} ({cover:.0%}), where the largest of the ladder has {naive:.4f}", size=count_text(told.size), loss=told.loss, low=told.low, high=told.high, cover=COVER, naive=found.naive),
    ]
    if (truth := found.truth) is not None:
        miss, naive = abs(told.loss - truth), abs(found.naive - truth)
        lines.append(
            t("trained, it has {truth:.4f}: the forecast misses by {miss:.4f}, no change by {naive:.4f}, so by {share:.0%} of that; the interval held it: {inside}", truth=truth, miss=miss, naive=naive, share=miss / naive if naive else math.inf, inside=t("yes") if told.low <= truth <= told.high else t("no"))
        )
    return lines


def page(found: Scaling, mark: str) -> str:
    """report.md."""
    columns, rows = _rows(found)
    lines = [f"# {found.name}: {found.stage}", "", f"![{t('loss by size')}](law{mark}.svg)", "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), *("| " + " | ".join(row) + " |" for row in rows), "", *(f"- {line}" for line in outcome(found))]
    same = t("every model has read the same tokens, so the law says what size alone gives") if found.tokens == "same" else t("every model has read tokens in proportion to its size, so the law says what both together give")
    return "\n".join([*lines, f"- {same}", ""])


def _rows(found: Scaling) -> tuple[list[str], list[list[str]]]:
    columns = [t("model"), t("parameters"), t("layers"), t("width"), t("tokens"), t("loss"), t("law"), t("time")]
    rows = [_row(rung, found) for rung in found.rungs]
    rows.append(_row(found.target, found))
    return columns, rows


def _row(rung: Rung, found: Scaling) -> list[str]:
    mean = f"{sum(rung.losses) / len(rung.losses):.4f} ({', '.join(f'{loss:.4f}' for loss in rung.losses)})" if rung.losses else "–"
    return [rung.name, f"{rung.size:,}", str(rung.shape.layers), str(rung.shape.hidden_size), count_text(rung.tokens), mean, f"{found.fitted.loss(rung.size):.4f}", seconds_text(rung.seconds) if rung.losses else "–"]


# ---- the picture ----------------------------------------------------------------------------------------------------


def draw(found: Scaling) -> str:
    """A picture that stands alone: loss over size on a logarithmic scale, each seed, the law with its band, the forecast with its interval, and what came of it."""
    told, band = found.forecast, found.forecast.band
    losses = [loss for rung in (*found.rungs, found.target) for loss in rung.losses]
    ticks = nice_ticks(min([told.low, *losses]), max([told.high, *losses]))
    low, high = band[0][0], band[-1][0]

    def place(size: float, loss: float) -> tuple[float, float]:
        across = math.log(size / low) / math.log(high / low)
        up = min(1.0, max(0.0, (loss - ticks[0]) / (ticks[-1] - ticks[0])))
        return _LEFT + across * (_WIDE - _LEFT - _RIGHT), _HIGH - _BOTTOM - up * (_HIGH - _BOTTOM - _TOP)

    def points(pairs: list[tuple[float, float]]) -> str:
        return "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*pair) for pair in pairs))

    edge = [(size, top) for size, _, top in band] + [(size, bottom) for size, bottom, _ in reversed(band)]
    pieces = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_HIGH}" role="img" lang="{language()}">', _STYLE]
    pieces += _axes(found, ticks, place)
    pieces += [f'<path class="band" d="M{points(edge)}Z"/>', f'<path class="law" d="M{points(list(curve(found.fitted, low, high)))}"/>']
    pieces += [f'<circle class="seed" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for rung in found.rungs for x, y in (place(rung.size, loss) for loss in rung.losses)]
    (x, y), (_, top), (_, bottom) = (place(told.size, loss) for loss in (told.loss, told.high, told.low))
    _, level = place(told.size, found.naive)
    start, _ = place(found.rungs[-1].size, found.naive)
    pieces += [f'<line class="naive" x1="{start:.1f}" x2="{x:.1f}" y1="{level:.1f}" y2="{level:.1f}"/>', f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>', f'<circle class="fore" cx="{x:.1f}" cy="{y:.1f}" r="5"/>']
    pieces += [f'<circle class="true" cx="{cx + 9:.1f}" cy="{cy:.1f}" r="4"/>' for cx, cy in (place(told.size, loss) for loss in found.target.losses)]
    return "\n".join([*pieces, *_words(found), "</svg>"]) + "\n"


def _axes(found: Scaling, ticks: list[float], place: Callable[[float, float], tuple[float, float]]) -> list[str]:
    pieces = []
    first = found.forecast.band[0][0]
    for tick in ticks:
        _, y = place(first, tick)
        pieces.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDE - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/><text class="quiet" text-anchor="end" x="{_LEFT - 8}" y="{y + 4:.1f}">{number_text(tick)}</text>')
    for rung in (*found.rungs, found.target):
        x, _ = place(rung.size, ticks[0])
        pieces.append(f'<text class="quiet" text-anchor="middle" x="{x:.1f}" y="{_HIGH - _BOTTOM + 20}">{count_text(float(f"{rung.size:.3g}"))}</text>')
    return pieces


def _words(found: Scaling) -> list[str]:
    told = found.forecast
    said = t("L = {E:.2f} + {A:.3g} / N^{alpha:.2f}; at {size}: {loss:.3f} ({low:.3f} to {high:.3f})", E=found.fitted.E, A=found.fitted.A, alpha=found.fitted.alpha, size=count_text(float(f"{told.size:.3g}")), loss=told.loss, low=told.low, high=told.high)
    key = [("seed", t("a training")), ("fore", t("forecast")), *([("true", t("trained"))] if found.checked else [])]
    pieces = [f'<text x="{_LEFT}" y="24">{t("{stage}: held-out loss by size", stage=found.stage)}</text>', f'<text class="quiet" x="{_LEFT}" y="46">{said}</text>']
    across = _WIDE - _RIGHT - 92 * len(key)
    for place, (style, name) in enumerate(key):
        pieces.append(f'<circle class="{style}" cx="{across + 92 * place:.0f}" cy="20" r="4"/><text class="quiet" x="{across + 92 * place + 10:.0f}" y="24">{name}</text>')
    pieces.append(f'<text class="quiet" text-anchor="end" x="{_WIDE - _RIGHT}" y="{_HIGH - 10}">{t("parameters without embeddings (dashed: no change)")}</text>')
    return pieces
