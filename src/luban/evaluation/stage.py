"""`evaluate`: results.json, report.md, and what each document cost, for every model and baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from luban.evaluation import report
from luban.evaluation.config import EvaluateConfig
from luban.evaluation.heldout import HeldOut, choose, training_texts
from luban.evaluation.labelled import run_labelled, task_heads
from luban.evaluation.subjects import Subject, automatic_prompts, context_length, measure_model, measure_ngrams, untrained
from luban.examples.conversations import Conversation, read_conversations
from luban.foundation.artifacts import Artifact, Input, Work, listed, write_bytes, write_json
from luban.foundation.console import bytes_text, count_text, say, warn
from luban.foundation.errors import ConfigError
from luban.foundation.messages import t
from luban.metrics.language import DocumentScores, bits_per_byte, bits_per_byte_difference, is_within_noise, loss, loss_difference, perplexity
from luban.models.heads import Head

VERSION = 1
FORMAT = 1


def run(config: EvaluateConfig, work: Work) -> None:
    """Score every model on the same held-out documents, beside baselines fitted to the training split."""
    models, sources, exclude = (listed(work.inputs.get(name)) for name in ("models", "data", "exclude"))
    subjects = _subjects(models)
    heads = task_heads(subjects) or ([Head("language_model", "dpo")] if config.task == "preference" else [])
    if heads:
        run_labelled(config, work, subjects, heads[0], *([Path(str(getattr(item, "path", item))) for item in items] for items in (sources, listed(work.inputs.get("training_data")))))
        return
    held_out = choose(sources, config.split, config.maximum_documents, config.maximum_bytes, exclude)
    conversations = _conversations(config, work)
    _introduce(held_out)

    rows, samples, first_tokens = _baselines(config, held_out, sources), [], {}
    length = context_length(subjects, config.sequence_length)
    prompts = automatic_prompts(held_out.documents, held_out.languages) if config.prompts == "auto" else config.prompts
    for subject in subjects:
        measured = measure_model(subject, held_out.documents, conversations, length, prompts, config.questions, config.sampling, [str(item) for item in listed(work.inputs.get("metrics"))])
        if subject is subjects[0] and subject.from_scratch:
            rows.insert(0, _Row("untrained", "untrained", untrained(measured), measured.signature))
        rows.append(_Row(subject.name, "model", measured.scores, measured.signature, conversations=measured.conversations, own=measured.own))
        samples += measured.samples
        first_tokens[subject.name] = measured.first_tokens

    results = _results(held_out, rows, work.seed) | {"samples": samples, "first_tokens": first_tokens}
    _save(work, held_out, rows, results)
    _report(work, results)


class _Row:
    """One line of the results: a model, a baseline, or the untrained beginning."""

    def __init__(self, name: str, role: str, scores: DocumentScores, signature: str, order: int = 0, conversations: DocumentScores | None = None, own: dict[str, float] | None = None):
        self.name, self.role, self.scores, self.signature, self.order, self.conversations, self.own = name, role, scores, signature, order, conversations, own


def _subjects(models: list[Input]) -> list[Subject]:
    """The models under distinct names."""
    subjects = [Subject.of(model) for model in models]
    names = [subject.name for subject in subjects]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError("models: {name!r} is named twice", "the report could not tell the two apart", "give the folders different names", name=repeated)
    return subjects


def _conversations(config: EvaluateConfig, work: Work) -> list[Conversation]:
    sources = listed(work.inputs.get("conversations"))
    if not sources:
        return []
    paths = [source.path if isinstance(source, Artifact) else source for source in sources]
    return read_conversations(paths).conversations[: config.maximum_conversations]


def _introduce(held_out: HeldOut) -> None:
    documents = held_out.documents
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in held_out.texts)
    say("  {count} held-out documents ({size}) of {available} in the {split} split", count=len(documents), size=bytes_text(size), available=count_text(held_out.available), split=held_out.split)
    for template, values in held_out.notes:
        warn(template, **values)


def _baselines(config: EvaluateConfig, held_out: HeldOut, sources: list[Input]) -> list[_Row]:
    """n-gram models of the corpus' train split; none where the data has no train split."""
    if not config.baselines:
        return []
    training, whole = training_texts(sources, config.baseline_bytes)
    if not training:
        held_out.notes.append(("no n-gram baseline: the data is no curated corpus, so there is no training split to fit one to", {}))
        return []
    if not whole:
        held_out.notes.append(("the n-gram baselines were fitted to {size} of the training split (`baseline_bytes`)", {"size": bytes_text(config.baseline_bytes)}))
    measured = measure_ngrams(config.baselines, training, held_out.texts)
    return [_Row(f"{order}-gram", "baseline", scores, said, order) for order, scores, said in measured]


def _results(held_out: HeldOut, rows: list[_Row], seed: int) -> dict[str, Any]:
    languages = np.array([document.language for document in held_out.documents])
    groups = {"all": np.ones(len(languages), bool)} | {name: languages == name for name in held_out.languages}
    sizes = rows[0].scores.bytes
    return {
        "format": FORMAT,
        "split": held_out.split,
        "documents": len(languages),
        "bytes": int(sizes.sum()),
        "available_documents": held_out.available,
        "excluded_documents": held_out.excluded,
        "languages": {name: {"documents": int(chosen.sum()), "bytes": int(sizes[chosen].sum())} for name, chosen in groups.items() if name != "all"},
        "rows": [_row_json(row, groups, seed) for row in rows],
        "comparisons": _comparisons(rows, groups, seed),
        "conversations": _conversation_results(rows, seed),
        "notes": [t(template, **values) for template, values in held_out.notes],
    }


def _row_json(row: _Row, groups: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Scores overall and per language. A baseline's loss is a character's, so it is named apart from tokens'."""
    scores: dict[str, Any] = {}
    for group, chosen in groups.items():
        part = row.scores.only(chosen)
        scores[group] = {metric.__name__: metric(part, row.signature, seed).to_json() for metric in (bits_per_byte, loss, perplexity)}
        if row.role == "baseline":
            for name in ("loss", "perplexity"):
                scores[group][name]["unit"] = scores[group][name]["unit"].replace("token", "character")
    return {"name": row.name, "role": row.role, **({"order": row.order} if row.order else {}), **({"own": row.own} if row.own else {}), "scores": scores}


def _comparisons(rows: list[_Row], groups: dict[str, np.ndarray], seed: int) -> list[dict[str, Any]]:
    """Before → after along the models, and the best model against each baseline; overall and per language."""
    models = [row for row in rows if row.role == "model"]
    before = [row for row in rows if row.role == "untrained"]
    chain = before + models
    best = min(models, key=lambda row: row.scores.nats.sum())
    pairs = list(zip(chain, chain[1:], strict=False)) + [(row, best) for row in rows if row.role == "baseline"]
    found = []
    for old, new in pairs:
        for group, chosen in groups.items():
            difference = bits_per_byte_difference(old.scores.only(chosen), new.scores.only(chosen), f"paired|{new.signature}", seed)
            found.append({"before": old.name, "after": new.name, "language": group, "difference": difference.to_json(), "within_noise": is_within_noise(difference)})
    return found


def _conversation_results(rows: list[_Row], seed: int) -> dict[str, Any]:
    """Loss on the assistant's words; compared where two models in a row read the same tokens."""
    talking = [row for row in rows if row.conversations is not None and row.conversations.tokens.sum() > 0]
    if not talking:
        return {}
    found = []
    for old, new in zip(talking, talking[1:], strict=False):
        if np.array_equal(old.conversations.tokens, new.conversations.tokens):
            difference = loss_difference(old.conversations, new.conversations, f"paired|words:assistant|{new.signature}", seed)
            found.append({"before": old.name, "after": new.name, "language": "all", "difference": difference.to_json(), "within_noise": is_within_noise(difference)})
    scores = [{"name": row.name, "role": "model", "scores": {"all": {"loss": loss(row.conversations, f"words:assistant|{row.signature}", seed).to_json()}}} for row in talking]
    return {"documents": len(talking[0].conversations.nats), "rows": scores, "comparisons": found}


def _save(work: Work, held_out: HeldOut, rows: list[_Row], results: dict[str, Any]) -> None:
    """Everything a later comparison needs: each document's id and what every row paid for it."""
    lines = []
    for index, document in enumerate(held_out.documents):
        nats = {row.name: round(float(row.scores.nats[index]), 4) for row in rows}
        lines.append(json.dumps({"id": document.id, "language": document.language, "bytes": int(rows[0].scores.bytes[index]), "nats": nats}, ensure_ascii=False))
    write_bytes(work.path / "documents.jsonl", ("\n".join(lines) + "\n").encode("utf-8", "replace"))
    write_json(work.path / "results.json", results)
    write_bytes(work.path / "report.md", report.markdown(results).encode("utf-8", "replace"))


def _report(work: Work, results: dict[str, Any]) -> None:
    for row in results["rows"]:
        work.metrics[f"{row['name']}_bits_per_byte"] = round(row["scores"]["all"]["bits_per_byte"]["value"], 4)
    work.metrics |= {"documents": results["documents"], "bytes": results["bytes"]}
    report.print_table(results)
