"""The rows whose training is on running text: a small BERT pretrained and then tuned, and a decoder that goes on in a domain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import luban
from benchmarks.tasks import data, luban_side, peer
from benchmarks.tasks.baselines import baselines
from benchmarks.tasks.duel import VALIDATED, Options, answers, measured, timed, trial
from benchmarks.tasks.held_out import bits, bits_difference, bits_score
from benchmarks.tasks.luban_side import Start, begin, from_start, train_stage, tuning
from benchmarks.tasks.rows import TaskRow
from luban.examples.reading import read_examples
from luban.models.huggingface import load_model


def corpus(paths: list[Path], folder: Path) -> dict[str, Any]:
    """A curate stage of texts; of a table of abstracts and titles the abstracts, so that no title that is tested on is read."""
    sources = []
    for path in paths:
        if ".tsv" in path.name:
            file = folder / (path.name.partition(".")[0] + ".jsonl")
            file.parent.mkdir(parents=True, exist_ok=True)
            texts = dict.fromkeys(example.input for example in read_examples([path], "text_pairs", {"input": 2, "output": 3}).examples)
            file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
            path = file
        sources.append(str(path))
    return {"kind": "curate", "sources": sources, "workers": 1, "split": {"validation": 0.05}, "quality": "off"}


def text_stage(row: TaskRow, options: Options, steps: int, **fields: Any) -> dict[str, Any]:
    return train_stage(
        {
            "sequence_length": 128, "batch_tokens": row.batch * 128, "length": f"{steps} steps",
            "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.01, "betas": [0.9, 0.999]}, "schedule": {"shape": "linear", "final": 0.0}, **fields,
        },
        options.threads,
    )  # fmt: skip


def both(recipe: dict[str, Any], row: TaskRow, options: Options, steps: Callable[[int], dict[str, Any]]) -> tuple[Start, Path, dict[str, tuple[float, float]]]:
    """Run all but the last stage, then the last one on both sides; ``steps(count)`` is the last stage with so many steps.
    (start, Luban's model, seconds of both sides); the peer's model is in the row's folder."""
    folder, stages = options.work / row.name, recipe["stages"]
    last, count = list(stages)[-1], row.settings["steps"]
    luban.run(recipe, out=folder / "run", until=list(stages)[-2])
    start = begin(recipe, folder / "run" / "start")
    most = int(options.seconds / max(trial(start), 1e-9))
    if most < count:  # as many steps as there is time for
        recipe = {**recipe, "stages": {**stages, last: steps(most)}}
        start = begin(recipe, folder / "run" / "start")
    artifact, seconds = luban_side.train(from_start(recipe, start), folder / "run")
    return start, artifact.path, {"luban": seconds, "peer": peer.train(start, folder / "peer", options.threads, options.seed)}


def pretraining(row: TaskRow, options: Options) -> dict[str, Any]:
    """A BERT from scratch: pretrained by each side on the same batches, then tuned by Luban, beside the same model tuned untrained."""
    folder, preset = options.work / row.name, row.model.partition(":")[2]

    def last(steps: int) -> dict[str, Any]:
        return text_stage(row, options, steps, objective="masked", shape=preset, data="tokens")

    texts = corpus([options.data / part for part in row.settings["pretrain_on"].split()], folder)
    stages = {
        "corpus": texts, "words": {"kind": "train_tokenizer", "corpus": "corpus", "style": "bert", "vocabulary_size": row.vocabulary},
        "tokens": {"kind": "encode", "corpus": "corpus", "tokenizer": "words"}, "base": last(row.settings["steps"]),
    }  # fmt: skip
    start, pretrained, seconds = both({"name": row.name, "seed": options.seed, "stages": stages}, row, options, last)
    training, test = data.slices(row, options.data)
    validation, mapping = data.write(test[:VALIDATED], folder / "validation.jsonl", row.task)
    train_file, mapping = data.write(training, folder / "train.jsonl", row.task)
    found: dict[str, list[dict[str, Any]]] = {}
    # The untrained model's tuning is what pretraining is measured against.
    for name, model in (("untrained", start.folder), ("luban", pretrained), ("peer", folder / "peer")):
        recipe = tuning(row, train_file, validation, mapping, {"model": str(model)}, options.threads, options.seed)
        begun = begin(recipe, folder / name / "start")
        artifact, _ = luban_side.train(recipe, folder / name)
        found[name] = answers(begun.objective, artifact.path, test)
        if name == "untrained":
            found["before"] = answers(begun.objective, begun.folder, test)
    found |= baselines(row.task, training, test)
    return {
        **described(row, options, start, len(training), len(test)), "seconds": {name: timed(both_) for name, both_ in seconds.items()}, "epochs": row.epochs,
        **measured(begun.objective.measured_as, found, test, begun.objective.metric_labels(begun.objective.head)),
    }  # fmt: skip


def continued(row: TaskRow, options: Options) -> dict[str, Any]:
    """A decoder trained on general text goes on in a domain, a fifth of the batches general: bits a byte of both before and after."""
    folder, settings = options.work / row.name, row.settings
    files = {name: [next(file for file in sorted((options.data / part).iterdir()) if file.name != "SOURCE.md")] for name, part in (("general", settings["general"]), ("domain", row.data))}

    def last(steps: int) -> dict[str, Any]:
        return text_stage(row, options, steps, model="general", data="domain_tokens", replay={"data": "general_tokens", "share": 0.2}, packing="best_fit")

    stages: dict[str, Any] = {name: corpus(paths, folder) for name, paths in (("general_texts", files["general"]), ("domain_texts", files["domain"]))}
    stages["words"] = {"kind": "train_tokenizer", "corpus": ["general_texts", "domain_texts"], "vocabulary_size": row.vocabulary}
    stages |= {f"{name}_tokens": {"kind": "encode", "corpus": f"{name}_texts", "tokenizer": "words"} for name in files}
    stages["ngram"] = {"kind": "fit", "data": "domain_texts", "method": "ngram", "ngram": {"order": 5, "samples": 0}}
    stages["general"] = text_stage(row, options, settings["general_steps"], data="general_tokens", shape=row.model.partition(":")[2], packing="best_fit")
    stages["domain"] = last(settings["steps"])
    start, ours, seconds = both({"name": row.name, "seed": options.seed, "stages": stages}, row, options, last)
    general = begin({"name": row.name, "seed": options.seed, "stages": {**stages, "domain": {**last(1), "validation_data": "general_tokens"}}}, folder / "run" / "other")
    sides = {"before": start.folder, "luban": ours, "peer": folder / "peer"}
    units = {name: bits(path, start, start.loaders.validation) for name, path in sides.items()}
    others = {name: bits(path, start, general.loaders.validation) for name, path in sides.items()}
    ngram = json.loads((folder / "run" / "ngram" / "manifest.json").read_bytes())["metrics"]
    scores = {name: bits_score(own) for name, own in units.items()} | ({"n-gram": {"value": ngram["bits_per_byte"], "interval": None}} if isinstance(ngram.get("bits_per_byte"), float) else {})
    differences = {name: bits_difference(units[name], units["luban"]) for name in ("before", "peer")}
    return {
        **described(row, options, start, start.loaders.report["train_documents"], len(units["luban"])), "epochs": None, "metric": "bits_per_byte", "greater_is_better": False,
        "signature": "rows of the validation split", "seconds": {name: timed(own) for name, own in seconds.items()}, "scores": scores, "differences": differences,
        "figures": {name: {"bits_per_byte": scores[name]["value"], "general_bits_per_byte": bits_score(others[name])["value"]} for name in sides},
    }  # fmt: skip


def described(row: TaskRow, options: Options, start: Start, training: int, test: int) -> dict[str, Any]:
    return {
        "row": row.name, "title": list(row.title), "data": row.data, "model": row.model, "objective": row.objective, "examples": {"train": training, "test": test, "asked": row.train},
        "steps": start.schedule.total, "batch": row.batch, "rate": row.rate, "length": row.length, "threads": options.threads, "seed": options.seed,
        "parameters": sum(value.numel() for value in load_model(start.folder).parameters()),
    }  # fmt: skip


TEXT_ROWS = {"pretrained": pretraining, "continued": continued}
