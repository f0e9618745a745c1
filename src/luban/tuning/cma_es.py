"""CMA-ES (Hansen and Ostermeier 2001; the tutorial arXiv:1604.00772): a normal distribution over the spaces that moves and stretches to where trials do well.

The distribution is worked out anew for every trial, from the values of those that ended: so what is written down are numbers that any store holds
and anyone may send (optuna's own sampler keeps a pickle there), and a search that was stopped draws what it would have drawn.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from luban.foundation.errors import missing_extra

GENERATION = "generation"  # what a trial's attribute says of the distribution that it was drawn from
FIRST_DEVIATION = 1 / 6  # of a space's whole width, as optuna's


class CmaEs(BaseSampler):
    """For one trial. The first ``startup`` are drawn at random, choices always."""

    def __init__(self, seed: int, startup: int):
        try:
            import cmaes
        except ImportError:
            raise missing_extra("cmaes", "tune") from None
        self.make, self.seed, self.startup = cmaes.CMA, seed, startup
        self.random = optuna.samplers.RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The numbers that every complete trial has."""
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        known = optuna.search_space.intersection_search_space(complete) if len(complete) >= self.startup else {}
        return {name: space for name, space in sorted(known.items()) if not isinstance(space, CategoricalDistribution) and not space.single()}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        if not search_space:
            return {}
        count = len(search_space)
        optimizer = self.make(mean=np.full(count, 0.5), sigma=FIRST_DEVIATION, bounds=np.array([[0.0, 1.0]] * count), seed=self.seed)
        sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        while len(found := [one for one in complete if one.user_attrs.get(GENERATION) == optimizer.generation]) >= optimizer.population_size:
            points = (np.array([to_unit(one.params[name], space) for name, space in search_space.items()]) for one in found)
            optimizer.tell([(point, sign * one.value) for point, one in zip(points, found[: optimizer.population_size], strict=False)])
        study._storage.set_trial_user_attr(trial._trial_id, GENERATION, optimizer.generation)  # before the values: a process may be killed in between
        return {name: from_unit(float(share), space) for share, (name, space) in zip(optimizer.ask(), search_space.items(), strict=True)}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        return self.random.sample_independent(study, trial, param_name, param_distribution)


def to_unit(value: float, space: Any) -> float:
    """Where a value lies between the ends of its space, from 0 to 1."""
    low, high = _ends(space)
    return (_scaled(value, space) - low) / (high - low)


def from_unit(share: float, space: Any) -> float | int:
    """The value at a place from 0 to 1; of a space in steps the nearest."""
    low, high = _ends(space)
    value = low + (high - low) * share
    value = math.exp(value) if space.log else value
    if space.step is not None:
        value = space.low + round((value - space.low) / space.step) * space.step
    value = min(max(value, space.low), space.high)
    return int(value) if isinstance(space, IntDistribution) else value


def _ends(space: Any) -> tuple[float, float]:
    """Of the whole width: half a step beyond the first and the last value, so that each has an equal share."""
    half = (space.step or 0) / 2
    return _scaled(space.low - half, space), _scaled(space.high + half, space)


def _scaled(value: float, space: Any) -> float:
    return math.log(value) if space.log else value
