"""Weights against indices, pairs against singles, and the bound on cost."""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from luban.metrics.classification import classification_measures
from luban.metrics.curves import average_precision, roc_area
from luban.metrics.ranking import ranking_measures
from luban.metrics.regression import regression_measures
from luban.metrics.resampling import (
    WORK,
    Measure,
    bootstrap_indices,
    difference,
    differences,
    draws,
    interval,
    jackknife_interval,
    means,
    of_sums,
    resamples_for,
    scores,
)
from luban.metrics.score import bootstrap


def repeated(values, weights):
    return np.repeat(np.asarray(values), weights.astype(int))


def test_weights_are_repeated_examples():
    """Every figure of a weighted resample equals the reference on the resample written out."""
    from scipy import stats

    random = np.random.default_rng(5)
    gold, guess, positive, score = random.choice(list("abc"), 40), random.choice(list("abc"), 40), random.random(40) < 0.4, random.random(40).round(1)
    truth, number = random.normal(size=40).round(1), random.normal(size=40).round(1)
    labelled = classification_measures(gold, guess)
    numbers = regression_measures(truth, number)[0]
    for weights in draws(40, 20, seed=2):
        found = [measure.values(weights) for measure in labelled[:2]]
        areas = roc_area(positive, score)(weights), average_precision(positive, score)(weights)
        regressed = numbers.values(weights)
        for row, weight in enumerate(weights):
            a, b = repeated(gold, weight), repeated(guess, weight)
            assert found[0]["matthews"][row] == pytest.approx(sk.matthews_corrcoef(a, b))
            assert found[1]["macro_f1"][row] == pytest.approx(sk.f1_score(a, b, average="macro", zero_division=0))
            assert areas[0][row] == pytest.approx(sk.roc_auc_score(repeated(positive, weight), repeated(score, weight)))
            assert areas[1][row] == pytest.approx(sk.average_precision_score(repeated(positive, weight), repeated(score, weight)))
            assert regressed["spearman"][row] == pytest.approx(stats.spearmanr(repeated(truth, weight), repeated(number, weight)).statistic)
            assert regressed["pearson"][row] == pytest.approx(stats.pearsonr(repeated(truth, weight), repeated(number, weight)).statistic)


def test_both_bootstraps_and_the_one_of_sums_agree():
    values = np.random.default_rng(0).gamma(2, 3, size=300)
    by_weights = scores(of_sums("mean", "", values))["mean"].interval
    by_indices = bootstrap_indices(lambda chosen: values[chosen].mean(), 300)
    by_sums = bootstrap(lambda sums: sums[:, 0] / sums[:, 1], np.stack([values, np.ones(300)], axis=1))
    half = 1.96 * values.std() / math.sqrt(300)
    for low, high in (by_weights, by_indices, by_sums):
        assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), rel=0.03)


def test_draws_repeat_and_do_not_depend_on_the_chunk(monkeypatch):
    whole = np.concatenate(list(draws(50, 30, seed=4)))
    monkeypatch.setattr("luban.metrics.resampling._CHUNK", 120)
    assert (np.concatenate(list(draws(50, 30, seed=4))) == whole).all() and (whole.sum(1) == 50).all()
    assert not (whole == np.concatenate(list(draws(50, 30, seed=5)))).all()


def test_paired_difference_is_narrow_where_examples_vary():
    random = np.random.default_rng(1)
    before = random.normal(0, 10, size=80)
    after = before + random.normal(1, 0.5, size=80)
    found = difference(before, after, "points", {"unit": "x"}, seed=3)
    assert found.value == pytest.approx((after - before).mean()) and found.unit == "points" and "unit:x" in found.signature
    assert found.interval[0] > 0 and found.interval[1] - found.interval[0] < 0.4
    assert difference(before, before).interval == (0, 0)
    ratio = difference(np.stack([before, np.full(80, 2.0)], 1), np.stack([after, np.full(80, 4.0)], 1), statistic=lambda sums: sums[:, 0] / sums[:, 1])
    assert ratio.value == pytest.approx(after.sum() / 320 - before.sum() / 160)


def test_difference_covers_the_truth_about_95_times_in_100():
    random = np.random.default_rng(8)
    inside = 0
    for trial in range(200):
        before = random.normal(size=60)
        low, high = difference(before, before + random.normal(0.3, 1, size=60), seed=trial).interval
        inside += low <= 0.3 <= high
    assert 180 <= inside <= 199


def test_differences_of_measures_need_the_same_examples():
    first, second = classification_measures(["a"] * 4 + ["b"] * 4, ["a"] * 8), classification_measures(["a"] * 4 + ["b"] * 4, ["a"] * 4 + ["b"] * 4)
    found = differences(first[0], second[0])
    assert found["accuracy"].value == 0.5 and found["accuracy"].interval[0] > 0
    with pytest.raises(ValueError, match="in pairs"):
        differences(first[0], classification_measures(["a"], ["a"])[0])
    with pytest.raises(ValueError, match="in pairs"):
        difference([1.0], [1.0, 2.0])


def test_cost_is_bounded_and_the_signature_says_so():
    assert resamples_for(1000) == 1000 and resamples_for(1) == 0
    assert resamples_for(10_000, 100) == WORK // 1_000_000 and resamples_for(1_000_000, 1000) == 0
    dear = Measure(lambda weights: {"x": weights.sum(1)}, 100, {"x": ""}, cost=20_000)
    found = scores(dear)["x"]
    assert "boot:50" in found.signature and found.interval == (100, 100)
    found = scores(Measure(lambda weights: {"x": weights.sum(1)}, 100, {"x": ""}, cost=1e9))["x"]
    assert "boot:0" in found.signature and found.interval is None and found.value == 100


def test_undefined_resamples_are_left_out_up_to_a_tenth():
    values = np.arange(100.0)
    values[:5] = math.nan
    low, high = interval(values)
    assert low > 5 and high > 95
    values[:20] = math.nan
    assert interval(values) is None and interval(np.zeros(0)) is None
    assert bootstrap_indices(lambda chosen: 1.0, 1) is None


def test_means_leave_nan_examples_out():
    found = scores(means({"x": [1.0, math.nan, 3.0], "y": [math.nan] * 3}, {"x": "", "y": ""}))
    assert found["x"].value == 2 and math.isnan(found["y"].value) and found["y"].interval is None


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(2).normal(size=100)
    found = scores(Measure(lambda weights: {"m": weights @ values / weights.sum(1)}, 100, {"m": ""}, jackknife=True))["m"]
    half = 1.96 * values.std(ddof=1) / 10
    assert found.interval == pytest.approx((values.mean() - half, values.mean() + half)) and "jackknife:100" in found.signature
    assert jackknife_interval(1.0, np.array([1.0])) is None


def test_scores_are_the_same_again():
    measure = ranking_measures([[3, 1, 2]] * 5 + [[1, 2, 3]] * 5, [[1, 0, 0]] * 10)[0]
    assert scores(measure, seed=7) == scores(measure, seed=7)
