"""What a task model has to beat: answers that need no neural network, fitted to the training data in seconds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from luban.evaluation.ranked_baselines import choose_answers, find_texts, rank_documents
from luban.examples.tasks import Preference, RelationText, TaggedText
from luban.fitting.dictionary import fit_dictionary
from luban.fitting.linear import fit_linear, fit_majority
from luban.fitting.overlap import SentenceOverlap

Row = tuple[str, str, list[dict[str, Any]]]
UNFITTED = ("embedding", "ranking", "choice", "preference")  # tasks with baselines that need no training data


def baselines_of(task: str, known: Sequence[Any], asked: Sequence[Any]) -> list[Row]:
    """(name, "baseline", predictions for ``asked``) of every baseline of a task, fitted to ``known``; none for tasks that have none."""
    if task in ("classification", "multi_label", "regression"):
        return _of_labels(task, [_text(example) for example in known], [example.label for example in known], [_text(example) for example in asked])
    if task == "tagging":
        return [("dictionary", "baseline", fit_dictionary(known).predict([example.text for example in asked]))]
    if task == "relation":
        return _of_labels("classification", [_between(example) for example in known], [example.label for example in known], [_between(example) for example in asked])
    if task == "joint_relation":
        return [("dictionary", "baseline", _triples(known, asked))]
    if task == "question_answering":
        return [("sentence-overlap", "baseline", SentenceOverlap([example.context for example in known]).predict(asked))]
    if task == "embedding":
        return find_texts(asked)
    if task == "ranking":
        return rank_documents(known, asked)
    if task == "choice":
        return choose_answers(known, asked)
    if task == "preference":
        return [("longer", "baseline", [_lengths(example) for example in asked])]
    return []


def _lengths(example: Preference) -> dict[str, Any]:
    """The longer answer is the better one: what a judge who does not read would say."""
    own, other = (sum(len(str(message.get("content") or "")) for message in answer or []) for answer in (example.chosen, example.rejected))
    return {"score": float(own)} if example.rejected is None else {"scores": [float(own), float(other)]}


def _of_labels(task: str, texts: Sequence[Any], labels: Sequence[Any], asked: Sequence[Any]) -> list[Row]:
    return [
        ("majority", "baseline", fit_majority(texts, labels, task=task).predict(asked)),
        ("tfidf-linear", "baseline", fit_linear(texts, labels, task=task).predict(asked)),
    ]


def _text(example: Any) -> Any:
    return (example.text, example.pair) if example.pair else example.text


def _between(example: RelationText) -> tuple[str, str]:
    """The words between the entities, with what comes first; and the whole sentence."""
    first, second = sorted((example.head, example.tail), key=lambda span: (span.start, span.end))
    order = "headfirst" if first is example.head else "tailfirst"
    between = example.text[first.end : second.start] if first.end < second.start else ""
    return f"{order} {between} {order}", example.text


def _triples(known: Sequence[TaggedText], asked: Sequence[TaggedText]) -> list[dict[str, Any]]:
    """Entities from a dictionary, and between two of them the relation that pairs of their labels have more often than none."""
    pairs: Counter[tuple[str, str]] = Counter()
    related: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for example in known:
        labels = [span.label for span in example.spans]
        pairs.update((head, tail) for i, head in enumerate(labels) for j, tail in enumerate(labels) if i != j)
        for head, tail, label in example.relations:
            related[labels[head], labels[tail]][label] += 1
    best = {pair: min(counts, key=lambda name: (-counts[name], name)) for pair, counts in related.items()}
    best = {pair: label for pair, label in best.items() if related[pair][label] * 2 > pairs[pair]}
    found = fit_dictionary(known).predict([example.text for example in asked])
    for one in found:
        one["triples"] = [
            {"head": head, "tail": tail, "label": best[head["label"], tail["label"]]}
            for head in one["spans"] for tail in one["spans"] if head is not tail and (head["label"], tail["label"]) in best
        ]  # fmt: skip
    return found
