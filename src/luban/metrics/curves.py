"""Areas under curves as functions of weights, so that a resample needs no new sorting.

Ties count as they should: half a win in the ROC area (Mann and Whitney 1947), one threshold in average precision.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from luban.metrics.resampling import ratio

Curve = Callable[[np.ndarray], np.ndarray]  # weights [resamples, examples] → [resamples]


def roc_area(positive: np.ndarray, score: np.ndarray) -> Curve:
    """Area under the ROC curve of one label; NaN where all examples or none are positive. Both arrays are [examples]."""
    order, starts = _tied_groups(score)
    positive = np.asarray(positive, bool)[order]

    def area(weights: np.ndarray) -> np.ndarray:
        sorted_weights = weights[:, order]
        wins, losses = (np.add.reduceat(sorted_weights * side, starts, axis=1) for side in (positive, ~positive))  # [resamples, groups], scores rising
        below = np.cumsum(losses, axis=1) - losses
        return ratio((wins * (below + losses / 2)).sum(1), wins.sum(1) * losses.sum(1))

    return area


def average_precision(positive: np.ndarray, score: np.ndarray) -> Curve:
    """Sum over thresholds of precision times the gain in recall (no interpolation); NaN without positives."""
    order, starts = _tied_groups(-np.asarray(score, np.float64))
    positive = np.asarray(positive, bool)[order]

    def area(weights: np.ndarray) -> np.ndarray:
        sorted_weights = weights[:, order]
        hits = np.add.reduceat(sorted_weights * positive, starts, axis=1)  # [resamples, groups], scores falling
        found, taken = np.cumsum(hits, axis=1), np.cumsum(np.add.reduceat(sorted_weights, starts, axis=1), axis=1)
        return ratio((hits * np.nan_to_num(ratio(found, taken))).sum(1), hits.sum(1))

    return area


def macro(curves: list[Curve], weights: np.ndarray) -> np.ndarray:
    """Mean over the labels for which the area is defined: [resamples]."""
    areas = np.stack([curve(weights) for curve in curves]) if curves else np.full((1, len(weights)), np.nan)
    defined = ~np.isnan(areas)
    return ratio(np.where(defined, areas, 0.0).sum(0), defined.sum(0))


def _tied_groups(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of rising scores, and where each group of equal scores begins in it."""
    score = np.asarray(score, np.float64)
    order = np.argsort(score, kind="stable")
    rising = score[order]
    starts = np.flatnonzero(np.r_[True, rising[1:] != rising[:-1]]) if len(rising) else np.zeros(0, np.int64)
    return order, starts
