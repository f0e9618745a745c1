"""Measuring task models on labelled examples: every figure of the task with its interval, beside honest baselines, and what went wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from luban.evaluation import report
from luban.evaluation.baselines import UNFITTED, baselines_of
from luban.evaluation.config import EvaluateConfig
from luban.evaluation.subjects import Subject
from luban.examples.reading import ExampleSet, read_examples
from luban.examples.splitting import leaks
from luban.foundation.artifacts import Work, write_bytes, write_json
from luban.foundation.console import say, table, warn
from luban.foundation.errors import ConfigError
from luban.foundation.messages import t
from luban.inference.predictor import Predictor
from luban.metrics.language import is_within_noise
from luban.metrics.programs import program_scores
from luban.metrics.score import Score
from luban.metrics.tasks import compare_task, greater_is_better, score_task
from luban.models.config_json import head_from, read_config
from luban.models.heads import Head
from luban.objectives.base import load_objective
from luban.objectives.tasks import TaskObjective

FORMAT = 1
SHOWN = 8  # figures in the terminal; results.json has them all
WORST = 20  # mistakes kept in the report


def task_heads(subjects: Sequence[Subject]) -> list[Head]:
    """The head of every subject that has a task; empty when all are language models."""
    heads = [head_from(read_config(subject.path)) for subject in subjects]
    found = [head for head in heads if head is not None and is_task(head)]
    if found and len(found) < len(heads):
        raise ConfigError("models: some have a task head and some are language models", "they are not measured on the same data", "evaluate them in two stages")
    if len({head.task for head in found}) > 1:
        raise ConfigError("models: they have different tasks: {tasks}", "", "evaluate them in stages of their own", tasks=", ".join(sorted({head.task for head in found})))
    return found


def is_task(head: Head) -> bool:
    """Whether a head was made by an objective on labelled examples."""
    objective = load_objective(head.task)
    return isinstance(objective, TaskObjective)


def run_labelled(config: EvaluateConfig, work: Work, subjects: Sequence[Subject], head: Head, data: Sequence[Path], training: Sequence[Path]) -> None:
    """Predict every example with every model, score, compare, and write results.json, report.md and predictions/."""
    objective = load_objective(head.task)
    found = read_examples(data, objective.reads, config.mapping or None)
    found.show()
    objective.check_examples(found.examples)
    rows: list[tuple[str, str, list[dict[str, Any]]]] = []
    notes = _unknown_labels(head, found)
    if training:
        rows += _baselines(objective, found, training, config, notes)
    elif objective.reads in UNFITTED:
        rows += baselines_of(objective.reads, [], found.examples)
    for subject in subjects:
        rows.append((subject.name, "model", objective.predictions(Predictor.load(subject.path), found.examples)))
    results = _results(objective.measured_as, found, rows, objective.metric_labels(head), notes, work.seed, config.run_code)
    _save(work, found, rows, results)
    show(results)
    for row in results["rows"]:
        name, score = next(iter(row["scores"]["all"].items()))
        work.metrics[f"{row['name']}_{name}"] = round(score["value"], 4)
    work.metrics["examples"] = len(found.examples)


def _unknown_labels(head: Head, found: ExampleSet) -> list[str]:
    """What is to be said of examples whose label the model cannot give, because its training data had none such."""
    if head.problem not in ("single_label", "multi_label") or not head.labels:
        return []
    unknown = [label for label in found.labels if label not in head.labels]
    count = sum(found.label_counts[label] for label in unknown)
    if not count:
        return []
    note = t("{count} labels of the examples are none of the model's, which cannot be right there: {labels}", count=count, labels=", ".join(unknown[:10]) + (" …" if len(unknown) > 10 else ""))
    warn("{note}", note=note)
    return [note]


def _baselines(objective: TaskObjective, found: ExampleSet, training: Sequence[Path], config: EvaluateConfig, notes: list[str]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """What the task's baselines, fitted to the training data, answer; examples that the training data has too are counted."""
    known = read_examples(training, objective.reads, config.mapping or None).examples
    if (shared := leaks(known, found.examples)).count:
        note = t("{count} of the {total} examples have a text that the training data has too", count=shared.count, total=len(found.examples))
        warn("{note}", note=note)
        notes.append(note)
    return baselines_of(objective.reads, known, found.examples)


def _results(task: str, found: ExampleSet, rows: list[tuple[str, str, list[dict[str, Any]]]], labels: list[str], notes: list[str], seed: int, run_code: bool = False) -> dict[str, Any]:
    scored = {name: score_task(task, predictions, found.examples, labels=labels, seed=seed) for name, _, predictions in rows}
    if run_code and task == "generation":
        scored = {name: program_scores(predictions, found.examples, seed) | scored[name] for name, _, predictions in rows}
    main = next(iter(next(iter(scored.values()))))
    return {
        "format": FORMAT,
        "task": task,
        "main": main,
        "greater_is_better": bool(greater_is_better(main)),
        "examples": len(found.examples),
        "bad_rows": len(found.bad),
        "rows": [{"name": name, "role": role, "scores": {"all": {key: score.to_json() for key, score in scored[name].items()}}} for name, role, _ in rows],
        "comparisons": _comparisons(task, found, rows, labels, scored, main, seed),
        "notes": notes,
    }


def _comparisons(task: str, found: ExampleSet, rows: list[tuple[str, str, list]], labels: list[str], scored: dict[str, dict[str, Score]], main: str, seed: int) -> list[dict[str, Any]]:
    """Along the models in their order, and the best model against each baseline, on the task's main figure, in pairs."""
    models = [row for row in rows if row[1] == "model"]
    sign = 1 if greater_is_better(main) else -1
    best = max(models, key=lambda row: sign * scored[row[0]][main].value)
    pairs = list(zip(models, models[1:], strict=False)) + [(row, best) for row in rows if row[1] == "baseline"]
    made = []
    for before, after in pairs:
        difference = compare_task(task, before[2], after[2], found.examples, labels=labels, seed=seed).get(main)
        if difference is not None:
            made.append({"before": before[0], "after": after[0], "metric": main, "greater_is_better": sign > 0, "difference": difference.to_json(), "within_noise": is_within_noise(difference)})
    return made


def _save(work: Work, found: ExampleSet, rows: list[tuple[str, str, list[dict[str, Any]]]], results: dict[str, Any]) -> None:
    """What a later look needs: each row's prediction for each example beside the example itself."""
    (work.path / "predictions").mkdir(exist_ok=True)
    for name, _, predictions in rows:
        lines = (json.dumps({"example": asdict(example), "prediction": said}, ensure_ascii=False) + "\n" for example, said in zip(found.examples, predictions, strict=True))
        write_bytes(work.path / "predictions" / f"{name}.jsonl", "".join(lines).encode("utf-8", "surrogatepass"))
    write_json(work.path / "results.json", results)
    write_bytes(work.path / "report.md", markdown(results, found, rows[-1]).encode("utf-8", "replace"))


def _grid(results: dict[str, Any], limit: int) -> tuple[list[str], list[list[str]]]:
    names = [name for name in results["rows"][-1]["scores"]["all"] if "/" not in name][:limit]
    return ["", *(row["name"] for row in results["rows"])], [[name, *(_number(row["scores"]["all"].get(name)) for row in results["rows"])] for name in names]


def _number(score: dict[str, Any] | None) -> str:
    if score is None:
        return ""
    interval = score.get("interval")
    return f"{score['value']:.4g}" + (f" ± {(interval[1] - interval[0]) / 2:.2g}" if interval else "")


def show(results: dict[str, Any]) -> None:
    """The table and what the differences mean, in the terminal."""
    table(t("{task}: {count} examples", task=results["task"], count=results["examples"]), *_grid(results, SHOWN))
    for _, sentence in report.verdicts(results):
        say("  {sentence}", sentence=sentence)


def markdown(results: dict[str, Any], found: ExampleSet, last: tuple[str, str, list[dict[str, Any]]]) -> str:
    """The report as a page: figures, differences, labels, and the last model's surest mistakes."""
    columns, rows = _grid(results, 99)
    parts = [f"# {t('Evaluation')}: {results['task']}", "", t("{count} examples. ± is half of a 95 % bootstrap interval over examples.", count=results["examples"]), ""]
    parts += ["| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *rows)]
    parts += ["", f"## {t('What the differences mean')}", "", *(f"- {sentence}" for _, sentence in report.verdicts(results)), *(f"- {note}" for note in results["notes"])]
    single = {name: score for name, score in results["rows"][-1]["scores"]["all"].items() if "/" in name}
    if single:
        parts += ["", f"## {t('Each label')}", "", *(f"- {name}: {_number(score)}" for name, score in single.items())]
    if mistakes := _mistakes(found, last[2]):
        parts += ["", f"## {t('The surest mistakes of {name}', name=last[0])}", "", *mistakes]
    parts += ["", f"## {t('Signatures')}", ""]
    parts += [f"- {name}: `{score['signature']}`" for name, score in results["rows"][-1]["scores"]["all"].items() if "/" not in name]
    return "\n".join(parts) + "\n"


def _mistakes(found: ExampleSet, predictions: Sequence[dict[str, Any]]) -> list[str]:
    """Where a label was wrong and the model was sure of it."""
    wrong = [
        (said["probabilities"][said["label"]], example, said["label"])
        for example, said in zip(found.examples, predictions, strict=True)
        if said.get("probabilities") and "label" in said and said["label"] != str(example.label)
    ]
    wrong.sort(key=lambda item: -item[0])
    return [f"- {share:.2f} **{label}** ({t('right: {label}', label=example.label)}) {example.text[:160]} `{Path(example.source).name}`" for share, example, label in wrong[:WORST]]
