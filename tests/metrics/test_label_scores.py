"""Label figures against scikit-learn, calibration against a loop over bins, and what hostile input must give."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from luban.foundation.errors import DataError
from luban.metrics.classification import classification, confusion_matrix, multi_label


def value(found, name):
    return found[name].value


def random_labels(seed, count=60, labels="abcd"):
    random = np.random.default_rng(seed)
    gold = random.choice(list(labels), count, p=np.array([4, 3, 2, 1])[: len(labels)] / sum([4, 3, 2, 1][: len(labels)]))
    guess = np.where(random.random(count) < 0.5, gold, random.choice(list(labels), count))
    table = random.dirichlet(np.ones(len(labels)), count).round(2)
    table[:, -1] = 1 - table[:, :-1].sum(1)  # rounded, so that there are ties
    return gold.tolist(), guess.tolist(), np.abs(table)


@pytest.mark.parametrize("seed", range(6))
def test_label_figures_equal_scikit_learn(seed):
    gold, guess, _ = random_labels(seed)
    found = classification(gold, guess, "abcd")
    assert value(found, "accuracy") == pytest.approx(sk.accuracy_score(gold, guess))
    assert value(found, "balanced_accuracy") == pytest.approx(sk.balanced_accuracy_score(gold, guess))
    assert value(found, "matthews") == pytest.approx(sk.matthews_corrcoef(gold, guess))
    for average in ("micro", "macro", "weighted"):
        precision, recall, f1, _ = sk.precision_recall_fscore_support(gold, guess, average=average, zero_division=0)
        assert [value(found, f"{average}_{what}") for what in ("precision", "recall", "f1")] == pytest.approx([precision, recall, f1])
    assert [value(found, f"f1/{label}") for label in "abcd"] == pytest.approx(sk.f1_score(gold, guess, average=None))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abd")), min_size=1, max_size=12))
def test_macro_averages_over_labels_met_as_scikit_learn_does(pairs):
    gold, guess = zip(*pairs, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = classification(gold, guess, "abcde", seed=1)
        assert value(found, "macro_f1") == pytest.approx(sk.f1_score(gold, guess, average="macro", zero_division=0))
        assert value(found, "matthews") == pytest.approx(sk.matthews_corrcoef(gold, guess))
    assert math.isnan(value(found, "f1/e"))  # known, never met


def test_confusion_matrix_equals_scikit_learn_and_shows_missing_labels():
    gold, guess, _ = random_labels(9)
    matrix, labels = confusion_matrix(gold, guess, "abcd")
    assert labels == list("abcd") and (matrix == sk.confusion_matrix(gold, guess, labels=labels)).all()
    matrix, labels = confusion_matrix(["a", "b"], [None, "z"], ["a"])
    assert labels == ["a", "b", "z", ""] and matrix.tolist() == [[0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("labels", ["ab", "abcd"])
def test_probability_figures_equal_scikit_learn(labels):
    gold, _, table = random_labels(3, labels=labels)
    guess = [labels[row.argmax()] for row in table]
    found = classification(gold, guess, labels, [dict(zip(labels, row, strict=True)) for row in table])
    if labels == "ab":
        assert value(found, "roc_auc") == pytest.approx(sk.roc_auc_score(gold, table[:, 1]))
    else:
        assert value(found, "roc_auc") == pytest.approx(sk.roc_auc_score(gold, table, multi_class="ovr", average="macro", labels=list(labels)))
    assert value(found, "log_loss") == pytest.approx(sk.log_loss(gold, table, labels=list(labels)))
    brier = sk.brier_score_loss(gold, table[:, 1], pos_label="b") if labels == "ab" else sk.brier_score_loss(gold, table, labels=list(labels))
    assert value(found, "brier") == pytest.approx(brier)
    assert value(found, "calibration_error") == pytest.approx(calibration_by_bins(table.max(1), [a == b for a, b in zip(gold, guess, strict=True)]))


def calibration_by_bins(confidence, right, bins=15):
    total = 0.0
    for number in range(bins):
        inside = [(sure, hit) for sure, hit in zip(confidence, right, strict=True) if number / bins < sure <= (number + 1) / bins]
        if inside:
            total += abs(sum(sure for sure, _ in inside) - sum(hit for _, hit in inside))
    return total / len(right)


def test_a_calibrated_model_has_no_error_and_a_boastful_one_its_excess():
    gold = ["a"] * 8 + ["b"] * 2
    assert value(classification(gold, ["a"] * 10, "ab", [{"a": 0.8, "b": 0.2}] * 10), "calibration_error") == pytest.approx(0)
    assert value(classification(gold, ["a"] * 10, "ab", [{"a": 1.0}] * 10), "calibration_error") == pytest.approx(0.2)


def test_interval_of_accuracy_is_that_of_a_proportion():
    gold = ["a"] * 400
    low, high = classification(gold, ["a"] * 300 + ["b"] * 100)["accuracy"].interval
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.006)


def test_broken_probabilities_stay_visible_and_labels_still_count():
    for broken in ({"a": math.nan, "b": 0.5}, {"a": -0.1, "b": 1.1}, {"a": 0.2, "b": 0.2}, {}, None, {"a": None, "b": 1.0}):
        found = classification(["a", "b", "a", "b"], ["a", "b", "b", "b"], "ab", [{"a": 0.9, "b": 0.1}] * 3 + [broken])
        assert value(found, "accuracy") == 0.75 and value(found, "invalid_probabilities") == 0.25
        for name in ("roc_auc", "log_loss", "brier", "calibration_error"):
            assert math.isnan(value(found, name)) and found[name].interval is None
    assert "roc_auc" not in classification(["a"], ["a"], "ab", [None])


def test_unseen_missing_and_single_classes():
    found = classification(["a", "new", "a"], ["a", "a", None], ["a"], [{"a": 1.0}] * 3)
    assert value(found, "accuracy") == pytest.approx(1 / 3) and value(found, "f1/new") == 0
    assert value(found, "log_loss") == pytest.approx(-math.log(np.finfo(float).eps) / 3)
    one = classification(["a"] * 5, ["a"] * 5, "ab", [{"a": 0.7, "b": 0.3}] * 5)
    assert value(one, "accuracy") == 1 and value(one, "macro_f1") == 1 and value(one, "matthews") == 0
    assert math.isnan(value(one, "roc_auc")) and one["roc_auc"].interval is None
    assert classification(["a"], ["b"])["accuracy"].interval is None


def test_unicode_forms_of_a_label_are_one_and_numbers_are_texts():
    assert value(classification(["caf\u00e9", "鲁班"], ["cafe\u0301", "鲁班"]), "accuracy") == 1
    assert value(classification([1, 2], ["1", 2]), "accuracy") == 1


def test_unequal_or_no_examples_are_refused():
    with pytest.raises(DataError, match="1 predictions for 2 examples"):
        classification(["a", "b"], ["a"])
    with pytest.raises(DataError, match="no examples"):
        classification([], [])


@pytest.mark.parametrize("seed", range(4))
def test_multi_label_equals_scikit_learn(seed):
    random = np.random.default_rng(seed)
    labels = list("abcde")
    gold, guess = random.random((40, 5)) < 0.4, random.random((40, 5)) < 0.4
    table = random.random((40, 5)).round(1)
    names = [[[label for label, on in zip(labels, row, strict=True) if on] for row in matrix] for matrix in (gold, guess)]
    found = multi_label(*names, labels, [dict(zip(labels, row, strict=True)) for row in table])
    for average in ("micro", "macro", "weighted"):
        assert value(found, f"{average}_f1") == pytest.approx(sk.f1_score(gold, guess, average=average, zero_division=0))
    assert value(found, "example_f1") == pytest.approx(sk.f1_score(gold, guess, average="samples", zero_division=1))
    assert value(found, "subset_accuracy") == pytest.approx(sk.accuracy_score(gold, guess))
    assert value(found, "hamming_loss") == pytest.approx(sk.hamming_loss(gold, guess))
    assert value(found, "mean_average_precision") == pytest.approx(sk.average_precision_score(gold, table, average="macro"))
    assert value(found, "roc_auc") == pytest.approx(sk.roc_auc_score(gold, table, average="macro"))


def test_multi_label_without_labels_and_with_unknown_ones():
    empty = multi_label([[], []], [[], []], ["a"])
    assert value(empty, "subset_accuracy") == 1 and value(empty, "example_f1") == 1 and math.isnan(value(empty, "micro_f1"))
    found = multi_label([["a", "new"], []], [["a", "a"], ["odd"]], ["a"], [{"a": 0.5}, {"a": math.nan}])
    assert value(found, "micro_f1") == pytest.approx(0.5) and value(found, "invalid_probabilities") == 0.5
    assert math.isnan(value(found, "mean_average_precision"))
