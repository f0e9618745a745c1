"""BM25: documents ranked by the words that they share with a query, the baseline of retrieval and ranking."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from luban.examples.segmentation import words

_HAN_WORD = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
METHODS = ("bigrams", "jieba", "characters")


def terms(text: str, method: str = "bigrams") -> list[str]:
    """The terms of a text, lower case: words, and for Chinese what ``method`` says: pairs of neighbouring characters and single ones,
    words by jieba (extra ``tasks``), or characters."""
    found = words(text, "jieba" if method == "jieba" else "characters")
    if method != "bigrams":
        return found
    pairs = [first + second for first, second in zip(found, found[1:], strict=False) if _HAN_WORD.fullmatch(first) and _HAN_WORD.fullmatch(second)]
    return found + pairs


class BM25:
    """Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond", with weights of terms that stay above 0:
    ln(1 + (N − n + 0.5) / (n + 0.5)) for a term in n of N documents (as Lucene has it)."""

    def __init__(self, documents: Sequence[str], *, k1: float = 1.2, b: float = 0.75, method: str = "bigrams"):
        self.method, self.count = method, len(documents)
        lengths = np.zeros(len(documents))
        places: dict[str, tuple[list[int], list[int]]] = {}
        for number, document in enumerate(documents):
            counted = Counter(terms(document, method))
            lengths[number] = counted.total()
            for term, times in counted.items():
                found = places.setdefault(term, ([], []))
                found[0].append(number)
                found[1].append(times)
        norms = k1 * (1 - b + b * lengths / max(lengths.mean(), 1e-12)) if len(documents) else lengths
        self._weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for term, (numbers, times) in places.items():
            where, often = np.array(numbers), np.array(times, float)
            worth = math.log(1 + (self.count - len(where) + 0.5) / (len(where) + 0.5))
            self._weights[term] = where, worth * often * (k1 + 1) / (often + norms[where])

    def scores(self, query: str) -> np.ndarray:
        """[documents] the score of each; 0 where no term is shared. A term that the query has twice counts twice."""
        found = np.zeros(self.count)
        for term, times in Counter(terms(query, self.method)).items():
            if term in self._weights:
                where, weights = self._weights[term]
                found[where] += times * weights
        return found

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and numbers [queries, min(k, documents)] of the best documents, the first of equals first."""
        k = min(k, self.count)
        scores, numbers = np.zeros((len(queries), k)), np.zeros((len(queries), k), int)
        for row, query in enumerate(queries):
            own = self.scores(query)
            numbers[row] = np.argsort(-own, kind="stable")[:k]
            scores[row] = own[numbers[row]]
        return scores, numbers
