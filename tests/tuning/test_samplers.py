"""Each sampler and pruner does what its name says: on a function whose optimum is known, and on curves whose fate the papers tell."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from tuning_lab import sorter

from luban.tuning import study as studies
from luban.tuning.cma_es import from_unit, to_unit
from luban.tuning.problem import Problem, read_problem
from luban.tuning.study import TrialState, next_claim, open_study
from luban.tuning.trial import Order, Pruned, Watcher

PENALTY, FEATURES = "sorter.linear.regularisation", "sorter.linear.maximum_features"
SPACES = {"regularisation": {"search": [0.001, 1000.0], "scale": "log"}, "maximum_features": {"search": [100, 900], "step": 10}}


def distance(drawn: dict) -> float:
    """Zero at a penalty of 20 and 700 features; long in one direction, so that the spaces must be moved in together."""
    penalty, features = math.log10(drawn[PENALTY] / 20), (drawn[FEATURES] - 700) / 100
    return (penalty + features) ** 2 + 0.05 * (penalty - features) ** 2


def searched(problem: Problem, count: int, value_of: Callable[[dict], float] = distance) -> list[tuple[dict, float]]:
    """A search by one process until there are ``count`` trials: what was drawn, and its value."""
    study = open_study(problem)
    while len(study.get_trials(deepcopy=False)) < count or any(trial.state == TrialState.RUNNING for trial in study.get_trials(deepcopy=False)):
        claim = next_claim(problem, study, 1, True)
        if claim is None:
            break
        study.tell(claim.number, value_of(claim.drawn))
        claim.drop()
    return [(trial.params, trial.value) for trial in study.get_trials(deepcopy=False)]


# ------------------------------------------------------------------------------------------------------- samplers


def test_cma_es_comes_closer_than_chance(tmp_path):
    found = {}
    for sampler in ("cma_es", "random"):
        problem = read_problem(sorter(tmp_path, SPACES, sampler=sampler, trials=42, startup=4, metric="loss"), out=tmp_path / sampler)
        found[sampler] = searched(problem, 42)
    values = {sampler: [value for _, value in trials] for sampler, trials in found.items()}
    assert values["cma_es"][:4] == values["random"][:4]
    assert np.mean(values["cma_es"][-12:]) < np.mean(values["cma_es"][:12]) / 5 and np.mean(values["cma_es"][-12:]) < np.mean(values["random"][-12:]) / 5
    journal = (tmp_path / "cma_es/tune/study.journal").read_text()
    attributes = {name for line in journal.splitlines() for kind in ("user_attr", "system_attr") for name in json.loads(line).get(kind, {})}
    assert attributes == {"machine", "generation"}  # numbers that anyone may send, and no pickle
    upward = read_problem(sorter(tmp_path, SPACES, sampler="cma_es", trials=42, startup=4, metric="accuracy"), out=tmp_path / "upward")
    assert [drawn for drawn, _ in searched(upward, 12, lambda drawn: -distance(drawn))] == [drawn for drawn, _ in found["cma_es"][:12]]


@pytest.mark.parametrize("sampler", ["tpe", "cma_es", "random", "grid"])
def test_a_search_that_was_killed_draws_what_it_would_have_drawn(sampler, tmp_path):
    spaces = {**SPACES, "model": {"choice": ["logistic", "centroid"]}}
    path = sorter(tmp_path, spaces, sampler=sampler, trials=14, startup=4, metric="log_loss")
    whole = searched(read_problem(path, out=tmp_path / "whole"), 14)
    problem = read_problem(path, out=tmp_path / "parts")
    searched(problem, 9)
    claim = next_claim(problem, open_study(problem), 1, True)
    claim.drop()  # as the system does when a process dies
    assert searched(read_problem(path, out=tmp_path / "parts"), 14) == whole and claim.number == 9 and claim.drawn == whole[9][0]
    assert all(0.001 <= drawn[PENALTY] <= 1000 and drawn[FEATURES] in range(100, 901, 10) and drawn["sorter.linear.model"] in spaces["model"]["choice"] for drawn, _ in whole)
    other = read_problem(sorter(tmp_path, spaces, sampler=sampler, trials=14, metric="log_loss"), out=tmp_path / "other")
    study = open_study(other)
    assert (next_claim(other, study, 2, True).drawn == whole[0][0]) == (sampler == "grid")  # another seed


def test_cma_es_moves_one_number_and_what_all_trials_have(tmp_path):
    """A choice with a space of its own is drawn at random; of a single space there is a distribution too."""
    spaces = {"regularisation": SPACES["regularisation"], "words": {"choice": [1, 2]}}
    problem = read_problem(sorter(tmp_path, spaces, sampler="cma_es", trials=30, startup=3, metric="loss"))
    found = searched(problem, 30, lambda drawn: math.log10(drawn[PENALTY] / 20) ** 2)
    assert np.mean([value for _, value in found[-8:]]) < 0.8 and len({drawn["sorter.linear.words"] for drawn, _ in found[-12:]}) == 2


def test_a_place_in_a_space_and_its_value_are_one():
    spaces = [FloatDistribution(0.001, 1000.0, log=True), FloatDistribution(-1.0, 3.0), FloatDistribution(0.0, 1.0, step=0.25), IntDistribution(1, 41, step=4), IntDistribution(1, 1000, log=True)]
    for space in spaces:
        drawn = [from_unit(share, space) for share in np.linspace(0, 1, 3301)]
        assert drawn[0] == pytest.approx(space.low) and drawn[-1] == pytest.approx(space.high) and all(space._contains(space.to_internal_repr(value)) for value in drawn)
        assert drawn == sorted(drawn) and [from_unit(to_unit(value, space), space) for value in drawn[::50]] == pytest.approx(drawn[::50])
        if space.step is not None and not space.log:  # every value is as likely as the next
            shares = Counter(drawn).values()
            assert max(shares) - min(shares) <= 2
    assert to_unit(1.0, spaces[0]) == pytest.approx(0.5)


# -------------------------------------------------------------------------------------------------------- pruners


def trained(problem: Problem, curves: Iterator[list[float]]) -> list[tuple[int, str]]:
    """Trials with these values at their validations, one after the other: how many validations each saw, and how it ended."""
    study, ends = open_study(problem), []
    for curve in curves:
        claim = next_claim(problem, study, 1, True)
        watcher = Watcher(problem, Order(problem.to_json(), claim.number, claim.drawn))
        state, seen = TrialState.COMPLETE, 0
        try:
            for seen, value in enumerate(curve, 1):
                watcher._report(seen, value, whole=seen == len(curve))
        except Pruned:
            state = TrialState.PRUNED
        study.tell(claim.number, curve[seen - 1] if state == TrialState.COMPLETE else None, state=state)
        claim.drop()
        ends.append((seen, state.name.lower()))
    return ends


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_median_pruner_ends_what_is_worse_than_half(direction, tmp_path):
    sign = -1 if direction == "maximize" else 1
    problem = read_problem(sorter(tmp_path, SPACES, pruner="median", grace=2, trials=9, metric="loss", direction=direction))
    curves = [[2.0] * 4, [1.0] * 4, [1.6] * 4, [1.4] * 4, [9.0, 1.2, 1.2, 1.2], [1.1, 1.1, 1.1, 9.0], [1.0, 1.0, 9.0, 9.0]]
    ends = trained(problem, ([sign * value for value in curve] for curve in curves))
    # two complete ones to compare with, whatever they say; then the median of 1 and 2; then its best so far counts, and one that is whole is whole
    assert ends == [(4, "complete"), (4, "complete"), (2, "pruned"), *[(4, "complete")] * 4]


def test_asha_halves_at_its_rungs_and_does_not_prune_what_is_whole(tmp_path):
    problem = read_problem(sorter(tmp_path, SPACES, pruner="asha", reduction=2, trials=9, metric="loss"))
    curves = [[1.0] * 4, [3.0] * 4, [0.9, 2.0, 2.0, 2.0], [0.8, 0.8, 0.8, 9.0], [0.95] * 4]
    # rungs at 1, 2 and 4: the third is among the better half at 1 and not at 2; the fourth is the worst at 4, its end; the fifth is third of five at 1
    assert trained(problem, iter(curves)) == [(4, "complete"), (1, "pruned"), (2, "pruned"), (4, "complete"), (1, "pruned")]


@pytest.mark.parametrize(("validations", "brackets"), [(9, {1: 9, 3: 5, 9: 3}), (8, {1: 3, 3: 2})])
def test_hyperbands_brackets_have_the_budgets_of_the_paper(validations, brackets, tmp_path, monkeypatch):
    """Trials each worse than all before end at the first rung of their bracket; of a bracket that begins with the whole budget all are complete.

    Li et al., algorithm 1, for R validations and a reduction of 3: s from floor(log3 R) to 0, ceil((s_max + 1) * 3^s / (s + 1)) trials from R / 3^s on.
    """
    monkeypatch.setattr(studies, "study_name", lambda problem: "brackets")  # it decides who is in which
    count = 44
    problem = read_problem(sorter(tmp_path, SPACES, sampler="random", pruner="hyperband", trials=count, metric="loss"))
    ends = trained(problem, ([float(number)] * validations for number in range(count)))
    assert ends[0] == (validations, "complete")  # until one is whole, nobody knows how long that is
    later = Counter(seen for seen, _ in ends[8:])
    assert set(later) == set(brackets) and all(state == ("complete" if seen == validations else "pruned") for seen, state in ends)
    for rung, share in brackets.items():
        assert abs(later[rung] / (count - 8) - share / sum(brackets.values())) < 0.13
