"""Labels and numbers for texts and pairs of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from luban.inference.padding import padded_batches
from luban.inference.predictor import wanted
from luban.models.base import Model
from luban.models.heads import Head
from luban.tokenizer.framing import Framed, frame
from luban.tokenizer.tokenizer import Tokenizer


def frame_text(tokenizer: Tokenizer, text: str, pair: str, settings: Mapping[str, Any]) -> Framed:
    """A text, or a pair of texts, as classification reads it in training and in prediction."""
    return frame(tokenizer, text, pair or None, maximum=settings.get("maximum_tokens", 512))


def classify(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """``{"label", "probabilities"}``, ``{"labels", "probabilities"}`` (multi_label) or ``{"value"}`` (regression) for each item; of one that is
    too long to be read whole, ``cut_tokens`` says how much was not."""
    framed = [frame_text(tokenizer, wanted(item, "text", number), item.get("pair") or "", model.head.settings) for number, item in enumerate(items)]
    found: list[dict[str, Any]] = [{}] * len(items)
    for batch in padded_batches(framed, tokenizer.pad_id, rows, model.device):
        for number, scores in zip(batch.numbers, batch.scores(model).float().cpu(), strict=True):
            cut = framed[number].truncated
            found[number] = {**_said(scores, model.head), **({"cut_tokens": cut} if cut else {})}
    return found


def _said(scores: torch.Tensor, head: Head) -> dict[str, Any]:
    """A prediction from the scores [outputs] of one row."""
    if head.problem == "regression":
        center, scale = head.settings.get("center", 0.0), head.settings.get("scale", 1.0)
        return {"value": float(scores[0]) * scale + center}
    if head.problem == "multi_label":
        probabilities = {label: float(value) for label, value in zip(head.labels, scores.sigmoid(), strict=True)}
        return {"labels": [label for label, value in probabilities.items() if value >= head.settings.get("threshold", 0.5)], "probabilities": probabilities}
    values = scores.softmax(-1)
    return {"label": head.labels[int(values.argmax())], "probabilities": {label: float(value) for label, value in zip(head.labels, values, strict=True)}}
