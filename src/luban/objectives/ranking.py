"""Which documents answer a query, or are clicked, from the text of both read together (cross-encoder)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from luban.examples.reading import ExampleSet
from luban.examples.tasks import Ranking
from luban.foundation.console import say
from luban.inference.pairs import frame_pairs
from luban.models.base import Model
from luban.models.heads import Head
from luban.objectives.base import DataRequest, Term
from luban.objectives.config import RankingConfig
from luban.objectives.losses import wide
from luban.objectives.tasks import TaskObjective
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch, Row
from luban.tokens.order import permutation
from luban.tokens.units import UnitLoader

NO_DOCUMENT = -1e9  # the score of an empty row: its share of a softmax is 0


@dataclass
class Candidates:
    """A query and its documents, and how many documents of other queries it is given."""

    example: Ranking
    known: set[str]  # documents of the same query, here or in another example
    corpus: list[str]  # where these are drawn from
    random: int


class Ranker(TaskObjective):
    """A score for each document of a query: by itself (pointwise), better above worse (pairwise), or a share of the query's (listwise)."""

    name, unit, scope, reads = "ranking", "group", "group", "ranking"
    config: RankingConfig

    def __init__(self, config: RankingConfig):
        super().__init__(config)
        self.pointwise = config.loss == "pointwise"
        self.unit = "example" if self.pointwise else "group"

    # ---- examples to batches -----------------------------------------------------------------------------------------

    def make_head(self, found: ExampleSet, data: DataRequest) -> Head:
        self.highest = max(max((grade for example in found.examples for grade in example.grades), default=1.0), 1.0)
        self.random = self._random_negatives(found.examples)
        settings = {"maximum_tokens": data.sequence_length, **({"probability": True} if self.pointwise else {})}
        return Head("sequence", "ranking", ("relevance",), settings=settings)

    def _random_negatives(self, examples: Sequence[Ranking]) -> int:
        """How many documents of other queries each query is given."""
        if self.config.random_negatives != "auto":
            return self.config.random_negatives
        if any(grade <= 0 for example in examples for grade in example.grades) or any(len(set(example.grades)) > 1 for example in examples):
            return 0
        say("the data has no irrelevant documents: each query is given {count} of other queries", count=self.config.documents - 1)
        return self.config.documents - 1

    def units(self, examples: Sequence[Ranking], tokenizer: Tokenizer) -> list[Any]:
        """The candidates of each example; pointwise: a unit for each document."""
        known: dict[str, set[str]] = {}
        for example in examples:
            known.setdefault(example.query, set()).update(example.documents)
        corpus = list(dict.fromkeys(document for example in examples for document in example.documents))
        found: list[Any] = []
        for number, example in enumerate(examples):
            unit = Candidates(example, known[example.query], corpus, self.random)
            if self.pointwise:
                drawn = drawn_documents(corpus, unit.known, unit.random, number)
                rows = self._rows(example, [*example.documents, *drawn], [*example.grades, *([0.0] * len(drawn))], tokenizer)
                found += [[_weighted(row)] for row in rows]
            elif not example.documents or (len(set(example.grades)) < 2 and not (unit.random and max(example.grades) > 0)):
                self.refuse("it has no document" if not example.documents else "its documents are all equally good")
            else:
                found.append(unit)
        return found

    def _rows(self, example: Ranking, texts: Sequence[str], grades: Sequence[float], tokenizer: Tokenizer) -> list[Row]:
        framed = frame_pairs(tokenizer, [example.query] * len(texts), texts, self.head.settings)
        self.notice_cut(framed)
        return [
            Row(np.array(one.ids), np.zeros(1, np.float32), types=np.array(one.types), extra={"grade": np.float32(grade)}, source=example.source) for one, grade in zip(framed, grades, strict=True)
        ]

    def loader(self, units: list[Any], data: DataRequest, seed: int, shuffle: bool) -> UnitLoader:
        if self.pointwise:
            return UnitLoader(units, units_per_step=data.examples_per_step, seed=seed, pad_id=data.tokenizer.pad_id, shuffle=shuffle)
        most = max(len(unit.example.documents) + unit.random for unit in units)
        group = min(self.config.documents, most)

        def refresh(unit: int, epoch: int) -> list[Row]:
            example = units[unit].example
            drawn = drawn_documents(units[unit].corpus, units[unit].known, units[unit].random, seed, unit, epoch)
            texts, grades = chosen([*example.documents, *drawn], [*example.grades, *([0.0] * len(drawn))], group, seed, unit, epoch)
            rows = self._rows(example, texts, grades, data.tokenizer)
            return [_weighted(rows[0]), *rows[1:], *([EMPTY_ROW] * (group - len(rows)))]

        first = [refresh(unit, 0) for unit in range(len(units))]
        changes = shuffle and (most > group or self.random > 0)
        return UnitLoader(first, units_per_step=data.examples_per_step, seed=seed, pad_id=data.tokenizer.pad_id, group=group, shuffle=shuffle, refresh=refresh if changes else None)

    def item_of(self, example: Ranking) -> dict[str, Any]:
        return {"query": example.query, "documents": example.documents}

    # ---- the loss ----------------------------------------------------------------------------------------------------

    def outputs(self, model: Model, batch: Batch) -> Tensor:
        """[queries, documents] scores, very low where there is no document; pointwise [rows, 1]."""
        scores = wide(model.scores(model(batch.inputs, **batch.context()), batch.inputs, batch.segments, batch.extra))  # [rows, 1]
        if self.pointwise:
            return scores
        return scores.view(-1, batch.group).masked_fill(~_filled(batch), NO_DOCUMENT)

    def terms_of(self, outputs: Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        if self.pointwise:
            targets = batch.extra["grade"].clamp(min=0) / self.highest
            losses = functional.binary_cross_entropy_with_logits(outputs[:, 0], targets.to(outputs.dtype), reduction="none")
            return {"loss": Term((losses * batch.weights[:, 0]).sum())}
        grades = batch.extra["grade"].view(-1, batch.group).to(outputs.dtype)
        losses = (ranknet if self.config.loss == "pairwise" else listwise)(outputs, grades, _filled(batch))
        return {"loss": Term((losses * self.unit_weights(batch)).sum())}

    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        if not self.pointwise:
            return super().divergence(first, second)
        known = first.sigmoid()
        return (known * (functional.logsigmoid(first) - functional.logsigmoid(second)) + (1 - known) * (functional.logsigmoid(-first) - functional.logsigmoid(-second))).sum(-1)

    def unit_weights(self, batch: Batch) -> Tensor:
        """[queries], or [rows] where each counts by itself."""
        return batch.weights[:, 0] if self.pointwise else batch.weights.view(-1, batch.group).sum(1)


def listwise(scores: Tensor, grades: Tensor, filled: Tensor) -> Tensor:
    """[queries] the cross-entropy between the documents' shares of the grades and the softmax of their scores, both [queries, documents]
    (ListNet with top-one probabilities, Cao et al. 2007, whose targets here are proportional to the grades; with one relevant document the softmax loss)."""
    gains = grades.clamp(min=0).masked_fill(~filled, 0)
    # Where all grades are negative the least bad counts as relevant.
    lowest = grades.masked_fill(~filled, torch.inf).amin(1, keepdim=True)
    gains = torch.where(gains.sum(1, keepdim=True) > 0, gains, (grades - lowest).masked_fill(~filled, 0))
    shares = gains / gains.sum(1, keepdim=True)
    return -(shares * scores.log_softmax(1)).sum(1)


def ranknet(scores: Tensor, grades: Tensor, filled: Tensor) -> Tensor:
    """[queries] the mean over pairs with a better and a worse document of −log σ(better − worse) (RankNet, Burges et al. 2005)."""
    better = (grades[:, :, None] > grades[:, None, :]) & filled[:, :, None] & filled[:, None, :]  # [queries, documents, documents]
    losses = functional.softplus(scores[:, None, :] - scores[:, :, None])
    return (losses * better).sum((1, 2)) / better.sum((1, 2)).clamp(min=1)


def drawn_documents(corpus: Sequence[str], known: set[str], count: int, *key: int) -> list[str]:
    """``count`` different documents that are not ``known``, the same for the same key; fewer where there are hardly others."""
    if not count:
        return []
    words = np.random.Philox(np.random.SeedSequence([part % 2**64 for part in key])).random_raw(4 * count + 16) % len(corpus)
    different = dict.fromkeys(corpus[int(place)] for place in words)
    return [text for text in different if text not in known][:count]


def chosen(texts: Sequence[str], grades: Sequence[float], group: int, *key: int) -> tuple[list[str], list[float]]:
    """At most ``group`` of a query's documents, the best first: the relevant ones as far as a place is left for another, and a draw of the others."""
    order = sorted(range(len(texts)), key=lambda place: -grades[place])
    relevant, others = [place for place in order if grades[place] > 0], [place for place in order if grades[place] <= 0]
    if len(set(grades[place] for place in relevant)) > 1 and not others:
        relevant, others = [place for place in relevant if grades[place] > grades[order[-1]]], [place for place in relevant if grades[place] == grades[order[-1]]]
    kept = min(len(relevant), max(group - 1, group - len(others)))
    taken = _drawn(relevant, kept, *key, 0) + _drawn(others, group - kept, *key, 1)
    return [texts[place] for place in taken], [grades[place] for place in taken]


def _drawn(places: Sequence[int], count: int, *key: int) -> list[int]:
    return [places[int(number)] for number in sorted(permutation(len(places), *key)[:count])] if len(places) > count else list(places)


def _weighted(row: Row) -> Row:
    return Row(row.ids, np.ones(1, np.float32), types=row.types, extra=row.extra, source=row.source)


def _filled(batch: Batch) -> Tensor:
    """[queries, documents] where there is a document."""
    return (batch.segments >= 0).any(1).view(-1, batch.group)


EMPTY_ROW = Row(np.zeros(0, np.int64), np.zeros(1, np.float32), extra={"grade": np.float32(0)})
