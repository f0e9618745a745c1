"""Fitting the baselines of classification, regression and tagging: TF-IDF with a linear model, the majority, a dictionary.

>>> model = fit_linear(["good film", "bad film"], ["yes", "no"])
>>> model.predict(["a good one"])[0]["label"]
'yes'
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from luban.examples.tasks import Span, TaggedText
from luban.fitting.linear_model import Features, LinearModel, Text
from luban.foundation.console import warn
from luban.foundation.errors import DataError, missing_extra

_DENSE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7a3]")
_DENSE_CHARACTERS = 3  # n-grams of characters where texts have no spaces
_CENTROID_SHARPNESS = 10.0  # of the cosines before they are made to sum to one


def fit_linear(
    texts: Sequence[Text],
    labels: Sequence[Any],
    *,
    task: str = "classification",
    model: str = "logistic",
    features: Features | None = None,
    maximum_features: int = 200_000,
    regularisation: float = 1.0,
) -> LinearModel:
    """Fit TF-IDF with logistic regression (least squares for numbers) or the nearest class centre.

    ``texts``: texts or pairs of texts. ``labels``: a class, a list of classes (multi_label), or a number for each; None where unknown:
    such examples are left out and counted. One class only gives the model that always says it. ``regularisation`` is the weight of
    the squared coefficients relative to the summed loss. Raises DataError when there is nothing to fit or a label is of the wrong kind.
    """
    texts, labels = _labelled(texts, labels, task)
    if features is None:
        features = Features(characters=automatic_characters(texts))
    names = sorted({str(name) for label in labels for name in (label if task == "multi_label" else [label])}) if task != "regression" else []
    if task == "classification" and len(names) < 2:
        warn("only one class in the training data ({label}): the model always says it", label=names[0])
        return fit_majority(texts, labels, task=task)
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise missing_extra("scikit-learn", "tasks") from None
    vectorizer = TfidfVectorizer(analyzer=features, sublinear_tf=True, max_features=maximum_features)
    try:
        table = vectorizer.fit_transform(texts)  # sparse [texts, features]
    except ValueError:
        raise DataError("no text has a word or character that the baseline could use", "they may be empty, or hold stop words only", "look at the data, or use n-grams of characters") from None
    vocabulary = vectorizer.get_feature_names_out().tolist()
    if task == "regression":
        coefficients, intercept, kind = *_least_squares(table, np.array(labels, np.float64), regularisation), "least_squares"
    elif task == "multi_label":
        coefficients, intercept, kind = *_each_label(table, labels, names, regularisation), "logistic"
    elif model == "centroid":
        coefficients, intercept, kind = *_centroids(table, labels, names), "centroid"
    else:
        coefficients, intercept, kind = *_logistic(table, [names.index(str(label)) for label in labels], regularisation), "logistic"
    return LinearModel(task, kind, names, features, vocabulary, vectorizer.idf_, coefficients, intercept)


def _labelled(texts: Sequence[Text], labels: Sequence[Any], task: str) -> tuple[list[Text], list[Any]]:
    """The examples that have a label of the right kind."""
    if len(texts) != len(labels):
        raise DataError("{texts} texts and {labels} labels do not fit together", texts=len(texts), labels=len(labels))
    kept = [index for index, label in enumerate(labels) if label is not None and label != ""]
    if len(kept) < len(labels):
        warn("{count} of {total} examples have no label and are not fitted", count=len(labels) - len(kept), total=len(labels))
    if not kept:
        raise DataError("there is no labelled example to fit", "", "look at the data's columns (mapping)")
    chosen = [labels[index] for index in kept]
    if task == "regression":
        for index, label in zip(kept, chosen, strict=True):
            if isinstance(label, bool) or not isinstance(label, int | float) or not math.isfinite(label):
                raise DataError("example {number}: {label!r} is no number to predict", "", "use task classification, or correct the data", number=index + 1, label=label)
    if task == "multi_label":
        chosen = [[label] if isinstance(label, str) else list(label) for label in chosen]
    return [texts[index] for index in kept], chosen


def automatic_characters(texts: Sequence[Text]) -> int:
    """Longest n-gram of characters: 3 where most texts are written without spaces, 0 elsewhere."""
    dense = 0
    for text in texts:
        flat = text if isinstance(text, str) else " ".join(text)
        dense += len(_DENSE.findall(flat[:500])) * 3 > len(flat[:500].strip())
    return _DENSE_CHARACTERS if dense * 2 > len(texts) else 0


def _logistic(table: Any, targets: Sequence[int], regularisation: float) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        fitted = LogisticRegression(C=1.0 / regularisation, max_iter=500).fit(table, targets)
    if said:
        warn("the logistic regression did not settle in 500 steps: raise linear.regularisation")
    return fitted.coef_, fitted.intercept_


def _each_label(table: Any, labels: Sequence[Sequence[str]], names: Sequence[str], regularisation: float) -> tuple[np.ndarray, np.ndarray]:
    """One logistic regression a label; a label that all examples have, or none, needs an intercept alone."""
    coefficients, intercept = np.zeros((len(names), table.shape[1])), np.zeros(len(names))
    for row, name in enumerate(names):
        targets = [int(name in {str(item) for item in label}) for label in labels]
        if len(set(targets)) == 1:
            intercept[row] = _log_odds(targets[0] * len(targets), len(targets))
            continue
        one, start = _logistic(table, targets, regularisation)
        coefficients[row], intercept[row] = one[0], start[0]
    return coefficients, intercept


def _least_squares(table: Any, targets: np.ndarray, regularisation: float) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import Ridge

    fitted = Ridge(alpha=regularisation, solver="sparse_cg", tol=1e-6).fit(table, targets)
    return fitted.coef_.reshape(1, -1), np.array([float(fitted.intercept_)])


def _centroids(table: Any, labels: Sequence[Any], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Scores are the cosines with the classes' mean vectors, made sharper (Rocchio 1971)."""
    of = np.array([names.index(str(label)) for label in labels])
    centres = np.stack([np.asarray(table[np.flatnonzero(of == row)].mean(0)).ravel() for row in range(len(names))])
    length = np.linalg.norm(centres, axis=1, keepdims=True)
    return _CENTROID_SHARPNESS * centres / np.where(length > 0, length, 1), np.zeros(len(names))


def fit_majority(texts: Sequence[Text], labels: Sequence[Any], *, task: str = "classification") -> LinearModel:
    """The model that does not look at the text: classes by their frequency, labels that most examples have, the mean number."""
    texts, labels = _labelled(texts, labels, task)
    none = np.zeros(0)
    if task == "regression":
        return LinearModel(task, "majority", [], Features(), [], none, np.zeros((1, 0)), np.array([float(np.mean(labels))]))
    counts = Counter(str(name) for label in labels for name in (dict.fromkeys(label) if task == "multi_label" else [label]))
    names = sorted(counts)
    intercept = np.array([_log_odds(counts[name], len(labels)) if task == "multi_label" else math.log(counts[name] / len(labels)) for name in names])
    return LinearModel(task, "majority", names, Features(), [], none, np.zeros((len(names), 0)), intercept)


def _log_odds(count: int, total: int) -> float:
    """Logit of a share, kept finite as if half an example spoke against it where none does."""
    share = min(max(count, 0.5), total - 0.5) / total
    return math.log(share / (1 - share))


# ----------------------------------------------------------------------------------------------------- tagging


class DictionaryTagger:
    """Tags the words of a dictionary wherever they stand: the longest match from left to right, its most frequent label."""

    def __init__(self, entries: dict[str, str]):
        self.entries = entries
        self._lengths: dict[str, list[int]] = {}
        for entry in entries:
            self._lengths.setdefault(entry[:1], []).append(len(entry))
        self._lengths = {first: sorted(set(lengths), reverse=True) for first, lengths in self._lengths.items()}

    def matches(self, text: str) -> list[tuple[int, int, str]]:
        """(start, end, entry) of the matches; none begins or ends inside a word of letters with spaces around it."""
        found, place = [], 0
        while place < len(text):
            lengths = self._lengths.get(text[place], ())
            length = next((size for size in lengths if text[place : place + size] in self.entries and _is_whole(text, place, place + size)), 0)
            if length:
                found.append((place, place + length, text[place : place + length]))
            place += length or 1
        return found

    def predict(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """``{"spans": [{"start", "end", "label"}]}`` of each text."""
        return [{"spans": [{"start": start, "end": end, "label": self.entries[entry]} for start, end, entry in self.matches(text)]} for text in texts]


def fit_dictionary(examples: Sequence[TaggedText]) -> DictionaryTagger:
    """Every text of a span with its most frequent label, where it has a span more often than none. Raises DataError without a span."""
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        for span in example.spans:
            if example.text[span.start : span.end].strip():
                labels[example.text[span.start : span.end]][span.label] += 1
    if not labels:
        raise DataError("the examples hold no span to learn from", "", "look at the data's columns (mapping)")
    everything = DictionaryTagger({entry: min(counts, key=lambda name: (-counts[name], name)) for entry, counts in labels.items()})
    seen, tagged = Counter(), Counter()
    for example in examples:
        spans = {(span.start, span.end) for span in example.spans}
        for start, end, entry in everything.matches(example.text):
            seen[entry] += 1
            tagged[entry] += (start, end) in spans
    return DictionaryTagger({entry: label for entry, label in everything.entries.items() if tagged[entry] * 2 > seen[entry]})


def spans_of(answer: dict[str, Any]) -> list[Span]:
    """The spans of a prediction as plain data."""
    return [Span(span["start"], span["end"], span["label"]) for span in answer["spans"]]


def _is_whole(text: str, start: int, end: int) -> bool:
    return not (_joined(text, start) or _joined(text, end))


def _joined(text: str, place: int) -> bool:
    """True where a cut would part a word that is written with spaces around it."""
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    return before.isalnum() and after.isalnum() and not _DENSE.match(before) and not _DENSE.match(after)
