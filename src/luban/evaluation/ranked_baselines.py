"""Baselines where documents are ranked or one of several answers is chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from luban.examples.tasks import Choice, Ranking
from luban.fitting.bm25 import BM25, terms
from luban.metrics.ranking import is_similarity
from luban.objectives.retrieval import Pool

Row = tuple[str, str, list[dict[str, Any]]]
PRIOR = 5.0  # views that a document is credited with at the mean grade of all


def rank_documents(known: Sequence[Ranking], asked: Sequence[Ranking]) -> list[Row]:
    """BM25 over the documents asked about, and each document's own mean grade in the training data, whatever the query (click-through rate)."""
    corpus = list(dict.fromkeys(document for example in asked for document in example.documents))
    numbers, index = {document: number for number, document in enumerate(corpus)}, BM25(corpus)
    found = [index.scores(example.query)[[numbers[document] for document in example.documents]].tolist() for example in asked]
    rows: list[Row] = [("bm25", "baseline", [{"scores": scores} for scores in found])]
    if known:
        rows.append(("document-prior", "baseline", _priors(known, asked)))
    return rows


def _priors(known: Sequence[Ranking], asked: Sequence[Ranking]) -> list[dict[str, Any]]:
    sums: Counter[str] = Counter()
    views: Counter[str] = Counter()
    for example in known:
        for document, grade in zip(example.documents, example.grades, strict=True):
            sums[document] += grade
            views[document] += 1
    mean = sum(sums.values()) / max(views.total(), 1)
    return [{"scores": [(sums[document] + PRIOR * mean) / (views[document] + PRIOR) for document in example.documents]} for example in asked]


def find_texts(asked: Sequence[Ranking]) -> list[Row]:
    """BM25 over the corpus of all documents; for graded pairs the share of words that both have."""
    if is_similarity([example.grades for example in asked]):
        return [("word-overlap", "baseline", [{"scores": [overlap(example.query, document) for document in example.documents]} for example in asked])]
    pool = Pool(asked)
    index = BM25(pool.corpus)
    found = pool.predictions(lambda _corpus, queries, k: index.search(queries, k), lambda query, numbers: index.scores(query)[numbers].tolist())
    return [("bm25", "baseline", found)]


def choose_answers(known: Sequence[Choice], asked: Sequence[Choice]) -> list[Row]:
    """The position that is most often right in the training data, the longest answer, and the answer that shares the most words with the prompt."""
    rows: list[Row] = []
    answers = Counter(example.answer for example in known if example.answer is not None)
    if answers:
        often = min(answers, key=lambda place: (-answers[place], place))
        rows.append(("majority-position", "baseline", [{"choice": min(often, len(example.choices) - 1)} for example in asked]))
    rows.append(("longest-answer", "baseline", [_best([float(len(choice)) for choice in example.choices]) for example in asked]))
    rows.append(("word-overlap", "baseline", [_best([overlap(example.prompt, choice) for choice in example.choices]) for example in asked]))
    return rows


def overlap(first: str, second: str) -> float:
    """The share of the terms of both texts that both have (Jaccard)."""
    one, other = set(terms(first)), set(terms(second))
    return len(one & other) / max(len(one | other), 1)


def _best(scores: list[float]) -> dict[str, Any]:
    """The first of the best."""
    return {"choice": max(range(len(scores)), key=lambda place: (scores[place], -place)), "scores": scores}
