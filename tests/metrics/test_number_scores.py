"""Correlations and errors against scipy and scikit-learn."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from luban.foundation.errors import DataError
from luban.metrics.regression import correlation_measure, regression
from luban.metrics.resampling import scores


@pytest.mark.parametrize("seed", range(4))
def test_figures_equal_scipy_and_scikit_learn(seed):
    random = np.random.default_rng(seed)
    gold = random.integers(0, 6, 50) / 2 + 1000 * (seed == 3)
    guess = (gold + random.normal(size=50)).round(1)
    found = regression(gold.tolist(), guess.tolist())
    assert found["spearman"].value == pytest.approx(stats.spearmanr(gold, guess).statistic)
    assert found["pearson"].value == pytest.approx(stats.pearsonr(gold, guess).statistic)
    assert found["r2"].value == pytest.approx(sk.r2_score(gold, guess))
    assert found["mse"].value == pytest.approx(sk.mean_squared_error(gold, guess))
    assert found["rmse"].value == pytest.approx(sk.root_mean_squared_error(gold, guess))
    assert found["mae"].value == pytest.approx(sk.mean_absolute_error(gold, guess))
    for name, score in found.items():
        assert score.interval[0] < score.value < score.interval[1], name


def test_interval_of_pearson_agrees_with_fisher():
    random = np.random.default_rng(0)
    gold = random.normal(size=500)
    found = regression(gold, 0.6 * gold + 0.8 * random.normal(size=500))["pearson"]
    middle, half = math.atanh(found.value), 1.96 / math.sqrt(497)
    assert found.interval == pytest.approx((math.tanh(middle - half), math.tanh(middle + half)), abs=0.012)


def test_constants_are_undefined_where_a_correlation_is():
    found = regression([1, 2, 3, 4], [0.1 + 0.2] * 4)
    assert math.isnan(found["spearman"].value) and math.isnan(found["pearson"].value) and found["mse"].value > 0
    found = regression([2, 2, 2], [1, 2, 3])
    assert math.isnan(found["r2"].value) and found["r2"].interval is None
    assert regression([5], [5])["mae"].interval is None


def test_missing_predictions_stay_visible_and_missing_gold_is_an_error():
    found = regression([1, 2, 3, 4], [1, None, math.nan, "x"])
    assert found["invalid_predictions"].value == 0.75 and all(math.isnan(found[name].value) for name in ("spearman", "mse", "mae"))
    for wrong in (None, math.nan, "high", math.inf):
        with pytest.raises(DataError, match="example 2: .* is not a number"):
            regression([1, wrong], [1, 2])


def test_pairs_of_several_documents_are_drawn_together():
    random = np.random.default_rng(1)
    gold, guess = [random.random(3) for _ in range(20)], [random.random(3) for _ in range(20)]
    found = scores(correlation_measure(gold, guess))
    assert found["spearman"].value == pytest.approx(stats.spearmanr(np.concatenate(gold), np.concatenate(guess)).statistic)
    broken = scores(correlation_measure(gold, [np.full(3, math.nan)] * 20))
    assert math.isnan(broken["spearman"].value)
