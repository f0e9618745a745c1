"""Fitting ``L(N) = E + A · N^-alpha`` to a few small models, and what it says of a larger one, with an interval.

Four sizes do not tell three constants apart: the loss that is left at infinite size and the exponent make up for each other. So the exponent has a stated prior, log-normal around what Hoffmann et al. 2022
(arXiv:2203.15556) found, with a factor of two as its deviation; E and A are not negative and otherwise free. The fit is the most probable one. The interval comes from fits to redrawn data: the seeds'
residuals are resampled, each size is moved by what sizes miss the curve, and the prior's centre is drawn from the prior, which makes the fits' spread that of what is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALPHA = 0.34  # the prior's centre, where data is the same at each size (Hoffmann et al.)
GAMMA = 0.31  # and where tokens grow with the size, so that one exponent stands for both of theirs, 0.34 and 0.28
FACTOR = 2.0  # the prior's deviation, as a factor
GRID = np.geomspace(0.02, 1.5, 181)  # exponents that are tried
ROUGH = 1e-3  # share of the loss by which a size misses the curve at the least, as its shape is not just like the others'
ALONE = 5e-3  # deviation between seeds, as a share of the loss, where there is one seed and nothing is known of it
DRAWS = 4000
COVER = 0.9  # of the interval


@dataclass(frozen=True)
class Fitted:
    """The constants, and what they leave unexplained: ``seed_deviation`` between trainings of one size, ``misfit`` of the sizes' means around the curve."""

    E: float
    A: float
    alpha: float
    seed_deviation: float
    misfit: float
    prior: float

    def loss(self, size: float) -> float:
        return self.E + self.A * size**-self.alpha


@dataclass(frozen=True)
class Forecast:
    """The loss of one training of ``size``, and the interval that holds it nine times in ten if the law holds; ``band`` the same for the curve at other sizes."""

    size: float
    loss: float
    low: float
    high: float
    alpha_low: float
    alpha_high: float
    band: list[tuple[float, float, float]]


def fit(points: Sequence[tuple[float, Sequence[float]]], prior: float = ALPHA) -> Fitted:
    """Fit to (size, losses of its seeds). ValueError for fewer than three sizes."""
    if len(points) < 3:
        raise ValueError("a law of three constants needs three sizes at least")
    sizes, means, counts, spread = _summary(points)
    misfit = ROUGH * float(means.mean())
    for _ in range(3):  # how far sizes miss the curve weighs in the fit, and is known after it
        E, A, alpha = (values[0] for values in _solve(sizes, means[None], _weights(counts, spread, misfit), np.array([math.log(prior)])))
        missed = float(np.sum((means - E - A * sizes**-alpha) ** 2)) / max(1.0, len(sizes) - 2.5)  # the prior stands for about half a constant
        misfit = max(ROUGH * float(means.mean()), math.sqrt(max(0.0, missed - float(np.mean(spread**2 / counts)))))
    return Fitted(float(E), float(A), float(alpha), spread, misfit, prior)


def forecast(points: Sequence[tuple[float, Sequence[float]]], fitted: Fitted, size: float, seed: int = 1) -> Forecast:
    """What the law says of one training of ``size`` parameters."""
    rng = np.random.default_rng(seed)
    sizes, means, counts, spread = _summary(points)
    residuals = np.concatenate([(np.asarray(losses) - np.mean(losses)) * math.sqrt(len(losses) / (len(losses) - 1)) for _, losses in points if len(losses) > 1] or [np.zeros(0)])
    drawn = np.empty((DRAWS, len(sizes)))
    for place, count in enumerate(counts.astype(int)):
        noise = rng.choice(residuals, (DRAWS, count)).mean(1) if residuals.size else rng.normal(0, spread / math.sqrt(count), DRAWS)
        drawn[:, place] = means[place] + noise + rng.normal(0, fitted.misfit, DRAWS)
    centres = math.log(fitted.prior) + math.log(FACTOR) * rng.standard_normal(DRAWS)
    E, A, alpha = _solve(sizes, drawn, _weights(counts, spread, fitted.misfit), centres)
    tails = [50 * (1 - COVER), 50 * (1 + COVER)]
    one = E + A * size**-alpha + rng.normal(0, math.hypot(spread, fitted.misfit), DRAWS)
    low, high = np.percentile(one, tails)
    across = np.geomspace(sizes.min() / 1.2, size * 1.2, 41)
    band = [(float(at), *map(float, np.percentile(E + A * at**-alpha, tails))) for at in across]
    best = fitted.loss(size)
    return Forecast(size, best, float(min(low, best)), float(max(high, best)), *map(float, np.percentile(alpha, tails)), band)


def _summary(points: Sequence[tuple[float, Sequence[float]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Sizes, means, numbers of seeds, and the deviation between seeds, pooled over the sizes."""
    sizes = np.array([float(size) for size, _ in points])
    means = np.array([float(np.mean(losses)) for _, losses in points])
    counts = np.array([float(len(losses)) for _, losses in points])
    freedom = float(counts.sum() - len(points))
    if not freedom:
        return sizes, means, counts, ALONE * float(means.mean())
    squares = sum(float(np.sum((np.asarray(losses) - np.mean(losses)) ** 2)) for _, losses in points)
    return sizes, means, counts, math.sqrt(squares / freedom)


def _weights(counts: np.ndarray, spread: float, misfit: float) -> np.ndarray:
    return 1 / (spread**2 / counts + misfit**2)


def _solve(sizes: np.ndarray, means: np.ndarray, weights: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E, A and alpha of each row of ``means`` [draws, sizes], each with the prior's centre (a logarithm) in ``centres`` [draws]: for every exponent of the grid E and A are two linear least squares."""
    scale = math.exp(float(np.mean(np.log(sizes))))
    x = (sizes / scale)[None, :] ** -GRID[:, None]  # [exponents, sizes]
    w = weights / weights.sum()
    mean_x = x @ w
    mean_y = means @ w  # [draws]
    squares_x = (x - mean_x[:, None]) ** 2 @ w
    products = (means - mean_y[:, None]) * w @ (x - mean_x[:, None]).T  # [draws, exponents]
    A = np.maximum(products / squares_x, 0.0)
    E = mean_y[:, None] - A * mean_x
    through = (means * w) @ x.T / (x**2 @ w)  # where E would be negative it is zero
    A, E = np.where(E < 0, through, A), np.maximum(E, 0.0)
    left = means[:, None, :] - E[:, :, None] - A[:, :, None] * x  # [draws, exponents, sizes]
    cost = left**2 @ weights + ((np.log(GRID) - centres[:, None]) / math.log(FACTOR)) ** 2
    best = cost.argmin(1)
    rows = np.arange(len(means))
    alpha = GRID[best]
    return E[rows, best], A[rows, best] * scale**alpha, alpha
