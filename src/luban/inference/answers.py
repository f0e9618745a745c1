"""Answers to questions: the best stretch of a context, however long, or that there is none.

As in BERT (arXiv:1810.04805) a start and an end are scored at every token of every window, and the first token stands for "not here"
(the last, where a model reads from left to right). Windows are compared by probabilities, so that one without an answer says little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luban.inference.padding import padded_batches
from luban.inference.predictor import wanted
from luban.inference.spans import settings_of
from luban.models.base import Model
from luban.tokenizer.framing import Framed, frame_windows
from luban.tokenizer.tokenizer import Tokenizer

STRIDE, LONGEST = 128, 64


@dataclass
class Found:
    """The likeliest answer of a context. ``score`` and ``no_answer`` are log-probabilities; the latter of the window that most believes
    in an answer."""

    start: int
    end: int
    score: float
    no_answer: float

    @property
    def doubt(self) -> float:
        """How much likelier no answer is."""
        return self.no_answer - self.score


def frame_question(tokenizer: Tokenizer, question: str, context: str, settings: Mapping[str, Any]) -> list[Framed]:
    """A question and its context in windows, as training and prediction read them."""
    maximum = settings.get("maximum_tokens", 512)
    return frame_windows(tokenizer, question, context, maximum=maximum, stride=min(settings.get("stride", STRIDE), maximum // 4))


def no_answer_place(framed: Framed, settings: Mapping[str, Any]) -> int:
    """The token at which start and end stand for "no answer here"."""
    return len(framed.ids) - 1 if settings.get("no_answer") == "last" else 0


def context_places(framed: Framed) -> np.ndarray:
    """[n] bool: the tokens of the context (which is the only text where there is no question)."""
    context = len(framed.visible) - 1  # the last of the texts
    return np.array([number == context and start < end for number, (start, end) in zip(framed.parts, framed.offsets, strict=True)], bool)


def best_span(starts: np.ndarray, ends: np.ndarray, valid: np.ndarray, longest: int) -> tuple[int, int, float] | None:
    """(first token, last token, sum) of the highest ``starts[first] + ends[last]`` with both valid and at most ``longest`` tokens; of equal ones
    the first and shortest. None where nothing is valid."""
    first = np.where(valid, starts, -np.inf)
    last = np.where(valid, ends, -np.inf)
    best: tuple[int, int, float] | None = None
    padded = np.concatenate([last, np.full(longest, -np.inf)])
    reach = np.lib.stride_tricks.sliding_window_view(padded, longest)[: len(last)]  # [n, longest]: ends from each start on
    sums = first + reach.max(1)
    if len(sums) and np.isfinite(sums).any():
        place = int(sums.argmax())
        best = (place, place + int(reach[place].argmax()), float(sums[place]))
    return best


def search(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[Found]:
    """The likeliest answer of each item, wherever in its context; an empty one at 0 with score -inf where the context has no word."""
    settings = settings_of(model)
    framed: list[Framed] = []
    owners: list[int] = []
    for number, item in enumerate(items):
        windows = frame_question(tokenizer, wanted(item, "question", number), wanted(item, "context", number), settings)
        framed += windows
        owners += [number] * len(windows)
    seen: dict[int, tuple[int, int, float, float]] = {}
    longest = settings.get("longest_answer", LONGEST)
    for batch in padded_batches(framed, tokenizer.pad_id, rows, model.device):
        scores = batch.scores(model).float().masked_fill((batch.segments < 0)[..., None], -float("inf"))
        values = scores.log_softmax(1).cpu().numpy()  # [rows, seq, 2]
        for row, number in enumerate(batch.numbers):
            window = framed[number]
            starts, ends = values[row, : len(window.ids), 0], values[row, : len(window.ids), 1]
            none = no_answer_place(window, settings)
            span = best_span(starts, ends, context_places(window), longest)
            place = (window.offsets[span[0]][0], max(window.offsets[span[1]][1], window.offsets[span[0]][1])) if span else (0, 0)
            seen[number] = (*place, span[2] if span else -np.inf, float(starts[none] + ends[none]))
    found = [Found(0, 0, -np.inf, np.inf) for _ in items]
    for number in range(len(framed)):
        start, end, score, none = seen[number]
        best = found[owners[number]]
        if score > best.score:
            best.start, best.end, best.score = start, end, score
        best.no_answer = min(best.no_answer, none)
    return found


def answer(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """``{"answer", "start", "end", "score", "no_answer_score"}`` for each item; answer "" and no positions where there is none.

    ``score`` is the probability of the answer (of none, where there is none) in its window, ``no_answer_score`` how much likelier none is, in nats.
    """
    settings = model.head.settings
    return [said(one, item["context"], settings) for one, item in zip(search(model, tokenizer, items, rows), items, strict=True)]


def said(found: Found, context: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A prediction, with the threshold of a head that has learned that questions may have no answer."""
    none = not np.isfinite(found.score) or (settings.get("unanswerable", False) and found.doubt > settings.get("threshold", 0.0))
    doubt = float(np.clip(found.doubt, -1e9, 1e9))
    if none:
        return {"answer": "", "start": None, "end": None, "score": float(np.exp(min(found.no_answer, 0.0))), "no_answer_score": doubt}
    return {"answer": context[found.start : found.end], "start": found.start, "end": found.end, "score": float(np.exp(found.score)), "no_answer_score": doubt}
