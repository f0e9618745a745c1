"""Figures for numbers: rank and linear correlation, errors, and the share of variance explained.

Ties share their mean rank (Spearman 1904). A correlation with a constant, and R² of constant gold, are undefined: NaN. A prediction
that is missing or NaN makes every figure NaN, and ``invalid_predictions`` is its share; a gold value that is no number is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from luban.foundation.errors import DataError
from luban.metrics.counts import check_pairs
from luban.metrics.resampling import Measure, means, ratio, scores
from luban.metrics.score import Score

_FLAT = 1e-12  # variance, relative to the mean square, below which values are constant


def regression(gold: Sequence[Any], predicted: Sequence[Any], seed: int = 0) -> dict[str, Score]:
    """Spearman, Pearson, R², mean squared error, its root, and mean absolute error."""
    found: dict[str, Score] = {}
    for measure in regression_measures(gold, predicted):
        found |= scores(measure, seed)
    return found


def regression_measures(gold: Sequence[Any], predicted: Sequence[Any]) -> list[Measure]:
    """What :func:`regression` reports."""
    check_pairs(predicted, gold)
    truth = np.array([_number(value) for value in gold])
    guess = np.array([_number(value) for value in predicted])
    if not np.isfinite(truth).all():
        number = int(np.flatnonzero(~np.isfinite(truth))[0])
        raise DataError("example {number}: {value!r} is not a number", "a regression task learns and scores numbers", "correct the value or leave the line out", number=number + 1, value=gold[number])
    ranked = _rank_correlation(truth, guess)

    def values(weights: np.ndarray) -> dict[str, np.ndarray]:
        total = weights.sum(1)
        squared = ratio(weights @ (truth - guess) ** 2, total)
        spread = _moments(weights, truth, truth)
        return {
            "spearman": ranked(weights),
            "pearson": _correlation(weights, truth, guess),
            "r2": np.where(np.isnan(spread), np.nan, 1 - ratio(squared, spread)),
            "mse": squared,
            "rmse": np.sqrt(squared),
            "mae": ratio(weights @ np.abs(truth - guess), total),
        }

    invalid = ~np.isfinite(guess)
    units = {"spearman": "", "pearson": "", "r2": "", "mse": "squared", "rmse": "", "mae": ""}
    if invalid.any():
        nothing = Measure(lambda weights: {name: np.full(len(weights), np.nan) for name in units}, len(truth), units)
        return [nothing, means({"invalid_predictions": invalid.astype(float)}, {"invalid_predictions": ""})]
    return [Measure(values, len(truth), units, cost=12.0)]


def correlation_measure(gold: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> Measure:
    """Spearman and Pearson over the numbers of all examples, drawn example by example: each holds one array or more of them."""
    sizes = np.array([len(one) for one in gold])
    example = np.repeat(np.arange(len(sizes)), sizes)
    truth, guess = np.concatenate(gold).astype(np.float64), np.concatenate(predicted).astype(np.float64)
    units = {"spearman": "", "pearson": ""}
    if not (np.isfinite(truth).all() and np.isfinite(guess).all()):
        return Measure(lambda weights: {name: np.full(len(weights), np.nan) for name in units}, len(sizes), units)
    ranked = _rank_correlation(truth, guess)

    def values(weights: np.ndarray) -> dict[str, np.ndarray]:
        spread = weights[:, example]
        return {"spearman": ranked(spread), "pearson": _correlation(spread, truth, guess)}

    return Measure(values, len(sizes), units, cost=12 * max(1.0, float(sizes.mean())))


def _number(value: Any) -> float:
    try:
        return float(value) if value is not None else math.nan
    except (TypeError, ValueError):
        return math.nan


def _rank_correlation(truth: np.ndarray, guess: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Spearman's correlation as a function of weights: an example drawn w times holds w tied ranks, so nothing is sorted again."""
    ranks = [_weighted_ranks(truth), _weighted_ranks(guess)]
    return lambda weights: _correlation(weights, *(rank(weights) for rank in ranks))


def _weighted_ranks(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) > 0])

    def ranks(weights: np.ndarray) -> np.ndarray:
        sizes = np.add.reduceat(weights[:, order], starts, axis=1)  # [resamples, groups], values rising
        return (np.cumsum(sizes, axis=1) - (sizes - 1) / 2)[:, group]

    return ranks


def _correlation(weights: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation of values [examples] or [resamples, examples]; NaN for a constant."""
    together = _moments(weights, first, second, flat=False)
    return np.clip(ratio(together, np.sqrt(_moments(weights, first, first) * _moments(weights, second, second))), -1, 1)


def _moments(weights: np.ndarray, first: np.ndarray, second: np.ndarray, flat: bool = True) -> np.ndarray:
    """Weighted covariance [resamples]; with ``flat`` NaN where it is zero up to rounding."""
    total = weights.sum(1)
    means = [((weights * values).sum(1) / total)[:, None] for values in (first, second)]
    found = (weights * (first - means[0]) * (second - means[1])).sum(1) / total
    return np.where(found <= _FLAT * np.maximum(means[0][:, 0] ** 2, 1e-300), np.nan, found) if flat else found
