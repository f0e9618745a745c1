"""One row of the table: both sides trained from one start, scored by one scorer on the same test examples."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import luban
from benchmarks.tasks import chinese, data, luban_side, peer
from benchmarks.tasks.baselines import baselines
from benchmarks.tasks.held_out import held_out_loss
from benchmarks.tasks.luban_side import Start, begin, from_start, tuning
from benchmarks.tasks.rows import TaskRow
from luban.inference.predictor import Predictor
from luban.metrics.score import Score
from luban.metrics.tasks import compare_task, greater_is_better, score_task
from luban.objectives.base import load_objective
from luban.objectives.config import NAMES
from luban.objectives.tasks import TaskObjective

SHORTEST = 64  # examples that a slice keeps however little time there is
VALIDATED = 32  # examples that the run looks at before and after, outside the clock


@dataclass(frozen=True)
class Options:
    """What the command line says for all rows."""

    data: Path
    work: Path
    models: dict[str, Path]
    threads: int = 1
    seconds: float = 600.0
    seed: int = 1


def duel(row: TaskRow, options: Options) -> dict[str, Any]:
    """The row's result as plain data. The training slice is cut until Luban's steps take at most ``options.seconds`` by a trial of a few."""
    folder = options.work / row.name
    training, test = data.slices(row, options.data)
    rules = load_objective(NAMES[row.objective["name"]](**row.objective))
    by_loss = bool(row.settings.get("loss"))
    test_file, mapping = data.write(test if by_loss else test[:VALIDATED], folder / "validation.jsonl", row.task)
    while True:
        train_file, mapping = data.write(training, folder / "train.jsonl", row.task)
        recipe = tuning(row, train_file, test_file, mapping, starting_model(row, train_file, mapping, options), options.threads, options.seed)
        start = begin(recipe, folder / "start")
        estimate = trial(start) * start.schedule.total
        if estimate <= options.seconds or len(training) <= SHORTEST:
            break
        training = training[: max(SHORTEST, int(len(training) * 0.95 * options.seconds / estimate))]
    artifact, luban_seconds = luban_side.train(from_start(recipe, start), folder / "luban")
    peer_seconds = peer.train(start, folder / "peer", options.threads, options.seed)
    before, ours, theirs = (answers(start.objective, path, test) for path in (start.folder, artifact.path, folder / "peer"))
    found = {"before": before, "luban": ours, "peer": theirs, **baselines(row.task, training, test)}
    task, labels = rules.measured_as, start.objective.metric_labels(start.objective.head)
    result = measured(task, found, test, labels)
    if by_loss:
        result |= held_out_loss({"before": start.folder, "luban": artifact.path, "peer": folder / "peer"}, start, training, test)
    return {
        "row": row.name, "title": list(row.title), "data": row.data, "model": row.model, "objective": row.objective,
        "examples": {"train": len(training), "test": len(test), "asked": row.train}, "epochs": row.epochs, "steps": start.schedule.total,
        "batch": row.batch, "rate": row.rate, "length": row.length, "threads": options.threads, "seed": options.seed,
        "parameters": artifact.metrics["parameters"], "seconds": {"luban": timed(luban_seconds), "peer": timed(peer_seconds)},
        **result,
    }  # fmt: skip


def timed(seconds: tuple[float, float]) -> dict[str, float]:
    return {"wall": round(seconds[0], 1), "processor": round(seconds[1], 1)}


def measured(task: str, found: dict[str, list[dict[str, Any]]], test: Sequence[Any], labels: Sequence[str]) -> dict[str, Any]:
    """``metric``, ``scores`` of everything that predicted, and the paired ``differences`` of Luban from the others."""
    scores = {name: score_task(task, predictions, test, labels=labels) for name, predictions in found.items()}
    metric = next(iter(scores["luban"]))
    others = [name for name in found if name != "luban"]
    differences = {name: compare_task(task, found[name], found["luban"], test, labels=labels) for name in others}
    return {
        "metric": metric, "greater_is_better": greater_is_better(metric), "signature": scores["luban"][metric].signature,
        "scores": {name: plain(own, metric) for name, own in scores.items()},
        "differences": {name: plain(own, metric) for name, own in differences.items() if metric in own},
        "figures": {name: {key: round(score.value, 5) for key, score in own.items() if "/" not in key} for name, own in scores.items()},
    }  # fmt: skip


def plain(scores: dict[str, Score], metric: str) -> dict[str, Any]:
    score = scores[metric]
    return {"value": score.value, "interval": list(score.interval) if score.interval else None}


def starting_model(row: TaskRow, training: Path, mapping: dict[str, Any], options: Options) -> dict[str, Any]:
    """Where the tuning starts: a model directory, or a shape and a tokenizer learned from the training slice alone."""
    if row.model == chinese.NAME:
        return {"model": str(chinese.pretrained(options.data, options.work, options.threads, options.seed))}
    if not row.model.startswith("new:"):
        return {"model": str(options.models[row.model])}
    preset = row.model.removeprefix("new:")
    style = {"marian": "t5", "transformer": "t5", "bart": "bart", "t5": "t5", "bert": "bert"}.get(preset.split("-")[0], "plain")
    stages = {
        "texts": {"kind": "gather", "data": str(training), "task": row.task, "mapping": mapping, "validation_share": 0.0},
        "tokenizer": {"kind": "train_tokenizer", "corpus": "texts", "style": style, "vocabulary_size": row.vocabulary},
    }
    tokenizer = luban.run({"name": "words", "seed": options.seed, "stages": stages}, out=training.parent / "words")[-1]
    return {"shape": preset, "tokenizer": str(tokenizer.path)}


def trial(start: Start, steps: int = 3) -> float:
    """Processor seconds a step of forward and backward passes takes, the median of some spread over the run, so that other work on the
    machine does not count. The weights stay as they are."""
    from luban.models.huggingface import load_model

    model, times = load_model(start.folder, head=start.objective.head).train(), []
    for number in range(steps):
        batch = start.loaders.train.step(number * start.schedule.total // steps)
        begun = time.process_time()
        start.objective.terms(model, batch)["loss"].sum.backward()
        times.append(time.process_time() - begun)
    return sorted(times)[len(times) // 2]


def answers(objective: TaskObjective, folder: Path, test: Sequence[Any]) -> list[dict[str, Any]]:
    """What a model directory says of the test examples, as the metrics read it."""
    return objective.predictions(Predictor.load(folder, device="cpu"), test)
