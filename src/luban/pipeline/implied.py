"""Stages a user may leave out: `train` on plain text needs a corpus, a tokenizer and tokens, so they are put before it; on labelled files with a new model it needs a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import is_artifact, listed, open_artifact
from luban.models.presets import PRESETS
from luban.objectives.config import ON_TEXT

# The tokenizer that an architecture's models expect; the others take a plain one.
STYLES = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "t5": "t5", "mt5": "t5", "bart": "bart", "mbart": "bart"}

# What the files of each objective on labelled examples are read for.
READS = {
    "classification": "classification", "multi_label": "multi_label", "regression": "regression", "pattern": "classification", "tagging": "tagging",
    "relation": "relation", "joint_relation": "joint_relation", "question_answering": "question_answering", "translation": "text_pairs",
    "summarization": "text_pairs", "generation": "text_pairs", "embedding": "embedding", "ranking": "ranking", "multiple_choice": "choice",
    "grpo": "prompt",
}  # fmt: skip
CORPORA = ("curate", "gather")


def with_implied_stages(stages: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The stages with what is implied put before each `train` whose data is text or a corpus rather than token shards."""
    full: dict[str, Any] = {}
    for name, body in stages.items():
        if isinstance(body, dict) and body.get("kind", name) == "train" and _objective(body) in ON_TEXT:
            body = dict(body)
            full |= _before(str(name), body, {value: _kind_of(value, full, folder) for value in _names(body.get("data"))})
        elif isinstance(body, dict) and body.get("kind", name) == "train" and _objective(body) in READS:
            body = dict(body)
            full |= _before_task(str(name), body, {value: _kind_of(value, full, folder) for value in _names(body.get("data"))})
        full[name] = body
    return full


def _objective(body: dict[str, Any]) -> str:
    """The name of a stage's objective, written short or with settings."""
    chosen = body.get("objective", "causal")
    return str(chosen.get("name", "causal") if isinstance(chosen, dict) else chosen)


def _kind_of(value: str, stages: dict[str, Any], folder: Path) -> str:
    """The kind of stage or artifact that a value names; empty for a path to text."""
    if value in stages:
        return stages[value].get("kind", value) if isinstance(stages[value], dict) else ""
    return open_artifact(folder / value).kind if is_artifact(folder / value) else ""


def _before(name: str, body: dict[str, Any], kinds: dict[str, str]) -> dict[str, Any]:
    """The stages between the data and the training; `body` is made to read their tokens. Nothing where the data are tokens."""
    if not kinds or any(kind not in ("", *CORPORA) for kind in kinds.values()):
        return {}
    implied: dict[str, Any] = {}
    corpora = [value for value, kind in kinds.items() if kind in CORPORA]
    if texts := [value for value, kind in kinds.items() if not kind]:
        implied[f"{name}-corpus"] = {"kind": "curate", "sources": texts}
        corpora.append(f"{name}-corpus")
    tokenizer = body.get("tokenizer") or body.get("model")
    if not tokenizer:
        tokenizer = f"{name}-tokenizer"
        implied[tokenizer] = _tokenizer(body, corpora)
    implied[f"{name}-tokens"] = {"kind": "encode", "corpus": corpora, "tokenizer": tokenizer}
    body["data"] = f"{name}-tokens"
    return implied


def _before_task(name: str, body: dict[str, Any], kinds: dict[str, str]) -> dict[str, Any]:
    """A new model of a task needs a tokenizer: where none is named, one is learned from the texts of the task's own files."""
    if body.get("tokenizer") or body.get("model") or not kinds or any(kinds.values()):
        return {}
    body["tokenizer"] = f"{name}-tokenizer"
    gathered = {"kind": "gather", "data": list(kinds), "task": READS[_objective(body)], **({"mapping": body["mapping"]} if body.get("mapping") else {})}
    return {f"{name}-texts": gathered, body["tokenizer"]: _tokenizer(body, [f"{name}-texts"])}


def _tokenizer(body: dict[str, Any], corpora: list[str]) -> dict[str, Any]:
    """The tokenizer stage for a new model, in the style of its family."""
    style = STYLES.get(_architecture(body))
    return {"kind": "train_tokenizer", "corpus": corpora, **({"style": style} if style else {})}


def _architecture(body: dict[str, Any]) -> str:
    """The family of a stage's new model: of its shape, or of the preset that its shape names."""
    shape = body.get("shape")
    plain = PRESETS.get(shape, {}) if isinstance(shape, str) else shape
    return str(plain.get("architecture", "")) if isinstance(plain, Mapping) else ""


def _names(value: Any) -> list[str]:
    return [item for item in listed(value) if isinstance(item, str)]
