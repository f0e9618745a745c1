"""Stages a user may leave out: `train` on plain text needs a corpus, a tokenizer and tokens, so they are put before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luban.foundation.artifacts import is_artifact

OBJECTIVES_ON_TEXT = ("causal",)


def with_implied_stages(stages: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The stages with what is implied put before each `train` whose data is text rather than token shards."""
    full: dict[str, Any] = {}
    for name, body in stages.items():
        if isinstance(body, dict) and body.get("kind", name) == "train" and body.get("objective", "causal") in OBJECTIVES_ON_TEXT:
            body = dict(body)
            texts = [value for value in _listed(body.get("data")) if value not in full and not is_artifact(folder / value)]
            if texts and len(texts) == len(_listed(body.get("data"))):
                full |= _before(str(name), body, texts)
        full[name] = body
    return full


def _before(name: str, body: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    tokenizer = body.get("tokenizer") or body.get("model")
    implied: dict[str, Any] = {f"{name}-corpus": {"kind": "curate", "sources": texts}}
    if not tokenizer:
        tokenizer = f"{name}-tokenizer"
        implied[tokenizer] = {"kind": "train_tokenizer", "corpus": f"{name}-corpus"}
    implied[f"{name}-tokens"] = {"kind": "encode", "corpus": f"{name}-corpus", "tokenizer": tokenizer}
    body["data"] = f"{name}-tokens"
    return implied


def _listed(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
