"""Entities and the relations between them in one pass: multi-head selection (Bekoulis et al. 2018, arXiv:1804.07847).

Tags on words give the entities. Every ordered pair of words has a score for each relation, from a biaffine form; a relation holds between the
first words of its entities. As nearly all pairs have none, the loss on them weighs what is wrong only: ZLPR, with a threshold at 0
(Su et al. 2022, arXiv:2208.02955).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as functional

from luban.examples.reading import ExampleSet
from luban.examples.tasks import TaggedText
from luban.foundation.errors import DataError
from luban.inference.spans import Reading, read_texts
from luban.models.base import Model
from luban.models.heads import Head
from luban.models.own_heads import PAIR_WIDTH, parted
from luban.objectives.base import DataRequest, Objective, Term
from luban.objectives.config import JointRelationConfig, TaggingConfig
from luban.objectives.losses import wide
from luban.objectives.tagging import Tagging, span_labels, tag_rows
from luban.objectives.windowed import window_stride
from luban.tokenizer.alignment import tag_names
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch, Row

_NO_UNIT = -1  # the target of a token at which no word begins


class JointRelation(Tagging):
    """Cross-entropy over the tags of words, and ZLPR over the relations of pairs of words."""

    name = reads = "joint_relation"

    def __init__(self, config: JointRelationConfig):
        super().__init__(TaggingConfig())
        self.relation_weight = config.relation_weight

    def make_head(self, found: ExampleSet, data: DataRequest) -> Head:
        relations = sorted({label for example in found.examples for _, _, label in example.relations})
        if not relations:
            raise DataError("there is no relation to learn in {files}", "every text is without one", "use the objective tagging, or name the column of the relations in mapping", files=", ".join(found.files))
        tags = tag_names(span_labels(found), self.config.scheme)
        self.numbers = {tag: number for number, tag in enumerate(tags)}
        self.relations = {label: number for number, label in enumerate(relations)}
        length = data.sequence_length
        settings = {"maximum_tokens": length, "stride": window_stride(length), "scheme": self.config.scheme, "subwords": "first", "tags": tags, "pair_width": PAIR_WIDTH}
        return Head("pairs", self.name, tuple(relations), settings=settings)

    def metric_labels(self, head: Head) -> list[str]:
        return list(head.labels)

    def rows_of(self, examples: Sequence[TaggedText], tokenizer: Tokenizer) -> list[Row]:
        readings = read_texts(tokenizer, [example.text for example in examples], [example.words for example in examples], self.head.settings)
        made: list[Row] = []
        linked: list[list[tuple[int, int, int]]] = []
        for example, reading in zip(examples, readings, strict=True):
            rows, links = self._linked_rows(example, reading)
            made += rows
            linked += links
        most = max((len(links) for links in linked), default=0)
        for row, links in zip(made, linked, strict=True):
            row.extra["links"] = np.array(links + [(-1, -1, -1)] * (most - len(links)), np.int64).reshape(most, 3)
        return made

    def _linked_rows(self, example: TaggedText, reading: Reading) -> tuple[list[Row], list[list[tuple[int, int, int]]]]:
        """The rows of an example, and for each its relations (place of the head, place of the tail, number)."""
        if not reading.places:
            self.refuse("a text without a word")
            return [], []
        aligned = self.tags_of(example, reading)
        _, weights = tag_rows(reading, aligned.tags, self.numbers)
        links = self._links(example, reading, {*aligned.overlapping, *aligned.lost})
        rows = []
        for number, window in enumerate(reading.windows):
            target = np.full(len(window.ids), _NO_UNIT, np.int64)
            for unit, place in reading.shown[number]:
                target[place] = self.numbers.get(aligned.tags[unit], 0)
            rows.append(Row(np.array(window.ids), weights[number], target, np.array(window.types), source=example.source))
        return rows, links

    def _links(self, example: TaggedText, reading: Reading, untagged: set[int]) -> list[list[tuple[int, int, int]]]:
        """For each window the relations whose entities it shows."""
        ends = [end for _, end in reading.units.offsets]
        links: list[list[tuple[int, int, int]]] = [[] for _ in reading.windows]
        for head, tail, label in dict.fromkeys(map(tuple, example.relations)):
            if label not in self.relations:
                self.notice("relations have a label that no training example has, and are not learned")
                continue
            if {head, tail} & untagged:
                self.notice("relations are not learned with an entity that is not")
                continue
            units = [bisect_right(ends, example.spans[number].start) for number in (head, tail)]
            found = False
            for number, shown in enumerate(reading.shown):
                places = dict(shown)
                if all(unit in places for unit in units):
                    links[number].append((places[units[0]], places[units[1]], self.relations[label]))
                    found = True
            self.notice("relations are not learned: their entities are too far from each other for one window", int(not found))
        return links

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"loss": batch.count, "relations": float(len(batch.inputs))}

    outputs = Objective.outputs  # tags and pairs are no distributions of one kind: nothing for R-Drop and its like to compare

    def terms(self, model: Model, batch: Batch) -> dict[str, Term]:
        scores = model.scores(model(batch.inputs, **batch.context()), batch.inputs, batch.segments, batch.extra)
        tags, pairs = parted(wide(scores), len(self.numbers))
        scored = batch.weights != 0
        nats = functional.cross_entropy(tags[scored], batch.targets[scored], reduction="none")
        units = batch.targets >= 0
        if batch.segments is not None:
            units = units & (batch.segments >= 0)
        return {"loss": Term((nats * batch.weights[scored]).sum()), "relations": Term(pair_loss(pairs, units, batch.extra["links"]).sum(), self.relation_weight)}


def pair_loss(pairs: torch.Tensor, units: torch.Tensor, links: torch.Tensor) -> torch.Tensor:
    """[rows] ZLPR of pair scores [rows, seq, seq, relations]: log(1 + Σ e^score of what does not hold) + log(1 + Σ e^-score of what does).

    ``units`` [rows, seq] are the places at which words begin; ``links`` [rows, most, 3] hold place of the head, place of the tail and relation, or -1.
    """
    rows, seq, _, relations = pairs.shape
    holds = torch.zeros_like(pairs, dtype=torch.bool)
    row, number = (links[..., 0] >= 0).nonzero(as_tuple=True)
    holds[row, links[row, number, 0], links[row, number, 1], links[row, number, 2]] = True
    possible = (units[:, :, None] & units[:, None, :])[..., None]
    wrong = pairs.masked_fill(holds | ~possible, -torch.inf).reshape(rows, -1)
    right = (-pairs).masked_fill(~holds, -torch.inf).reshape(rows, -1)
    zero = pairs.new_zeros(rows, 1)
    return torch.cat([zero, wrong], 1).logsumexp(1) + torch.cat([zero, right], 1).logsumexp(1)
