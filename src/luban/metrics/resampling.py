"""Intervals for any figure, and for the difference of two models, from one idea: how often each example is counted.

A figure is written once, as a function of weights: how often each example was drawn. With every weight 1 it is the figure
itself; with the counts of a draw with replacement it is one bootstrap resample (Efron 1979); with the same draw for two
models their difference is paired (Koehn 2004). So ranks, areas and averages over labels get honest intervals as means do.

Cost is bounded: :func:`resamples_for` lowers the number of resamples where a figure is dear, down to none, and the
signature of each score says how many were drawn (``boot:1000``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from luban.metrics.score import RESAMPLES, Score, signature

WORK = 100_000_000  # examples × cost × resamples that one family of figures may take: a few seconds on one core
FEWEST = 40  # fewer resamples than these say nothing about 2.5 % points
_CHUNK = 2_000_000  # weights held at once: 16 MB
GROUPS = 100  # of the jackknife, at most
_DEFINED = 0.9  # share of resamples in which a figure must be defined for it to have an interval


@dataclass(frozen=True)
class Measure:
    """A family of figures of one set of examples.

    ``values`` maps weights [resamples, examples] (float64, how often each example counts) to figures, name → [resamples];
    NaN where a figure is undefined. ``units`` names every figure's unit, and so fixes which figures there are and their order.
    ``facts`` go into the signature: what decides whether two values may be compared. ``cost`` is the work an example takes,
    in units of a few additions.

    ``jackknife`` is for figures that drawing an example twice would distort, such as the number of different n-grams: groups of
    examples are left out instead, one group at a time (Tukey 1958), and the interval is the value ± 1.96 standard errors.
    """

    values: Callable[[np.ndarray], dict[str, np.ndarray]]
    examples: int
    units: dict[str, str]
    facts: dict[str, object] = field(default_factory=dict)
    cost: float = 1.0
    jackknife: bool = False


def resamples_for(examples: int, cost: float = 1.0, resamples: int = RESAMPLES) -> int:
    """How many resamples a figure can afford: ``resamples`` at most, and 0 where fewer than FEWEST would be."""
    affordable = int(min(resamples, WORK / max(examples * cost, 1.0)))
    return affordable if affordable >= FEWEST and examples >= 2 else 0


def draws(examples: int, resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Weights [chunk, examples] of ``resamples`` draws with replacement; the draws do not depend on the chunk."""
    random = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(examples, 1))
    for start in range(0, resamples, step):
        rows = [np.bincount(random.integers(0, examples, size=examples), minlength=examples) for _ in range(min(step, resamples - start))]
        yield np.stack(rows).astype(np.float64)


def scores(measure: Measure, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Score]:
    """Every figure of a measure with its 95 % interval."""
    return _scores([measure], lambda found: found[0], measure.units, seed, resamples)


def differences(before: Measure, after: Measure, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Score]:
    """``after`` minus ``before``, figure by figure, with paired intervals: the one to judge two models by.

    Only the figures that both have. Raises ValueError where the two were not measured on equally many examples.
    """
    if before.examples != after.examples:
        raise ValueError(f"{before.examples} examples before and {after.examples} after: they cannot be compared in pairs")
    units = {name: unit for name, unit in before.units.items() if name in after.units}
    return _scores([before, after], lambda found: {name: found[1][name] - found[0][name] for name in units}, units, seed, resamples)


def difference(
    before: Sequence[float] | np.ndarray,
    after: Sequence[float] | np.ndarray,
    unit: str = "",
    facts: dict[str, object] | None = None,
    *,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    seed: int = 0,
) -> Score:
    """``after`` minus ``before`` for any figure known example by example, paired.

    ``before`` and ``after`` are [examples] values whose mean is the figure, or [examples, columns] sufficient statistics of
    which ``statistic`` makes the figure: sums [resamples, columns] → [resamples].
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.shape != after.shape:
        raise ValueError(f"shapes {before.shape} before and {after.shape} after: they cannot be compared in pairs")
    first, second = (of_sums("difference", unit, values, statistic, facts) for values in (before, after))
    return differences(first, second, seed)["difference"]


def of_sums(name: str, unit: str, statistics: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray] | None = None, facts: dict[str, object] | None = None) -> Measure:
    """A measure whose figure is made of sums over examples: ``statistics`` [examples, columns]; the mean where no statistic is given."""
    statistics = np.asarray(statistics, np.float64)
    if statistics.ndim == 1:
        statistics = np.stack([statistics, np.ones(len(statistics))], axis=1)
    make = statistic or (lambda sums: ratio(sums[:, 0], sums[:, 1]))
    return Measure(lambda weights: {name: make(weights @ statistics)}, len(statistics), {name: unit}, dict(facts or {}), cost=statistics.shape[1] / 4)


def means(columns: dict[str, np.ndarray], units: dict[str, str], facts: dict[str, object] | None = None) -> Measure:
    """Several means over the same examples: name → [examples] values; a NaN value is left out of its mean.

    So a figure that exists for some examples only (an answerable question's, say) is the mean over those.
    """
    table = np.stack([np.asarray(columns[name], np.float64) for name in units], axis=1)  # [examples, figures]
    present = ~np.isnan(table)
    filled = np.where(present, table, 0.0)

    def values(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = ratio(weights @ filled, weights @ present.astype(np.float64))
        return {name: found[:, place] for place, name in enumerate(units)}

    return Measure(values, len(table), dict(units), dict(facts or {}), cost=max(1.0, table.shape[1] / 4))


def bootstrap_indices(statistic: Callable[[np.ndarray], float], examples: int, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float] | None:
    """95 % percentile interval of anything at all: ``statistic`` gets the indices [examples] of a draw and returns a number.

    For what cannot be written with weights; it is called once a resample, so lower ``resamples`` where it is dear
    (:func:`resamples_for`) and say so in the signature. None for fewer than two examples.
    """
    if examples < 2 or resamples < 1:
        return None
    random = np.random.default_rng(seed)
    return interval(np.array([statistic(random.integers(0, examples, size=examples)) for _ in range(resamples)], np.float64))


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """2.5 % and 97.5 % points of resampled values; None where the figure was undefined in more than a tenth of them."""
    defined = values[np.isfinite(values)]
    if not len(values) or len(defined) < _DEFINED * len(values):
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where there is nothing below."""
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below != 0)


def jackknife_interval(value: float, left_out: np.ndarray) -> tuple[float, float] | None:
    """value ± 1.96 standard errors from the values [groups] with one group left out each."""
    if len(left_out) < 2 or not np.isfinite(left_out).all():
        return None
    error = float(np.sqrt((len(left_out) - 1) / len(left_out) * ((left_out - left_out.mean()) ** 2).sum()))
    return value - 1.96 * error, value + 1.96 * error


def _without_groups(examples: int) -> np.ndarray:
    """Weights [groups, examples]: 1, and 0 for one group of examples after the other (every hundredth example is one group)."""
    groups = min(examples, GROUPS)
    return (np.arange(examples)[None] % groups != np.arange(groups)[:, None]).astype(np.float64)


def _scores(measures: list[Measure], combine: Callable, units: dict[str, str], seed: int, resamples: int) -> dict[str, Score]:
    examples, jackknife = measures[0].examples, measures[0].jackknife
    whole = combine([measure.values(np.ones((1, examples))) for measure in measures])
    if jackknife:
        weights = [_without_groups(examples)] if examples >= 2 else []
        how: dict[str, object] = {"jackknife": min(examples, GROUPS)}
    else:
        count = resamples_for(examples, sum(measure.cost for measure in measures), resamples)
        weights, how = draws(examples, count, seed), {"boot": count}
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in units}
    for chunk in weights:
        found = combine([measure.values(chunk) for measure in measures])
        for name in units:
            drawn[name].append(found[name])
    made = {}
    for name, unit in units.items():
        value, values = float(whole[name][0]), np.concatenate(drawn[name]) if drawn[name] else np.zeros(0)
        spread = (jackknife_interval(value, values) if jackknife else interval(values)) if np.isfinite(value) else None
        made[name] = Score(value, unit, signature(metric=name, **measures[0].facts, **how), spread)
    return made
