"""How often, and by how much, a better answer is scored above a worse one."""

from __future__ import annotations

import numpy as np

from luban.metrics.resampling import Measure, means

UNITS = {"preference_accuracy": "", "preference_margin": ""}


def pair_measure(better: np.ndarray, worse: np.ndarray) -> Measure:
    """Of pairs [n]: the share with the better answer above (equal ones are half right), and the mean difference. A pair without scores (NaN) is wrong."""
    known = np.isfinite(better) & np.isfinite(worse)
    right = np.where(known, (better > worse) + 0.5 * (better == worse), 0.0)
    return means({"preference_accuracy": right, "preference_margin": np.where(known, better - worse, np.nan)}, UNITS, {"pairs": "given"})


def labelled_measure(scores: np.ndarray, good: np.ndarray) -> Measure:
    """Of single answers [n]: the share of all pairs of a good and a bad one in which the good one is above (the area under the ROC curve,
    equal ones are half right), and the difference of the means."""
    scores, good = np.asarray(scores, np.float64), np.asarray(good, bool)
    above = (scores[:, None] > scores[None, :]) + 0.5 * (scores[:, None] == scores[None, :])  # [n, n]

    def values(weights: np.ndarray) -> dict[str, np.ndarray]:
        best, worst = weights * good, weights * ~good  # [resamples, n]
        pairs = best.sum(1) * worst.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "preference_accuracy": np.einsum("ri,ij,rj->r", best, above, worst, optimize=True) / pairs,
                "preference_margin": best @ scores / best.sum(1) - worst @ scores / worst.sum(1),
            }

    return Measure(values, len(scores), dict(UNITS), {"pairs": "all"}, cost=float(max(1, len(scores) // 4)))
