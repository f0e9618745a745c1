"""How well documents answer a query, each read together with it (cross-encoder)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luban.inference.padding import padded_batches
from luban.inference.predictor import wanted
from luban.inference.vectors import listed_texts
from luban.models.base import Model
from luban.tokenizer.framing import Framed, frame_batch
from luban.tokenizer.tokenizer import Tokenizer


def frame_pairs(tokenizer: Tokenizer, queries: Sequence[str], documents: Sequence[str], settings: Mapping[str, Any]) -> list[Framed]:
    """Queries with documents as ranking reads them in training and in prediction; of what is too long the longer text is cut."""
    return frame_batch(tokenizer, queries, list(documents), maximum=settings.get("maximum_tokens", 512))


def rank(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """``{"scores"}`` for ``{"query", "documents"}``, one a document, more is better; probabilities where the model was trained on each
    document by itself (pointwise), which ``"probability": True`` says. ``{"score"}`` for ``{"query", "document"}``."""
    queries, documents, sizes = [], [], []
    for number, item in enumerate(items):
        texts = [item["document"]] if isinstance(item.get("document"), str) and "documents" not in item else listed_texts(item, "documents", number)
        queries += [wanted(item, "query", number)] * len(texts)
        documents += texts
        sizes.append(len(texts))
    scores = [0.0] * len(queries)
    for batch in padded_batches(frame_pairs(tokenizer, queries, documents, model.head.settings), tokenizer.pad_id, rows, model.device):
        given = batch.scores(model).float()[:, 0]  # [rows]
        given = given.sigmoid() if model.head.settings.get("probability") else given
        for number, score in zip(batch.numbers, given.tolist(), strict=True):
            scores[number] = score
    found, start = [], 0
    said = {"probability": True} if model.head.settings.get("probability") else {}
    for item, size in zip(items, sizes, strict=True):
        found.append({**({"scores": scores[start : start + size]} if "documents" in item else {"score": scores[start]}), **said})
        start += size
    return found
