"""What a model says of an input, whatever its task: labels with probabilities, spans, answers, texts, vectors.

A model directory knows its own task (the note in config.json), so that prediction frames its input as training did.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from luban.adapters.files import open_model, text_folder
from luban.foundation.errors import DataError
from luban.foundation.hardware import machine
from luban.inference.items import as_items
from luban.models.base import Model
from luban.models.config_json import read_config
from luban.models.heads import Head
from luban.models.huggingface import stored_dtype
from luban.tokenizer.tokenizer import Tokenizer

# Task to the function that predicts it: ``function(model, tokenizer, items, rows) -> list[dict]``, items as the table of `predict` says.
PREDICTORS = {
    "causal": "filling:next_words",
    "masked": "filling:fill",
    "span_corruption": "filling:fill_spans",
    "denoising": "filling:clean",
    "prefix": "filling:continue_text",
    "fill_in_middle": "filling:write_middle",
    "classification": "labels:classify",
    "multi_label": "labels:classify",
    "regression": "labels:classify",
    "embedding": "vectors:embed",
    "ranking": "pairs:rank",
    "reward": "rewards:reward",
    "multiple_choice": "choices:choose",
    "translation": "texts:write",
    "summarization": "texts:write",
    "generation": "texts:write",
    "pattern": "patterns:classify",
    "tagging": "spans:tag",
    "relation": "relations:relate",
    "joint_relation": "triples:extract",
    "question_answering": "answers:answer",
}
ENSEMBLE = "luban-ensemble"  # model_type of an ensemble's config.json
STREAMED = 512  # items predicted together when they come one by one


class Predictor:
    """A model with its tokenizer, ready to predict. Items are mappings: ``{"text": …}``, ``{"text": …, "pair": …}``,
    ``{"question": …, "context": …}`` and so on; a bare text stands for ``{"text": …}``."""

    def __init__(self, model: Model, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, path: Path | str, *, dtype: torch.dtype | None = None, device: str = "auto") -> Predictor:
        """Open a model directory, or an ensemble of them. Raises DataError when it or its tokenizer cannot be read."""
        if read_config(Path(path)).get("model_type") == ENSEMBLE:
            from luban.inference.ensemble import Ensemble

            return Ensemble.load(path, dtype=dtype, device=device)
        device = machine().accelerator if device == "auto" else device
        dtype = dtype or (torch.float32 if device == "cpu" else stored_dtype(Path(path)))
        return cls(open_model(Path(path), dtype=dtype, device=device), Tokenizer.load(text_folder(Path(path))))

    @property
    def head(self) -> Head | None:
        return self.model.head

    @property
    def task(self) -> str:
        """The task the model was trained for; a plain language model continues texts, an encoder fills masks."""
        if self.head is not None:
            return self.head.task
        return {"decoder": "causal", "encoder": "masked", "encoder_decoder": "generation"}[self.model.shape.kind]

    @torch.inference_mode()
    def predict(self, items: Iterable[Any], *, rows: int = 32) -> list[dict[str, Any]]:
        """One mapping an item, in their order. Raises DataError, naming the item, where an item lacks what the task reads."""
        place = PREDICTORS.get(self.task)
        if place is None:
            raise DataError("there is no prediction for the task {task}", "", "known tasks: {known}", task=self.task, known=", ".join(PREDICTORS))
        module, _, name = place.partition(":")
        function = getattr(importlib.import_module(f"luban.inference.{module}"), name)
        self.model.eval()
        return function(self.model, self.tokenizer, as_items(items), rows)

    def stream(self, items: Iterable[Any], *, rows: int = 32) -> Iterator[dict[str, Any]]:
        """Predictions as the items come, a bounded number at a time."""
        waiting = iter(items)
        while some := list(islice(waiting, STREAMED)):
            yield from self.predict(some, rows=rows)


def wanted(item: dict[str, Any], name: str, number: int) -> str:
    """The text of an item under ``name``, or a DataError that names the item."""
    value = item.get(name)
    if not isinstance(value, str):
        raise DataError("item {number}: {name!r} is missing or no text", "this model reads it; the item has: {known}", "", number=number + 1, name=name, known=", ".join(map(str, item)))
    return value
