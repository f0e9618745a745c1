"""What embeddings are for, measured: the documents of all examples in one corpus, and what is found in it for each query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from luban.examples.tasks import Ranking

KEPT = 100  # irrelevant documents kept of each ranking at least: enough for figures up to @100
Finder = Callable[[list[str], list[str], int], tuple[np.ndarray, np.ndarray]]  # (corpus, queries, k) to scores and numbers [queries, k]


class Pool:
    """One corpus from the documents of all examples, each text once. A document is relevant to a query that some example with the same
    query grades above 0; a document that is the query itself is left out of its ranking."""

    def __init__(self, examples: Sequence[Ranking]):
        self.examples = examples
        self.corpus = list(dict.fromkeys(document for example in examples for document in example.documents))
        self.numbers = {document: number for number, document in enumerate(self.corpus)}
        self.relevant: dict[str, dict[int, float]] = {}
        for example in examples:
            known = self.relevant.setdefault(example.query, {})
            for document, grade in zip(example.documents, example.grades, strict=True):
                if grade > 0 and document != example.query:
                    known[self.numbers[document]] = max(grade, known.get(self.numbers[document], 0.0))

    @property
    def depth(self) -> int:
        """How many documents are to be found for each query: irrelevant ones enough, all relevant ones, and the query itself."""
        return KEPT + max((len(known) for known in self.relevant.values()), default=0) + 1

    def predictions(self, find: Finder, score: Callable[[str, list[int]], Sequence[float]]) -> list[dict[str, Any]]:
        """For each example ``{"retrieved": [[score, grade], …]}``: what ``find`` ranks highest, and the relevant documents that it does not,
        with the score that ``score(query, numbers)`` gives them."""
        queries = list(self.relevant)
        scores, numbers = find(self.corpus, queries, self.depth)
        made: dict[str, list[list[float]]] = {}
        for query, own, places in zip(queries, scores, numbers, strict=True):
            known = self.relevant[query]
            itself = self.numbers.get(query, -1)
            found = {int(place): float(value) for place, value in zip(places, own, strict=True) if place != itself}
            missed = [place for place in known if place not in found]
            found |= dict(zip(missed, map(float, score(query, missed)), strict=True)) if missed else {}
            made[query] = [[value, known.get(place, 0.0)] for place, value in found.items()]
        return [{"retrieved": made[example.query]} for example in self.examples]
