"""What a run card says, gathered from the manifests, logs and results that a run left in its folder.

Everything is read tolerantly: a card is made for runs that were stopped, that have one stage only, or whose log
holds NaN; what is missing is left out or said.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luban.evaluation.report import language_name, main_figure, row_label
from luban.foundation.artifacts import Artifact, is_artifact, open_artifact
from luban.foundation.console import bytes_text, count_text, seconds_text
from luban.foundation.errors import LubanError
from luban.foundation.messages import t
from luban.pipeline.card_charts import Chart, Series, line_chart, smooth
from luban.training.goodput import SECTIONS, SHOWN
from luban.training.log import read_log

MODEL_KINDS = ("train",)


@dataclass(frozen=True)
class StageFacts:
    """One stage of the run: a row of the time bar and of the lineage."""

    name: str
    kind: str = ""
    seconds: float = 0.0
    bytes: int = 0
    fingerprint: str = ""
    inputs: list[tuple[str, str]] = field(default_factory=list)  # field, what it was
    finished: bool = True
    artifact: Artifact | None = None


@dataclass(frozen=True)
class TrainingFacts:
    """One training stage: its facts, curves and samples."""

    name: str
    facts: list[tuple[str, str]]
    loss: Chart | None
    small: list[Chart]
    samples: list[tuple[str, list[tuple[int, str]]]]  # prompt -> (step, text) in order
    preview: list[list[tuple[str, bool]]]  # examples -> (text, is supervised)
    notes: list[str]


@dataclass(frozen=True)
class Bar:
    """One row of a comparison: percentages are of the widest bar."""

    label: str
    role: str  # untrained, baseline or model
    text: str
    width: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RunFacts:
    """A whole run."""

    folder: Path
    name: str
    started: str
    seconds: float
    stages: list[StageFacts]
    evaluations: dict[str, dict[str, Any]]  # the results of each evaluate stage
    recipe: str

    @property
    def results(self) -> dict[str, Any]:
        """Those of the last evaluation."""
        return next(reversed(self.evaluations.values()), {})

    def of_kind(self, kind: str) -> list[StageFacts]:
        return [stage for stage in self.stages if stage.kind == kind and stage.artifact]

    @property
    def licences(self) -> list[str]:
        return sorted({name for stage in self.stages if stage.artifact for name in stage.artifact.licences})


def gather(folder: Path) -> RunFacts:
    """Read a run's folder. LubanError when it holds no finished stage at all."""
    about = _read_json(folder / "run.json")
    names = [str(name) for name in about.get("stages", [])] or sorted(path.name for path in folder.iterdir() if is_artifact(path))
    stages = [_stage(folder, name) for name in names]
    if not any(stage.artifact for stage in stages):
        raise LubanError("{folder} holds no finished stage yet", "", "luban run makes them; a card can be made once one is whole", folder=folder)
    results = {stage.name: _read_json(stage.artifact.path / "results.json") for stage in stages if stage.kind == "evaluate" and stage.artifact}
    recipe_file = folder / "recipe.resolved.yaml"
    recipe = recipe_file.read_text(encoding="utf-8", errors="replace") if recipe_file.is_file() else ""
    seconds = _number(about.get("work_seconds")) or sum(stage.seconds for stage in stages)
    return RunFacts(folder, str(about.get("name") or folder.name), str(about.get("started", "")), seconds, stages, results, recipe)


def _stage(folder: Path, name: str) -> StageFacts:
    try:
        artifact = open_artifact(folder / name)
    except LubanError:
        return StageFacts(name, finished=False)
    manifest = artifact.manifest
    inputs = manifest.get("inputs")
    pairs = [(key, text) for key, value in inputs.items() if (text := _input_text(value))] if isinstance(inputs, dict) else []
    return StageFacts(name, artifact.kind, _number(manifest.get("seconds")) or 0.0, sum(manifest.get("files", {}).values()), str(manifest.get("fingerprint", "")), pairs, True, artifact)


def _input_text(value: Any) -> str:
    """An input as the manifest wrote it: a fingerprint, a mapping with a name and a fingerprint, or a list of these."""
    if isinstance(value, list):
        return ", ".join(text for item in value if (text := _input_text(item)))
    if isinstance(value, dict):
        name = value.get("name") or value.get("stage") or value.get("path") or ""
        return " ".join(str(part) for part in (name, str(value.get("fingerprint", ""))[:8]) if part)
    return str(value) if value else ""


def training_facts(stage: StageFacts) -> TrainingFacts:
    """Curves, samples and figures of a training stage from its log."""
    folder = stage.artifact.path / "training"
    steps, validations, samples, lost = [], [], {}, 0
    for entry in read_log(folder / "log.jsonl"):
        at = entry.get("step")
        if not isinstance(at, (int, float)):
            continue
        if isinstance(entry.get("validation"), dict):
            validations.append((at, entry["validation"]))
        elif isinstance(entry.get("samples"), list):
            for sample in entry["samples"]:
                if isinstance(sample, dict):
                    samples.setdefault(str(sample.get("prompt", "")).strip("\n"), []).append((int(at), str(sample.get("text", "")).strip("\n")))
        elif "loss" in entry:
            steps.append(entry)
            lost += not math.isfinite(_value(entry["loss"]))
    losses = _points(steps, "loss")
    curves = [Series(t("training, each step"), losses, "raw"), Series(t("training, smoothed"), smooth(losses), "smooth")]
    if validations:
        curves.append(Series(t("validation"), [(at, _value(scores.get("loss"))) for at, scores in validations], "validation"))
    small = [
        line_chart(t("learning rate"), [Series("", _points(steps, "learning_rate"))], from_zero=True),
        line_chart(t("gradient norm"), [Series("", _points(steps, "gradient_norm"))], from_zero=True),
        line_chart(t("tokens a second"), [Series("", _points(steps, "tokens_per_second"))], from_zero=True),
    ]
    notes = []
    if not steps:
        notes.append(t("no training log was kept"))
    elif not validations:
        notes.append(t("nothing was held out during training"))
    if lost:
        notes.append(t("the loss of {count} steps was not a number", count=lost))
    preview = _preview(folder / "preview.json")
    return TrainingFacts(stage.name, _training_figures(stage, validations), line_chart(t("loss (nats a token)"), curves), [chart for chart in small if chart], list(samples.items()), preview, notes)


def _training_figures(stage: StageFacts, validations: list[tuple[float, dict]]) -> list[tuple[str, str]]:
    metrics = stage.artifact.metrics
    figures = []
    for key, label, text in (("parameters", "parameters", count_text), ("tokens", "tokens trained on", count_text), ("steps", "steps", count_text)):
        if _number(metrics.get(key)):
            figures.append((t(label), text(metrics[key])))
    figures.append((t("time"), seconds_text(stage.seconds)))
    figures += _kept_figures(metrics)
    figures += _cost_figures(stage.artifact.manifest.get("cost"), metrics.get("guard"))
    scored = [(at, _value(scores.get("loss"))) for at, scores in validations]
    scored = [(at, loss) for at, loss in scored if math.isfinite(loss)]
    if len(scored) > 1:
        figures.append((t("validation loss"), f"{scored[0][1]:.3f} → {scored[-1][1]:.3f}"))
    return figures


def _preview(path: Path) -> list[list[tuple[str, bool]]]:
    """Examples as written before step one: a list of examples, each a list of [text, weight]."""
    try:
        examples = json.loads(path.read_bytes())
        return [[(str(text), bool(weight)) for text, weight in example] for example in examples][:3]
    except (OSError, ValueError, TypeError):
        return []


def comparison(results: dict[str, Any], metric: str = "") -> list[tuple[str, list[Bar]]]:
    """Bars of every row of an evaluation, overall and for each language where there is more than one."""
    metric = metric or main_figure(results)[0]
    rows = [row for row in results.get("rows", []) if isinstance(row, dict)]
    languages = [name for name in results.get("languages", {}) if name]
    groups = []
    for group in ["all", *(languages if len(languages) > 1 else [])]:
        scores = [(row, score) for row in rows if (score := row.get("scores", {}).get(group, {}).get(metric)) and math.isfinite(_value(score.get("value")))]
        top = max((max(_value(score["value"]), (score.get("interval") or [0, 0])[1]) for _, score in scores), default=0)
        if top <= 0:
            continue
        bars = []
        for row, score in scores:
            interval = score.get("interval")
            low, high = (100 * bound / top for bound in interval) if interval else (None, None)
            bars.append(Bar(row_label(row), row.get("role", "model"), f"{score['value']:.3f}", 100 * score["value"] / top, low, high))
        groups.append(((t("all examples") if "task" in results else t("all held-out text")) if group == "all" else language_name(group), bars))
    return groups


def _cost_figures(cost: Any, guard: Any) -> list[tuple[str, str]]:
    """Where the time of a training went, its energy, and what its guards refused."""
    cost, guard = cost if isinstance(cost, dict) else {}, guard if isinstance(guard, dict) else {}
    figures = []
    spent = {name: _number(cost.get(f"{name}_seconds")) or 0.0 for name in SECTIONS}
    if whole := sum(spent.values()):
        shares = [f"{t(SHOWN.get(name, name))} {seconds / whole:.0%}" for name, seconds in sorted(spent.items(), key=lambda pair: -pair[1]) if seconds >= 0.005 * whole]
        figures += [(t("goodput"), f"{spent['steps'] / whole:.0%}"), (t("where the time went"), t(", ").join(shares))]
    if (energy := _number(cost.get("kilowatt_hours"))) is not None:
        figures.append((t("energy"), f"{energy:.3g} kWh, {_number(cost.get('grams_of_co2')) or 0.0:.3g} g CO₂"))
    refused = {name: int(value) for name in ("not_finite", "spikes", "rollbacks") if (value := _number(guard.get(name)))}
    if refused:
        figures.append((t("refused by the guards"), t(", ").join(f"{t(name.replace('_', ' '))} {count}" for name, count in refused.items())))
    return figures


def _kept_figures(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Of an adapter: how near what was written comes to what was trained; of anything tuned: what the base's own text lost."""
    found = []
    parity = metrics.get("parity")
    if isinstance(parity, dict) and isinstance(parity.get("largest_difference"), dict):
        found += _parity_figures(parity)
    general = metrics.get("general") if isinstance(metrics.get("general"), dict) else {}
    before, after = (general.get(when) if isinstance(general.get(when), dict) else {} for when in ("before", "after"))
    for key, label in (("bits_per_byte", "the base's text, bits a byte"), ("loss", "the base's text, loss")):
        if _number(before.get(key)) and _number(after.get(key)):
            found.append((t(label), f"{before[key]:.3f} → {after[key]:.3f}"))
            break
    return found


def _parity_figures(parity: dict[str, Any]) -> list[tuple[str, str]]:
    """How far the written adapter and the merged model are from the trained one, or why nothing was merged."""
    found = []
    for name, difference in parity["largest_difference"].items():
        if _number(difference) is None:
            continue
        said = t("{difference} apart, {bound} allowed", difference=f"{difference:.1e}", bound=f"{_value(parity.get('bound')):.0e}")
        if _number(parity.get("prompts")):
            said += t("; the same greedy tokens after {count} prompts", count=parity["prompts"])
        if _number(parity.get("sources")):
            said += t("; the same greedy texts for {count} sources", count=parity["sources"])
        found.append((t("parity: adapter") if name == "adapter" else t("parity: merged"), said))
    if "merged" not in parity["largest_difference"]:
        reason = parity.get("not_merged")
        found.append((t("parity: merged"), t("too large to be merged here") if reason == "large" else str(reason or t("this method cannot be merged")).split("\n")[0]))
    return found


def data_facts(stage: StageFacts) -> list[tuple[str, str]]:
    """The main figures of a curated corpus, from its data card."""
    facts = _read_json(stage.artifact.path / "card.json")
    splits, languages = (facts.get(name) if isinstance(facts.get(name), dict) else {} for name in ("splits", "languages"))
    figures = []
    for label, counts in [(t(name), counts) for name, counts in splits.items()] + [(language_name(name), counts) for name, counts in languages.items()]:
        if isinstance(counts, dict) and (documents := _number(counts.get("documents"))):
            figures.append((label, t("{count} documents, {size}", count=f"{documents:,.0f}", size=bytes_text(_number(counts.get("bytes")) or 0))))
    for key, label in (("set_aside", "set aside"), ("bad_lines", "unreadable lines")):
        found = facts.get(key)
        if count := len(found) if isinstance(found, list) else _number(found):
            figures.append((t(label), f"{count:,.0f}"))
    duplicates = facts.get("duplicates")
    if isinstance(duplicates, dict) and _number(duplicates.get("clusters")):
        figures.append((t("duplicate clusters"), f"{duplicates['clusters']:,}"))
    return figures


def corpus_languages(stage: StageFacts) -> list[str]:
    """Languages of a corpus, the largest first."""
    languages = _read_json(stage.artifact.path / "card.json").get("languages")
    return [language_name(str(code)) for code in languages][:4] if isinstance(languages, dict) else []


def corpus_bytes(stage: StageFacts) -> float:
    """Bytes of the training split."""
    return _number(stage.artifact.metrics.get("train_bytes")) or 0.0


def machine_text(run: RunFacts) -> str:
    """The machine as the last finished stage saw it."""
    for stage in reversed(run.stages):
        facts = stage.artifact.manifest.get("machine") if stage.artifact else None
        if isinstance(facts, str):
            return facts
        if isinstance(facts, dict):
            parts = [facts.get("cpu", "")]
            if facts.get("accelerator") not in (None, "", "cpu"):
                parts.insert(0, facts["accelerator"])
            if facts.get("cores"):
                parts.append(t("{count} cores", count=facts["cores"]))
            if facts.get("memory_bytes"):
                parts.append(bytes_text(facts["memory_bytes"]))
            return ", ".join(str(part) for part in parts if part)
    return ""


def versions_text(run: RunFacts) -> str:
    for stage in reversed(run.stages):
        versions = stage.artifact.manifest.get("versions") if stage.artifact else None
        if isinstance(versions, dict):
            return ", ".join(f"{name} {version}" for name, version in versions.items())
    return ""


def next_commands(run: RunFacts, show: str) -> list[tuple[str, str]]:
    """Three commands to try next, and what each does; ``show`` is the run's folder as a person would type it."""
    models = [stage for stage in run.stages if stage.kind in MODEL_KINDS and stage.artifact]
    if models:
        path = f"{show}/{models[-1].name}"
        if "labels" in models[-1].artifact.metrics:
            return [
                (f"luban predict {path} FILE", t("predict the rows of a file, or lines from standard input (-)")),
                (f"luban serve {path}", t("serve its predictions")),
                (f"luban show {show}", t("see this card in the terminal again")),
            ]
        return [
            (f"luban chat {path}", t("talk to the model in the terminal")),
            (f"luban serve {path}", t("serve it with the OpenAI interface and a chat page")),
            (f"luban show {show}", t("see this card in the terminal again")),
        ]
    last = [stage.name for stage in run.stages if stage.artifact][-1]
    return [
        (f"luban show {show}/{last}", t("look at what the last stage made")),
        (f"luban show {show}", t("see this card in the terminal again")),
        ("luban runs", t("list all runs and what they weigh")),
    ]


def _points(entries: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(entry["step"], _value(entry[name])) for entry in entries if name in entry]


def _value(value: Any) -> float:
    """A number, or NaN for what is none."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _number(value: Any) -> float | None:
    number = _value(value)
    return number if math.isfinite(number) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
