"""What a task costs nothing to reach: the majority, a linear model, a dictionary, BM25, the first sentence, the nearest training example."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from luban.examples.tasks import RelationText
from luban.fitting.bm25 import BM25
from luban.fitting.dictionary import fit_dictionary
from luban.fitting.linear import fit_linear, fit_majority
from luban.fitting.overlap import SentenceOverlap
from luban.objectives.retrieval import Pool

Predictions = list[dict[str, Any]]


def baselines(task: str, training: Sequence[Any], test: Sequence[Any]) -> dict[str, Predictions]:
    """Predictions on the test examples by the name of each baseline, in the form that the task's metrics read."""
    if task in ("classification", "multi_label", "regression", "relation"):
        labels = [example.label for example in training]
        kind = "classification" if task == "relation" else task
        given, asked = ([_text(example) for example in part] for part in (training, test))
        majority = fit_majority(given, labels, task=kind).predict(asked)
        return {"mean" if task == "regression" else "majority": majority, "TF-IDF + linear": fit_linear(given, labels, task=kind).predict(asked)}
    if task == "tagging":
        return {"dictionary": fit_dictionary(training).predict([example.text for example in test])}
    if task == "question_answering":
        return {"sentence overlap": SentenceOverlap([example.context for example in training]).predict(test)}
    if task == "choice":
        return {"first": [{"choice": 0} for _ in test], "BM25": [{"choice": int(BM25(example.choices).scores(example.prompt).argmax())} for example in test]}
    if task == "ranking":
        return {"BM25": [{"scores": BM25(example.documents).scores(example.query).tolist()} for example in test]}
    if task == "embedding":
        return {"BM25": _retrieved(test)}
    nearest = BM25([example.input for example in training]).search([example.input for example in test], 1)[1][:, 0]
    found = {"nearest training example": [{"text": training[number].output} for number in nearest]}
    if task == "summarization":
        found["first sentence"] = [{"text": re.split(r"(?<=[。！？；.!?;])", example.input)[0]} for example in test]
    return found


def _text(example: Any) -> Any:
    if isinstance(example, RelationText):
        (first, second), text = sorted([example.head, example.tail], key=lambda span: span.start), example.text
        order = "head tail" if example.head.start <= example.tail.start else "tail head"
        return f"{order} {text[first.end : second.start]} {text}"
    return (example.text, example.pair) if example.pair else example.text


def _retrieved(test: Sequence[Any]) -> Predictions:
    pool = Pool(test)
    index = BM25(pool.corpus)
    return pool.predictions(lambda corpus, queries, k: index.search(queries, k), lambda query, numbers: index.scores(query)[numbers])
