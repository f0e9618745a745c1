"""Fitting the baselines of classification and regression: TF-IDF with a linear model, and the majority.

>>> model = fit_linear(["good film", "bad film"], ["yes", "no"])
>>> model.predict(["a good one"])[0]["label"]
'yes'
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

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
        raise DataError(
            "no text has a word or character that the baseline could use",
            "they may be empty, or hold stop words only",
            "look at the data, or use n-grams of characters",
        ) from None
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
                raise DataError(
                    "example {number}: {label!r} is no number to predict", "", "use task classification, or correct the data", number=index + 1, label=label
                )
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
