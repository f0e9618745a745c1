"""Ranking figures against scikit-learn and against plain loops."""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from luban.examples.tasks import Ranking
from luban.foundation.errors import DataError
from luban.metrics.ranking import click_measures, ndcg, rankings
from luban.metrics.resampling import scores
from luban.metrics.tasks import greater_is_better, score_task


def made(seed, ties=False, queries=30):
    random = np.random.default_rng(seed)
    sizes = random.integers(2, 12, queries)
    scores = [random.random(size).round(1 if ties else 9).tolist() for size in sizes]
    grades = [random.integers(0, 4, size) * (random.random(size) < 0.5) for size in sizes]
    for grade in grades:
        grade[random.integers(len(grade))] = 1
    return scores, [grade.tolist() for grade in grades]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("cut", [1, 3, 10])
def test_ndcg_equals_scikit_learn_with_and_without_ties(cut, ties):
    scores, grades = made(1, ties)
    expected = np.mean([sk.ndcg_score([grade], [score], k=cut) for score, grade in zip(scores, grades, strict=True)])
    assert rankings(scores, grades, (cut,))[f"ndcg@{cut}"].value == pytest.approx(expected)
    exponential = np.mean([sk.ndcg_score([[2**one - 1 for one in grade]], [score], k=cut) for score, grade in zip(scores, grades, strict=True)])
    assert rankings(scores, grades, (cut,), gain="exponential")[f"ndcg@{cut}"].value == pytest.approx(exponential)


def by_loop(scores, grades, cut):
    rows = []
    for score, grade in zip(scores, grades, strict=True):
        order = sorted(range(len(score)), key=lambda place: (-score[place], grade[place]))
        relevant = [grade[place] > 0 for place in order]
        first = relevant.index(True) + 1
        precisions = [sum(relevant[: place + 1]) / (place + 1) for place, hit in enumerate(relevant) if hit]
        rows.append([1 / first, 1 / first if first <= cut else 0, sum(relevant[:cut]) / sum(relevant), first <= cut, sum(precisions) / len(precisions)])
    return np.mean(np.array(rows, float), axis=0)


@pytest.mark.parametrize("ties", [False, True])
def test_the_others_equal_a_loop(ties):
    scores, grades = made(2, ties)
    found = rankings(scores, grades, (3, 10))
    assert [found[name].value for name in ("mrr", "mrr@3", "recall@3", "hit@3", "map")] == pytest.approx(list(by_loop(scores, grades, 3)))
    if not ties:
        expected = np.mean([sk.average_precision_score(np.array(grade) > 0, score) for score, grade in zip(scores, grades, strict=True)])
        assert found["map"].value == pytest.approx(expected)


def test_areas_equal_scikit_learn():
    scores, grades = made(3, ties=True)
    found = rankings(scores, grades)
    flat = np.concatenate(grades) > 0
    assert found["auc"].value == pytest.approx(sk.roc_auc_score(flat, np.concatenate(scores)))
    own = [(len(score), sk.roc_auc_score(np.array(grade) > 0, score)) for score, grade in zip(scores, grades, strict=True) if 0 < (np.array(grade) > 0).sum() < len(grade)]
    assert found["grouped_auc"].value == pytest.approx(sum(size * area for size, area in own) / sum(size for size, _ in own))
    assert next(iter(found)) == "ndcg@10" and found["auc"].interval[0] < found["auc"].value < found["auc"].interval[1]


def test_log_loss_of_clicks_equals_scikit_learn():
    random = np.random.default_rng(4)
    given = [random.random(size).tolist() for size in (3, 1, 7)] + [[0.0, 1.0]]
    clicks = [random.integers(0, 2, len(one)).tolist() for one in given[:-1]] + [[1, 0]]  # sure and wrong, both ways
    gold = [Ranking("q", [str(place) for place in range(len(one))], list(map(float, one))) for one in clicks]
    flat, truth = np.concatenate(given), np.concatenate(clicks)
    found = score_task("ranking", [{"scores": one, "probability": True} for one in given], gold)
    assert found["log_loss"].value == pytest.approx(sk.log_loss(truth, flat)) and found["log_loss"].unit == "nats"
    assert found["log_loss"].interval[0] < found["log_loss"].value < found["log_loss"].interval[1] and greater_is_better("log_loss") is False
    assert next(iter(found)) == "ndcg@10" and found["auc"].value == pytest.approx(sk.roc_auc_score(truth, flat))
    halves = scores(click_measures([[0.25, 0.5]], [[0.5, -1]])[0])["log_loss"].value  # a share of clicks; below 0 is no click
    assert halves == pytest.approx(-(0.5 * np.log(0.25) + 0.5 * np.log(0.75) + np.log(0.5)) / 2)


def test_log_loss_is_there_for_probabilities_of_clicks_only():
    gold = [Ranking("q", ["a", "b"], [1.0, 0.0]), Ranking("r", ["c"], [0.0])]
    assert "log_loss" not in score_task("ranking", [{"scores": [2.0, -1.0]}, {"scores": [0.3]}], gold)
    graded = [Ranking("q", ["a", "b"], [3.0, 0.0])]
    assert "log_loss" not in score_task("ranking", [{"scores": [0.9, 0.1], "probability": True}], graded)
    for broken in (None, math.nan, 1.5):
        assert math.isnan(score_task("ranking", [{"scores": [0.5, broken], "probability": True}, {"scores": [0.5]}], gold)["log_loss"].value)
    assert math.isnan(score_task("ranking", [{"scores": [0.5, 0.5], "probability": True}, {}], gold)["log_loss"].value)
    assert click_measures([[]], [[]]) == []


def test_a_constant_model_gains_nothing_by_the_order_of_the_file():
    found = rankings([[0.5] * 4] * 6, [[1, 0, 0, 0]] * 6, (1, 4))
    assert found["hit@1"].value == 0 and found["mrr"].value == 0.25 and found["auc"].value == 0.5
    assert found["ndcg@1"].value == pytest.approx(0.25)  # the mean over the orders


def test_hostile_queries():
    found = rankings([[1.0, 2.0], [], [math.nan, 0.0], [None, 1.0]], [[0, 0], [], [1, 0], [2, -3]])
    assert found["queries_without_relevant"].value == 0.5 and found["invalid_scores"].value == pytest.approx(2 / 6)
    assert found["mrr"].value == 0.5 and found["hit@1"].value == 0
    nothing = rankings([[1.0]], [[0]])
    assert math.isnan(nothing["ndcg@10"].value) and math.isnan(nothing["auc"].value)
    assert ndcg(np.array([1.0, 0.0]), np.array([1.0, -5.0]), [10]) == [1]
    with pytest.raises(DataError, match="query 1 has 2 documents and 1 scores"):
        rankings([[1.0]], [[1, 0]])
    with pytest.raises(DataError, match="no examples"):
        rankings([], [])
