"""The planner against published figures: calibrated on one row of an engine and device, the others predicted. ``python -m benchmarks.planner published``."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from luban.adapters.config import LoraConfig
from luban.foundation.config import build
from luban.models.families import family_of
from luban.models.presets import PRESETS, preset
from luban.models.quantization_config import QuantizationConfig
from luban.planning.devices import Cluster, cluster
from luban.planning.job import Habits, Job, Layout
from luban.planning.margins import MEMORY, TIME
from luban.planning.search import memory_of
from luban.planning.speed import speed

FILE = Path(__file__).with_name("published.yaml")


@dataclass
class Row:
    """A published row as a job on a cluster, and what was measured: tokens a second of a device, GiB of a device; 0 where it was not said."""

    engine: str
    job: Job
    layout: Layout
    cluster: Cluster
    tokens: float
    memory: float
    calibrates: bool
    predicted_tokens: float = 0.0
    predicted_memory: float = 0.0

    @property
    def text(self) -> str:
        shape = self.job.shape
        held = f", {self.job.quantization.format}" if self.job.quantization else ""
        tuned = f", {self.job.adapter.method}{held}" if self.job.adapter else ""
        return f"{shape.architecture} {shape.layers} × {shape.hidden_size}, {self.job.sequence_length} × {self.job.rows}, {self.layout.text()}, recompute {self.job.recompute}{tuned}{', layerwise' if self.job.engine == 'layerwise' else ''}"


def read() -> list[Row]:
    """Every row of published.yaml."""
    plain = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    shapes = {name: build(family_of(fields["architecture"]).shape, fields) for name, fields in plain["shapes"].items()}
    return [_row(one, plain["engines"][one["engine"]], shapes) for one in [*plain["rows"], *_foundry(plain["foundry"])]]


def _foundry(tables: dict[str, list[list[Any]]]) -> Iterator[dict[str, Any]]:
    for device, rows in tables.items():
        for model, sequence, devices, micro, step, tokens, again in rows:
            yield {"engine": "llm-foundry", "device": device, "shape": f"mpt-{model}", "sequence": sequence, "rows": micro, "step_rows": step, "layout": {"shards": devices}, "recompute": "full" if again else "none", "tokens": tokens, "calibrates": (model, sequence, devices) == ("7b", 2048, 8)}  # fmt: skip


def _row(one: dict[str, Any], engine: dict[str, Any], shapes: dict[str, Any]) -> Row:
    shape = preset(one["shape"]) if one["shape"] in PRESETS else shapes[one["shape"]]
    habits = Habits(**{**engine["habits"], **one.get("habits", {})})
    parts = one.get("layout", {})
    layout = Layout(**parts, **({"shard": "full"} if parts.get("shards") else {}))
    adapter = LoraConfig(**one["adapter"]) if "adapter" in one else None
    quantization = QuantizationConfig(**one["quantization"]) if "quantization" in one else None
    job = Job(
        shape, one["sequence"], one["step_rows"], one["rows"], precision="bfloat16", recompute=one["recompute"], engine=one.get("trainer", "torch"), adapter=adapter, quantization=quantization,
        device="gpu", compile=engine.get("compile", False), habits=habits,
    )  # fmt: skip
    return Row(one["engine"], job, layout, cluster(f"{layout.devices}x{one['device']}"), float(one.get("tokens", 0)), float(one.get("memory", 0)), bool(one.get("calibrates")))


def predict(rows: list[Row]) -> None:
    """Fill in what is predicted, each group of rows of one engine and device calibrated on its one row."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.engine, row.cluster.device.name), []).append(row)
    for group in groups.values():
        known = [row for row in group if row.calibrates]
        assert len(known) == 1, f"{len(known)} rows calibrate {group[0].engine} on {group[0].cluster.device.name}"
        share = _share(known[0]) if known[0].tokens else 0.0
        ratio = known[0].memory * 2**30 / memory_of(known[0].job, known[0].layout).total if known[0].memory else 0.0
        for row in group:
            if row.tokens and share:
                row.predicted_tokens = _tokens(row, share)
            if row.memory and ratio:
                row.predicted_memory = memory_of(row.job, row.layout).total * ratio / 2**30


def _tokens(row: Row, share: float) -> float:
    return speed(row.job, row.layout, row.cluster, share).tokens_per_second / row.cluster.count


def _share(row: Row) -> float:
    """The share of its rate that products reach where the row's tokens a second come out."""
    low, high = 0.02, 3.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _tokens(row, middle) < row.tokens else (low, middle)
    return low


def summary(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Of memory and of speed: how many rows were predicted, the median and the 80th percentile of the error, and how often the interval that is printed held the truth."""
    found = {}
    for name, margin, pairs in (
        ("memory", MEMORY["gpu"], [(row.predicted_memory, row.memory) for row in rows if row.predicted_memory and not row.calibrates]),
        ("tokens", TIME["gpu"], [(row.predicted_tokens, row.tokens) for row in rows if row.predicted_tokens and not row.calibrates]),
    ):
        errors = sorted(abs(predicted / truth - 1) for predicted, truth in pairs)
        if errors:
            held = [abs(truth / predicted - 1) <= margin if name == "memory" else 1 - margin <= predicted / truth <= 1 + margin for predicted, truth in pairs]
            found[name] = {"rows": len(errors), "median": statistics.median(errors), "p80": errors[int(0.8 * len(errors))], "worst": errors[-1], "held": sum(held) / len(held)}
    return found


def table(rows: list[Row]) -> str:
    """Each row as a line of Markdown, hits and misses alike; of llm-foundry's many one line for a model and device."""
    lines = ["| engine, devices | what | GiB: published → predicted | tokens/s a device: published → predicted |", "| --- | --- | --- | --- |"]
    many: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        memory = _pair(row.memory, row.predicted_memory, row.calibrates, ".1f")
        tokens = _pair(row.tokens, row.predicted_tokens, row.calibrates, ",.0f")
        if row.engine == "llm-foundry":
            again = ", full" if row.job.recompute == "full" else ""
            many.setdefault((row.cluster.device.name, f"{row.job.shape.layers} × {row.job.shape.hidden_size}"), []).append(f"{row.job.sequence_length} on {row.cluster.count}{again}: {tokens}")
        else:
            lines.append(f"| {row.engine}, {row.cluster.text} | {row.text} | {memory} | {tokens} |")
    lines += ["", "| llm-foundry | tokens a row, devices, recompute: tokens/s a device, published → predicted |", "| --- | --- |"]
    lines += [f"| {device}, {model} | {'; '.join(cells)} |" for (device, model), cells in many.items()]
    return "\n".join(lines)


def _pair(truth: float, predicted: float, calibrates: bool, form: str) -> str:
    """``1,000 → 1,100 (+10%)``."""
    if not predicted:
        return ""
    return f"{truth:{form}} (calibrates)" if calibrates else f"{truth:{form}} → {predicted:{form}} ({predicted / truth - 1:+.0%})"
