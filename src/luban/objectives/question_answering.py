"""The stretch of a context that answers a question, or that it has none (SQuAD 1.1 and 2.0, arXiv:1606.05250 and 1806.03822)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from luban.examples.reading import ExampleSet
from luban.examples.tasks import Question
from luban.foundation.console import say
from luban.inference.answers import Found, context_places, frame_question, no_answer_place, said, search
from luban.metrics.reading import answer_f1
from luban.metrics.score import Score
from luban.metrics.tasks import score_task
from luban.metrics.words import resolve_language
from luban.models.base import Model
from luban.models.heads import Head
from luban.objectives.base import DataRequest, Term
from luban.objectives.config import QuestionAnsweringConfig
from luban.objectives.losses import wide
from luban.objectives.windowed import WindowedObjective, window_stride
from luban.tokenizer.framing import Framed
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch, Row

_ROWS = 32  # of a batch in prediction


class QuestionAnswering(WindowedObjective):
    """Cross-entropy over the places of the start and of the end, their mean; a window without the answer has both at the no-answer token."""

    config: QuestionAnsweringConfig
    name = reads = "question_answering"

    def make_head(self, found: ExampleSet, data: DataRequest) -> Head:
        stride = min(self.config.stride, window_stride(data.sequence_length))
        if stride < self.config.stride:
            say("stride: windows of {length} tokens share {stride}, a quarter; sharing {asked} they would read little that is new", length=data.sequence_length, stride=stride, asked=self.config.stride)
        settings = {
            "maximum_tokens": data.sequence_length, "stride": stride, "longest_answer": self.config.longest_answer,
            "unanswerable": any(not example.answers for example in found.examples), "threshold": 0.0,
            "no_answer": "last" if data.shape.kind == "decoder" else "first",
        }  # fmt: skip
        return Head("span", self.name, settings=settings)

    def rows_of(self, examples: Sequence[Question], tokenizer: Tokenizer) -> list[Row]:
        return [row for example in examples for row in self._rows(example, tokenizer)]

    def _rows(self, example: Question, tokenizer: Tokenizer) -> list[Row]:
        windows = frame_question(tokenizer, example.question, example.context, self.head.settings)
        answer = next(((start, start + len(words)) for words, start in example.answers if words and example.context[start : start + len(words)] == words), None)
        if example.answers and answer is None:
            self.refuse("no answer stands where it is said to be")
            return []
        placed = [answer_places(window, answer, self.head.settings) for window in windows]
        if answer:
            inside = [place for window, place in zip(windows, placed, strict=True) if place[0] != no_answer_place(window, self.head.settings)]
            self.notice("answers are longer than what two windows share, and no window shows the whole: they are learned as none", int(not inside))
            shown = next((window for window, place in zip(windows, placed, strict=True) if place in inside), None)
            cut = shown is not None and (shown.offsets[inside[0][0]][0] < answer[0] or shown.offsets[inside[0][1]][1] > answer[1])
            self.notice("answers begin or end inside a token: all of it is learned", int(cut))
        return [
            Row(np.array(window.ids), np.ones(1, np.float32), types=np.array(window.types), extra={"places": np.array(place, np.int64)}, source=example.source)
            for window, place in zip(windows, placed, strict=True)
        ]

    def item_of(self, example: Question) -> dict[str, Any]:
        return {"question": example.question, "context": example.context}

    def outputs(self, model: Model, batch: Batch) -> torch.Tensor:
        """[rows, 2, seq] scores of starts and of ends; padding has none."""
        scores = wide(model.scores(model(batch.inputs, **batch.context()), batch.inputs, batch.segments, batch.extra)).transpose(1, 2)
        return scores if batch.segments is None else scores.masked_fill((batch.segments < 0)[:, None], torch.finfo(scores.dtype).min)

    def terms_of(self, outputs: torch.Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        nats = functional.cross_entropy(outputs.flatten(0, 1), batch.extra["places"].flatten(), reduction="none").view(-1, 2).mean(1)
        return {"loss": Term((nats * batch.weights[:, 0]).sum())}

    def divergence(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return super().divergence(first, second).mean(1)

    def score(self, model: Model, tokenizer: Tokenizer, examples: list[Any]) -> dict[str, Score]:
        """The figures with the threshold that these examples make best, which the model keeps; where no question is without an answer, there is none."""
        training = model.training
        with torch.inference_mode():
            found = search(model.eval(), tokenizer, [self.item_of(example) for example in examples], _ROWS)
        model.train(training)
        if model.head.settings["unanswerable"]:
            self.head = model.head = replace(model.head, settings=model.head.settings | {"threshold": best_threshold(found, examples)})
        predictions = [said(one, example.context, model.head.settings) for one, example in zip(found, examples, strict=True)]
        return score_task(self.measured_as, predictions, examples, resamples=0)


def answer_places(framed: Framed, answer: tuple[int, int] | None, settings: Any) -> tuple[int, int]:
    """First and last token of an answer (characters, end exclusive) in a window that shows all of it, else the no-answer token twice."""
    none = no_answer_place(framed, settings)
    if answer is None:
        return none, none
    context = np.flatnonzero(context_places(framed))
    left, right = framed.visible[-1]
    inside = [place for place in context if framed.offsets[place][0] < answer[1] and framed.offsets[place][1] > answer[0]]
    if not inside or answer[0] < left or answer[1] > right:
        return none, none
    return int(inside[0]), int(inside[-1])


def best_threshold(found: Sequence[Found], examples: Sequence[Question]) -> float:
    """The doubt above which no answer is given, where mean F1 over the examples is highest (the one nearest to 0 of those between two
    examples). Without both kinds of question there is nothing to choose by: 0."""
    if not any(example.answers for example in examples) or all(example.answers for example in examples):
        return 0.0
    language = resolve_language("auto", (text for example in examples for text in (example.question, *(words for words, _ in example.answers))))
    gains = []
    for one, example in zip(found, examples, strict=True):
        gold = [words for words, _ in example.answers]
        said_f1 = answer_f1(example.context[one.start : one.end], gold, language == "zh")
        gains.append((one.doubt, said_f1 - answer_f1("", gold, language == "zh")))
    gains = sorted((doubt, gain) for doubt, gain in gains if np.isfinite(doubt))
    bounds = [-np.inf, *(doubt for doubt, _ in gains), np.inf]
    totals = np.concatenate([[0.0], np.cumsum([gain for _, gain in gains])])  # of answering the first n, by doubt
    best, chosen = -np.inf, 0.0
    for count, total in enumerate(totals):
        low, high = bounds[count], bounds[count + 1]
        if low < high or not np.isfinite(high):
            place = _between(low, high)
            if total > best + 1e-9 or (total > best - 1e-9 and abs(place) < abs(chosen)):
                best, chosen = max(best, total), place
    return float(chosen)


def _between(low: float, high: float) -> float:
    """A number between two, away from both; 0 if it is there."""
    if low < 0 < high:
        return 0.0
    return low + 1.0 if not np.isfinite(high) else high - 1.0 if not np.isfinite(low) else (low + high) / 2
