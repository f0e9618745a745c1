"""Figures for labels: one label a text, or several.

- Labels are compared as text in Unicode form NFC. A gold label that training never saw can only be missed; it counts like any
  other. A prediction without a label (None) is wrong, and belongs to no class.
- Probabilities: ``{label: p}`` a text; labels left out have 0. A row that is no distribution (missing, NaN, negative, or a
  sum further than 0.01 from 1) makes the figures that need probabilities NaN, and ``invalid_probabilities`` says for what share
  of the texts. Where no prediction has probabilities those figures are left out.
- Calibration error: Guo et al. (2017), 15 bins of equal width over the probability of the predicted label.
- Log loss: natural logarithm; a gold label with probability 0 costs -ln(2.2e-16) ≈ 36 nats, as in scikit-learn.
- Brier score: for two labels the squared error of one probability (0 to 1); for more the sum over labels (0 to 2), as scikit-learn has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from luban.metrics.counts import Counted, all_labels, averages, check_pairs, count_items, mean_over, text_of
from luban.metrics.curves import average_precision, macro, roc_area
from luban.metrics.resampling import Measure, means, ratio, scores
from luban.metrics.score import Score

Labels = Sequence[Any]
Probabilities = Sequence[Mapping[str, float] | None]

BINS = 15
_SMALLEST = float(np.finfo(np.float64).eps)
_SUM_SLACK = 0.01


def classification(gold: Labels, predicted: Labels, labels: Sequence[str] = (), probabilities: Probabilities | None = None, seed: int = 0) -> dict[str, Score]:
    """Every figure for one label a text: accuracy, F1 (macro, micro, weighted), Matthews, and those of probabilities."""
    found: dict[str, Score] = {}
    for measure in classification_measures(gold, predicted, labels, probabilities):
        found |= scores(measure, seed)
    return found


def classification_measures(gold: Labels, predicted: Labels, labels: Sequence[str] = (), probabilities: Probabilities | None = None) -> list[Measure]:
    """What :func:`classification` reports, as measures that can also be compared in pairs."""
    check_pairs(predicted, gold)
    gold = [text_of(label) for label in gold]
    predicted = [None if label is None else text_of(label) for label in predicted]
    counted = count_items([[(label,)] if label is not None else [] for label in predicted], [[(label,)] for label in gold], labels)
    facts = {"labels": "met"}
    found = [_agreement(counted, facts), averages(counted, ("macro", "micro", "weighted"), facts, each="")]
    if probabilities is not None and any(probabilities):
        table = probability_table(probabilities, counted.labels)
        found += _of_probabilities(table, gold, predicted, counted.labels)
    return found


def confusion_matrix(gold: Sequence[Any], predicted: Sequence[Any], labels: Sequence[str] = ()) -> tuple[np.ndarray, list[str]]:
    """Counts [gold label, predicted label] and the labels' order. A prediction of None stands in the last column, ``""``, if there is one."""
    check_pairs(predicted, gold)
    known = all_labels(labels, [*gold, *(label for label in predicted if label is not None)])
    columns = known + [""] * any(label is None for label in predicted)
    place = {label: code for code, label in enumerate(known)}
    matrix = np.zeros((len(known), len(columns)), np.int64)
    for truth, guess in zip(gold, predicted, strict=True):
        matrix[place[text_of(truth)], len(known) if guess is None else place[text_of(guess)]] += 1
    return matrix, columns


def _agreement(counted: Counted, facts: dict[str, object]) -> Measure:
    """Accuracy, balanced accuracy and Matthews' coefficient for many classes (Gorodkin 2004)."""

    def values(weights: np.ndarray) -> dict[str, np.ndarray]:
        hits, predicted, gold = counted.totals(weights)
        total = weights.sum(1)
        right, unsaid = hits.sum(1), total - predicted.sum(1)
        spread = (total**2 - (predicted**2).sum(1) - unsaid**2) * (total**2 - (gold**2).sum(1))
        shared = right * total - (predicted * gold).sum(1)
        matthews = np.divide(shared, np.sqrt(np.maximum(spread, 0)), out=np.zeros_like(shared), where=spread > 0)
        return {"accuracy": ratio(right, total), "balanced_accuracy": mean_over(ratio(hits, gold), gold > 0), "matthews": matthews}

    return Measure(values, counted.examples, {"accuracy": "", "balanced_accuracy": "", "matthews": ""}, facts, cost=3.0)


def probability_table(probabilities: Probabilities, labels: Sequence[str]) -> np.ndarray:
    """[examples, labels]; 0 for a label left out, NaN throughout for a prediction without any."""
    place = {label: code for code, label in enumerate(labels)}
    table = np.zeros((len(probabilities), len(labels)))
    for row, given in zip(table, probabilities, strict=True):
        if not given:
            row[:] = np.nan
            continue
        for label, probability in given.items():
            code = place.get(text_of(label))
            if code is not None:
                row[code] = np.nan if probability is None else probability
    return table


def _of_probabilities(table: np.ndarray, gold: list[str], predicted: list[str | None], labels: list[str]) -> list[Measure]:
    place = {label: code for code, label in enumerate(labels)}
    sums = table.sum(1)
    valid = np.isfinite(sums) & (table >= 0).all(1) & (np.abs(sums - 1) <= _SUM_SLACK)
    facts: dict[str, object] = {}
    invalid = means({"invalid_probabilities": (~valid).astype(float)}, {"invalid_probabilities": ""}, facts)
    truth = np.array([place[label] for label in gold])
    one_hot = np.eye(len(labels))[truth]  # [examples, labels]
    if not valid.all():
        units = {"roc_auc": "", "log_loss": "nats", "brier": "", "calibration_error": ""}
        return [Measure(lambda weights: {name: np.full(len(weights), np.nan) for name in units}, len(gold), units, facts), invalid]
    table = table / sums[:, None]
    squared = ((table - one_hot) ** 2).sum(1) / (2 if len(labels) == 2 else 1)
    lost = -np.log(np.maximum(table[np.arange(len(gold)), truth], _SMALLEST))
    curves = [roc_area(truth == code, table[:, code]) for code in range(len(labels))]
    area = Measure(lambda weights: {"roc_auc": macro(curves, weights)}, len(gold), {"roc_auc": ""}, facts | {"classes": "ovr", "average": "macro"}, cost=6.0 * len(labels))
    sure = np.array([table[row, place[label]] if label is not None else 0.0 for row, label in enumerate(predicted)])
    right = np.array([label == truth_label for label, truth_label in zip(predicted, gold, strict=True)], float)
    return [area, means({"log_loss": lost, "brier": squared}, {"log_loss": "nats", "brier": ""}, facts), calibration(sure, right)]


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Measure:
    """Expected calibration error: how far confidence lies from accuracy, bin by bin, weighted by the examples in each."""
    chosen = np.clip(np.ceil(np.asarray(confidence) * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.zeros((len(chosen), bins))
    gaps[np.arange(len(chosen)), chosen] = np.asarray(confidence) - right
    return Measure(lambda weights: {"calibration_error": ratio(np.abs(weights @ gaps).sum(1), weights.sum(1))}, len(chosen), {"calibration_error": ""}, {"bins": bins}, cost=bins / 4)


def multi_label(gold: Sequence[Labels], predicted: Sequence[Labels], labels: Sequence[str] = (), probabilities: Probabilities | None = None, seed: int = 0) -> dict[str, Score]:
    """Every figure for sets of labels: F1 (micro, macro, weighted, by example), subset accuracy, Hamming loss, mean average precision."""
    found: dict[str, Score] = {}
    for measure in multi_label_measures(gold, predicted, labels, probabilities):
        found |= scores(measure, seed)
    return found


def multi_label_measures(gold: Sequence[Labels], predicted: Sequence[Labels], labels: Sequence[str] = (), probabilities: Probabilities | None = None) -> list[Measure]:
    """What :func:`multi_label` reports. A text may have no label; two empty sets agree (F1 by example 1)."""
    check_pairs(predicted, gold)
    truths = [{text_of(label) for label in one or ()} for one in gold]
    guesses = [{text_of(label) for label in one or ()} for one in predicted]
    counted = count_items([{(label,) for label in one} for one in guesses], [{(label,) for label in one} for one in truths], labels)
    facts = {"labels": "met"}
    pairs = list(zip(truths, guesses, strict=True))
    columns = {
        "example_f1": np.array([2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0 for a, b in pairs]),
        "subset_accuracy": np.array([a == b for a, b in pairs], float),
        "hamming_loss": np.array([len(a ^ b) / max(len(counted.labels), 1) for a, b in pairs]),
    }
    found = [averages(counted, facts=facts, each=""), means(columns, {name: "" for name in columns}, facts)]
    if probabilities is not None and any(probabilities):
        found += _of_label_probabilities(probability_table(probabilities, counted.labels), truths, counted.labels)
    return found


def _of_label_probabilities(table: np.ndarray, truths: list[set[str]], labels: list[str]) -> list[Measure]:
    facts = {"average": "macro"}
    valid = np.isfinite(table).all(1)
    units = {"mean_average_precision": "", "roc_auc": ""}
    if not valid.all():
        invalid = means({"invalid_probabilities": (~valid).astype(float)}, {"invalid_probabilities": ""}, facts)
        return [Measure(lambda weights: {name: np.full(len(weights), np.nan) for name in units}, len(table), units, facts), invalid]
    positive = np.array([[label in truth for label in labels] for truth in truths], bool).reshape(len(truths), len(labels))
    areas, precisions = ([curve(positive[:, code], table[:, code]) for code in range(len(labels))] for curve in (roc_area, average_precision))

    def values(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"mean_average_precision": macro(precisions, weights), "roc_auc": macro(areas, weights)}

    return [Measure(values, len(table), units, facts, cost=12.0 * len(labels))]
