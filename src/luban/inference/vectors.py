"""Vectors of texts, how near texts are to each other, and exact search among vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from luban.foundation.errors import ConfigError, DataError
from luban.inference.padding import padded_batches
from luban.inference.predictor import wanted
from luban.models.base import Model
from luban.tokenizer.framing import Framed, frame_batch
from luban.tokenizer.tokenizer import Tokenizer

CORPUS_ROWS, QUERY_ROWS = 16_384, 256  # of the products that exist at once in a search


def frame_texts(tokenizer: Tokenizer, texts: Sequence[str], prompt: str, settings: Mapping[str, Any]) -> list[Framed]:
    """Texts behind the head's prompt of that name ("query", "document"; "" and unknown names: none), in training and in prediction."""
    before = settings.get("prompts", {}).get(prompt, "")
    return frame_batch(tokenizer, [before + text for text in texts], maximum=settings.get("maximum_tokens") or 512)


@torch.inference_mode()
def embed_texts(model: Model, tokenizer: Tokenizer, texts: Sequence[str], *, prompt: str = "", dimensions: int | None = None, rows: int = 32) -> Tensor:
    """[texts, dim] float32 on the processor. Equal texts are read once. ``prompt`` names a prompt of the head's;
    ``dimensions`` cuts the vectors to that length (Matryoshka), before they are brought to length one."""
    settings = model.head.settings
    if settings.get("unread_modules"):
        raise DataError(
            "the model's vectors pass through modules that Luban has not: {names}",
            "they would be other vectors without them",
            "train the model further with Luban, which leaves them out",
            names=", ".join(settings["unread_modules"]),
        )
    different = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    width = model.shape.hidden_size if dimensions is None else dimensions
    found = torch.zeros(len(different), min(width, model.shape.hidden_size))
    for batch in padded_batches(frame_texts(tokenizer, list(different), prompt, settings), tokenizer.pad_id, rows, model.device):
        found[batch.numbers] = shortened(batch.scores(model).float(), width, settings.get("normalise", True)).cpu()
    return found[[different[text] for text in texts]]


def shortened(vectors: Tensor, dimensions: int | None, normalise: bool = True) -> Tensor:
    """The first numbers of vectors [..., dim], at length one. ConfigError for more dimensions than there are."""
    if dimensions is not None and not 0 < dimensions <= vectors.shape[-1]:
        raise ConfigError("dimensions: vectors of {width} numbers cannot be cut to {wanted}", "", "give a number from 1 to {width}", width=vectors.shape[-1], wanted=dimensions)
    vectors = vectors[..., :dimensions]
    return functional.normalize(vectors, dim=-1) if normalise else vectors


def embed(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """``{"vector"}`` for ``{"text"}``, and ``{"scores"}``, the cosines, for ``{"query", "documents"}``. An item may say ``dimensions``,
    and beside a text the name of its ``prompt``."""
    requests: dict[tuple[str, int | None], dict[str, int]] = {}
    for number, item in enumerate(items):
        for kind, text in _texts(item, number, model.head.settings):
            asked = requests.setdefault((kind, item.get("dimensions")), {})
            asked.setdefault(text, len(asked))
    made = {key: embed_texts(model, tokenizer, list(texts), prompt=key[0], dimensions=key[1], rows=rows) for key, texts in requests.items()}
    found = []
    for number, item in enumerate(items):
        keys = [((kind, item.get("dimensions")), text) for kind, text in _texts(item, number, model.head.settings)]
        vectors = [made[key][requests[key][text]] for key, text in keys]
        if "query" not in item:
            found.append({"vector": vectors[0].tolist()})
        else:
            found.append({"scores": functional.cosine_similarity(vectors[0][None], torch.stack(vectors[1:])).tolist() if len(vectors) > 1 else []})
    return found


def _texts(item: dict[str, Any], number: int, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(prompt, text) of everything in an item that is to be a vector."""
    if "query" in item:
        return [("query", wanted(item, "query", number)), *(("document", text) for text in listed_texts(item, "documents", number))]
    prompt = item.get("prompt") or settings.get("default_prompt") or ""
    known = settings.get("prompts", {})
    if prompt and prompt not in known:
        raise DataError("item {number}: the model has no prompt {name!r}", "its prompts are: {known}", "", number=number + 1, name=prompt, known=", ".join(known) or "–")
    return [(prompt, wanted(item, "text", number))]


def listed_texts(item: dict[str, Any], name: str, number: int) -> list[str]:
    """The texts of an item under ``name``, or a DataError that names the item."""
    value = item.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError("item {number}: {name!r} is missing or no list of texts", "this model reads it; the item has: {known}", "", number=number + 1, name=name, known=", ".join(map(str, item)))
    return value


@torch.inference_mode()
def search(corpus: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best of ``corpus`` [documents, dim] for each of ``queries`` [queries, dim] by their product, exactly: scores and numbers
    of documents, both [queries, min(k, documents)], best first, the first of equals first. Memory does not grow with either side."""
    k = min(k, len(corpus))
    scores, numbers = torch.empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.int64)
    for first in range(0, len(queries), QUERY_ROWS):
        some = queries[first : first + QUERY_ROWS]
        best, places = some.new_empty(len(some), 0), torch.empty(len(some), 0, dtype=torch.int64, device=some.device)
        for start in range(0, len(corpus), CORPUS_ROWS):
            given = some @ corpus[start : start + CORPUS_ROWS].T  # [queries, documents]
            own = torch.arange(start, start + given.shape[1], device=some.device).expand(len(some), -1)
            best, order = torch.cat([best, given], 1).sort(dim=1, descending=True, stable=True)
            best, places = best[:, :k], torch.cat([places, own], 1).gather(1, order[:, :k])
        scores[first : first + QUERY_ROWS], numbers[first : first + QUERY_ROWS] = best, places
    return scores, numbers
