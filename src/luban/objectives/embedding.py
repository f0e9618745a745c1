"""Vectors of texts: near where texts belong together, apart elsewhere.

All texts of a step are compared with each other, so a step's batch is never split: where it is too large for one forward pass, its
vectors are made in micro-batches whose activations are dropped and computed again when the gradients of the vectors are known (GradCache,
Gao et al. 2021, arXiv:2101.06983). The gradients are those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
import xxhash
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from luban.examples.reading import ExampleSet
from luban.examples.splitting import normalised
from luban.examples.tasks import Ranking
from luban.foundation.console import say, warn
from luban.foundation.errors import ConfigError
from luban.inference.predictor import Predictor
from luban.inference.vectors import embed_texts, frame_texts, search, shortened
from luban.metrics.ranking import is_similarity
from luban.models.base import Model
from luban.models.heads import Head
from luban.objectives.base import DataRequest, Term
from luban.objectives.config import EmbeddingConfig
from luban.objectives.losses import wide
from luban.objectives.retrieval import Pool
from luban.objectives.tasks import TaskObjective
from luban.tokenizer.special import with_frame
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch, Row
from luban.tokens.order import permutation
from luban.tokens.units import UnitLoader

EMPTY, QUERY, POSITIVE, NEGATIVE = range(4)  # the role of a row
FAR = -1e9  # in the place of what is no candidate: its share of a softmax is 0, and no gradient is NaN


@dataclass
class Group:
    """The rows of one example: a text, texts that belong to it, and texts that do not."""

    query: Row
    positives: list[Row]
    negatives: list[Row] = field(default_factory=list)


class Embedding(TaskObjective):
    """Contrastive learning with the other texts of the step as negatives, or similarity learned from graded pairs."""

    name, unit, scope, reads = "embedding", "pair", "batch", "embedding"
    config: EmbeddingConfig

    def __init__(self, config: EmbeddingConfig):
        super().__init__(config)
        self.loss = "contrastive" if config.loss == "auto" else config.loss
        self.known: dict[int, set[int]] = {}  # texts that belong to a text, anywhere in the data, by the hash of both

    def adapt_tokenizer(self, tokenizer: Tokenizer) -> Tokenizer:
        return with_frame(tokenizer)

    # ---- examples to batches -----------------------------------------------------------------------------------------

    def make_head(self, found: ExampleSet, data: DataRequest) -> Head:
        own = dict(data.model_head.settings) if data.model_head is not None and data.model_head.task == "embedding" else {}
        if self.config.loss == "auto":
            self.loss = "cosent" if is_similarity([example.grades for example in found.examples]) else "contrastive"
            if self.loss == "cosent":
                say("the pairs have degrees of similarity, whose order is learned (objective.loss: cosent)")
        self.scope = "example" if self.loss == "cosine" else "batch"
        if self.loss != "contrastive":
            grades = [grade for example in found.examples for grade in example.grades]
            self.low, self.high = min(grades), max(max(grades), min(grades) + 1e-9)
        elif data.examples_per_step < 2 and not self.config.hard_negatives:
            warn("batch_examples is 1 and there are no hard negatives: there is nothing to tell apart")
        width = data.shape.hidden_size
        if too_long := [size for size in self.config.matryoshka if size > width]:
            raise ConfigError("objective.matryoshka: {size} is more than the model's {width} dimensions", "", "leave it out", size=too_long[0], width=width)
        pooling = self.config.pooling if self.config.pooling != "auto" else own.get("pooling", "last" if data.shape.kind == "decoder" else "mean")
        given = {"query": self.config.query_prompt, "document": self.config.document_prompt}
        prompts = {name: text for name, text in given.items() if text} or own.get("prompts", {})
        settings: dict[str, Any] = {"pooling": pooling, "normalise": True, "dimensions": sorted({*self.config.matryoshka, width}), "maximum_tokens": data.sequence_length}
        if prompts:
            settings |= {"prompts": prompts, "default_prompt": own.get("default_prompt", "query" if "query" in prompts else None)}
        return Head("vector", "embedding", settings=settings)

    def units(self, examples: Sequence[Ranking], tokenizer: Tokenizer) -> list[Any]:
        """A group for each example, or for each graded pair."""
        made = {kind: self._framed(tokenizer, kind, examples) for kind in ("query", "document")}
        found: list[Group] = []
        for example in examples:
            query = made["query"][example.query]
            graded = [(made["document"][text], grade) for text, grade in zip(example.documents, example.grades, strict=True)]
            if self.loss != "contrastive":
                found += [Group(_row(query, QUERY, 1.0, grade, example.source), [_row(row, POSITIVE, grade=grade)]) for row, grade in graded]
                continue
            if not any(grade > 0 for _, grade in graded):
                self.refuse("it has no matching text")
                continue
            positives = [_row(row, POSITIVE) for row, grade in graded if grade > 0]
            self.known.setdefault(int(query.extra["text"]), set()).update(int(row.extra["text"]) for row in positives)
            found.append(Group(_row(query, QUERY, 1.0, source=example.source), positives, [_row(row, NEGATIVE) for row, grade in graded if grade <= 0]))
        return found

    def _framed(self, tokenizer: Tokenizer, kind: str, examples: Sequence[Ranking]) -> dict[str, Row]:
        """Every different text as a row."""
        texts = list(dict.fromkeys(text for example in examples for text in ([example.query] if kind == "query" else example.documents)))
        framed = frame_texts(tokenizer, texts, kind, self.head.settings)
        self.notice_cut(framed)
        return {text: Row(np.array(one.ids), np.zeros(1, np.float32), types=np.array(one.types), extra={"text": _hash(text)}) for text, one in zip(texts, framed, strict=True)}

    def loader(self, units: list[Any], data: DataRequest, seed: int, shuffle: bool) -> UnitLoader:
        positives = min(self.config.positives, max(len(group.positives) for group in units))
        negatives = min(self.config.hard_negatives, max(len(group.negatives) for group in units))

        def refresh(unit: int, epoch: int) -> list[Row]:
            group = units[unit]
            return [group.query, *taken(group.positives, positives, seed, unit, epoch), *taken(group.negatives, negatives, seed, unit, epoch)]

        changes = any(len(group.positives) > positives or len(group.negatives) > negatives for group in units)
        first = [refresh(unit, 0) for unit in range(len(units))]
        return UnitLoader(
            first, units_per_step=data.examples_per_step, seed=seed, pad_id=data.tokenizer.pad_id, group=1 + positives + negatives, shuffle=shuffle, refresh=refresh if changes and shuffle else None
        )

    def item_of(self, example: Ranking) -> dict[str, Any]:
        return {"query": example.query, "documents": example.documents}

    def predictions(self, predictor: Predictor, examples: Sequence[Ranking]) -> list[dict[str, Any]]:
        """What is found in the corpus of all examples' documents; for graded pairs the cosines."""
        if is_similarity([example.grades for example in examples]):
            return super().predictions(predictor, examples)
        pool = Pool(examples)
        model, tokenizer = predictor.model.eval(), predictor.tokenizer
        documents = functional.normalize(embed_texts(model, tokenizer, pool.corpus, prompt="document"), dim=-1)
        queries = functional.normalize(embed_texts(model, tokenizer, list(pool.relevant), prompt="query"), dim=-1)
        number = {query: place for place, query in enumerate(pool.relevant)}
        scores, places = search(documents, queries, pool.depth)
        return pool.predictions(lambda _corpus, _queries, _k: (scores.numpy(), places.numpy()), lambda query, missed: (documents[missed] @ queries[number[query]]).tolist())

    # ---- the loss ----------------------------------------------------------------------------------------------------

    def outputs(self, model: Model, batch: Batch) -> Tensor:
        """[rows, dim] the vectors before they are brought to length one; 0 for empty rows."""
        segments = batch.segments if batch.segments is not None else torch.zeros_like(batch.inputs, dtype=torch.int32)
        lengths = (segments >= 0).sum(1)  # [rows]
        order = lengths.argsort(descending=True, stable=True)[: int((lengths > 0).sum())]
        parts = order.split(batch.micro_rows or len(order))
        read = [self._part(model, batch, segments, rows, int(lengths[rows[0]]), len(parts) > 1) for rows in parts]
        vectors = torch.cat(read)
        return vectors.new_zeros(len(batch.inputs), vectors.shape[1]).index_copy(0, order, vectors)

    def _part(self, model: Model, batch: Batch, segments: Tensor, rows: Tensor, width: int, drop: bool) -> Tensor:
        """[rows, dim] vectors of some rows; ``drop`` forgets the activations until the backward pass."""
        tokens, own = batch.inputs[rows, :width], segments[rows, :width]
        context = {name: value[rows, :width] for name, value in batch.context().items()}

        def read() -> Tensor:
            return wide(model.scores(model(tokens, **context), tokens, own, {}))

        return checkpoint(read, use_reentrant=False) if drop and torch.is_grad_enabled() else read()

    def terms_of(self, outputs: Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        sizes = self.head.settings["dimensions"] if self.head is not None else [outputs.shape[1]]
        measure = self._contrast if self.loss == "contrastive" else self._similarity
        return {"loss": Term(sum(measure(shortened(outputs, size), batch) for size in sizes))}

    def _contrast(self, vectors: Tensor, batch: Batch) -> Tensor:
        """The sum over queries of :func:`contrastive`, for vectors [rows, dim] of length one."""
        roles = batch.extra["role"]
        asked, given = (roles == QUERY).nonzero()[:, 0], (roles >= POSITIVE).nonzero()[:, 0]
        owner = torch.searchsorted(asked, given, right=True) - 1  # [documents] the query that each came with
        texts = batch.extra["text"]
        belongs = matches(texts[asked], texts[given], owner, roles[given] == POSITIVE, self.known)
        losses = contrastive(vectors[asked] @ vectors[given].T / self.config.temperature, owner, roles[given] == POSITIVE, belongs, self.config.symmetric)
        return (losses * batch.weights[asked, 0]).sum()

    def _similarity(self, vectors: Tensor, batch: Batch) -> Tensor:
        asked = (batch.extra["role"] == QUERY).nonzero()[:, 0]
        cosines, grades = (vectors[asked] * vectors[asked + 1]).sum(-1), batch.extra["grade"][asked]
        if self.loss == "cosine":
            return (cosines - (grades - self.low) / (self.high - self.low)).square().sum()
        return cosent(cosines / self.config.temperature, grades) * len(asked)

    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        """[rows] the squared distance of the vectors at length one."""
        return (shortened(first, None) - shortened(second, None)).square().sum(-1)

    def unit_weights(self, batch: Batch) -> Tensor:
        """[rows] so that the rows of a group count one together."""
        filled = (batch.extra["role"] != EMPTY).view(-1, batch.group).to(batch.weights.dtype)
        return (filled / filled.sum(1, keepdim=True)).flatten()


def matches(queries: Tensor, documents: Tensor, owner: Tensor, positive: Tensor, known: dict[int, set[int]]) -> Tensor:
    """[queries, documents] which documents are no negatives of a query: they are its own text, or positives of a query with its text, in
    this batch or (``known``) in another. ``queries`` and ``documents`` are hashes of the texts."""
    kinds, query = queries.unique(return_inverse=True)
    texts, document = documents.unique(return_inverse=True)
    table = texts[None] == kinds[:, None]  # [different queries, different documents]
    table[query[owner[positive]], document[positive]] = True
    place = {text: number for number, text in enumerate(texts.tolist())}
    pairs = [(row, place[text]) for row, kind in enumerate(kinds.tolist()) for text in known.get(kind, ()) if text in place]
    if pairs:
        rows, columns = torch.tensor(pairs, device=table.device).T
        table[rows, columns] = True
    return table[query][:, document]


def contrastive(scores: Tensor, owner: Tensor, positive: Tensor, belongs: Tensor, symmetric: bool = False) -> Tensor:
    """[queries] InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) from scores [queries, documents]: for each positive of a query the
    cross-entropy of choosing it among itself and the negatives, the mean over the query's positives.

    ``owner`` [documents] is each document's query, ``belongs`` [queries, documents] says what is no negative. ``symmetric`` adds the
    choice of the query for a positive, and takes the mean of both directions.
    """
    own = owner[positive]  # [positives]
    right = scores[own, positive.nonzero()[:, 0]]
    wrong = scores.masked_fill(belongs, FAR)
    losses = functional.softplus(wrong.logsumexp(1)[own] - right)
    if symmetric:
        losses = (losses + functional.softplus(wrong[:, positive].logsumexp(0) - right)) / 2
    counts = torch.bincount(own, minlength=len(scores)).clamp(min=1)
    return losses.new_zeros(len(scores)).index_add(0, own, losses / counts[own])


def cosent(cosines: Tensor, grades: Tensor) -> Tensor:
    """log(1 + Σ exp(c_i − c_j)) over the pairs with grade i below grade j: cosines [pairs] in the order of their grades (CoSENT, Su 2022)."""
    apart = (cosines[:, None] - cosines[None, :])[grades[:, None] < grades[None, :]]
    return torch.cat([cosines.new_zeros(1), apart]).logsumexp(0)


def taken(rows: Sequence[Row], count: int, seed: int, unit: int, epoch: int) -> list[Row]:
    """``count`` of the rows, others in every epoch until all were taken; empty rows where there are too few."""
    if len(rows) <= count:
        return [*rows, *([EMPTY_ROW] * (count - len(rows)))]
    order = permutation(len(rows), seed, unit)
    return [rows[int(order[(epoch * count + number) % len(rows)])] for number in range(count)]


def _row(row: Row, role: int, weight: float = 0.0, grade: float = 0.0, source: str = "") -> Row:
    extra = {"text": row.extra["text"], "role": np.int64(role), "grade": np.float32(grade)}
    return Row(row.ids, np.array([weight], np.float32), types=row.types, extra=extra, source=source)


def _hash(text: str) -> np.int64:
    """A number for what a text says: its letters and digits, whatever their case and width."""
    return np.uint64(xxhash.xxh3_64_intdigest(normalised(text).encode("utf-8", "replace"))).astype(np.int64)


EMPTY_ROW = Row(np.zeros(0, np.int64), np.zeros(1, np.float32), extra={"text": np.int64(0), "role": np.int64(EMPTY), "grade": np.float32(0)})
