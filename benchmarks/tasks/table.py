"""The results as a Markdown table, in English and Chinese."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = {
    "en": ["task", "data", "model", "examples (train / test)", "metric", "Luban", "transformers", "difference", "seconds, Luban / transformers (processor)", "before training", "baselines"],
    "zh": ["任务", "数据", "模型", "样本（训练 / 测试）", "指标", "Luban", "transformers", "差值", "秒，Luban / transformers（处理器）", "训练前", "基线"],
}
BASELINES = {
    "majority": "多数类", "mean": "均值", "TF-IDF + linear": "TF-IDF + 线性", "dictionary": "词典", "sentence overlap": "句子重合", "first": "总选第一个", "BM25": "BM25",
    "nearest training example": "最近的训练样本", "first sentence": "首句", "untrained": "未预训练", "n-gram": "n-gram",
}  # fmt: skip


def results(folder: Path, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    from benchmarks.tasks.rows import BY_NAME

    found = [json.loads((folder / f"{name}.json").read_bytes()) for name in (only or BY_NAME) if (folder / f"{name}.json").exists()]
    return found


def number(value: float | None, metric: str) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.1f}" if metric in ("bleu", "chrf", "ter") else f"{value:.3f}"


def with_interval(score: dict[str, Any] | None, metric: str, signed: bool = False) -> str:
    """``0.712 ± 0.021``, half the width of the interval; a signed difference with both ends."""
    if score is None:
        return "–"
    value, interval = score["value"], score["interval"]
    if signed:
        sign = "+" if value >= 0 else ""
        ends = f" [{number(interval[0], metric)}, {number(interval[1], metric)}]" if interval else ""
        return f"{sign}{number(value, metric)}{ends}"
    half = f" ± {number((interval[1] - interval[0]) / 2, metric)}" if interval else ""
    return number(value, metric) + half


def table(folder: Path, language: str, only: Sequence[str] = ()) -> str:
    """The Markdown table of the results in ``folder``, and a line on the machine for each that differs."""
    found = results(folder, only)
    lines = ["| " + " | ".join(COLUMNS[language]) + " |", "| " + " | ".join("---" for _ in COLUMNS[language]) + " |"]
    for row in found:
        metric, scores = row["metric"], row["scores"]
        others = [name for name in scores if name not in ("before", "luban", "peer")]
        named = "; ".join(f"{name if language == 'en' else BASELINES.get(name, name)} {number(scores[name]['value'], metric)}" for name in others)
        wall, processor = (" / ".join(f"{row['seconds'][side][kind]:.0f}" for side in ("luban", "peer")) for kind in ("wall", "processor"))
        cells = [
            row["title"][language == "zh"], "/".join(row["data"].split()[0].split("/")[1:2]) or row["data"], row["model"], f"{row['examples']['train']:,} / {row['examples']['test']:,}", metric,
            with_interval(scores["luban"], metric), with_interval(scores["peer"], metric), with_interval(row["differences"].get("peer"), metric, True),
            f"{wall} ({processor})", number(scores["before"]["value"], metric), named,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    machines = {json.dumps(row["machine"], sort_keys=True): row["machine"] for row in found if "machine" in row}
    for facts in machines.values():
        versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items())
        cores, threads = ("cores", "thread(s)") if language == "en" else ("核", "线程")
        lines += ["", f"{facts['processor']}, {facts['cores']} {cores}, {facts['threads']} {threads}; Python {facts['python']}; {versions}"]
    return "\n".join(lines)
