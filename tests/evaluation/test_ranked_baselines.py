"""Baselines of ranking, retrieval and multiple choice on planted examples, and retrieval figures against ranking the whole corpus."""

from __future__ import annotations

import numpy as np
import pytest

from luban.evaluation.baselines import baselines_of
from luban.evaluation.ranked_baselines import overlap
from luban.examples.tasks import Choice, Ranking
from luban.fitting.bm25 import BM25
from luban.metrics.ranking import is_similarity, rankings
from luban.metrics.tasks import compare_task, score_task
from luban.objectives.retrieval import Pool


def test_ranking_has_bm25_and_what_is_clicked_anyway():
    known = [Ranking("x", ["often", "never"], [1, 0])] * 4
    asked = [Ranking("the river", ["often clicked river", "stone", "often", "new"], [1, 0, 0, 0])]
    found = dict((name, predictions) for name, _, predictions in baselines_of("ranking", known, asked))
    assert np.argmax(found["bm25"][0]["scores"]) == 0
    mean = 0.5
    assert found["document-prior"][0]["scores"] == pytest.approx([mean, mean, (4 + 5 * mean) / 9, mean])
    assert [name for name, _, _ in baselines_of("ranking", [], asked)] == ["bm25"]


def test_retrieval_figures_are_those_of_ranking_the_whole_corpus():
    rng = np.random.default_rng(0)
    words = ["apple", "river", "stone", "cloud", "horse", "candle", "king", "night"]
    examples = [Ranking(" ".join(rng.choice(words, 2)) + f" q{n}", [" ".join(rng.choice(words, 4)) + f" {n} {k}" for k in range(3)], [2, 1, 0]) for n in range(60)]
    ((name, role, predictions),) = baselines_of("embedding", [], examples)
    found = score_task("embedding", predictions, examples)
    pool = Pool(examples)
    index = BM25(pool.corpus)
    whole = rankings(
        [index.scores(example.query).tolist() for example in examples], [[pool.relevant[example.query].get(place, 0.0) for place in range(len(pool.corpus))] for example in examples], (1, 5, 10, 100)
    )
    assert (name, role) == ("bm25", "baseline") and next(iter(found)) == "ndcg@10"
    for figure in ("mrr@10", "recall@1", "recall@10", "recall@100", "hit@5"):
        assert found[figure].value == pytest.approx(whole[figure].value, abs=1e-12)
    assert found["ndcg@10"].value == pytest.approx(whole["ndcg@10"].value, abs=0.02) and "mrr" not in found and "auc" not in found
    assert "corpus" in found["ndcg@10"].signature and compare_task("embedding", predictions, predictions, examples)["ndcg@10"].value == 0


def test_a_model_without_predictions_finds_nothing():
    examples = [Ranking("a", ["x"], [1]), Ranking("b", ["y", "z"], [1, 0])]
    found = score_task("embedding", [{"retrieved": [[1.0, 1.0], [0.5, 0.0]]}, {}], examples)
    assert found["recall@10"].value <= 1 and found["ndcg@10"].value <= 1


@pytest.mark.parametrize("grades, similar", [([[1.0], [0.0], [1.0]], False), ([[3.5], [1.0]], True), ([[5.0], [0.0], [3.0]], True), ([[2.0, 1.0, 0.0], [1.0, 0.0]], False), ([[1.0]], False)])
def test_degrees_of_likeness_are_told_from_relevance(grades, similar):
    assert is_similarity(grades) is similar


def test_graded_pairs_get_word_overlap():
    examples = [Ranking("a b c", ["a b d"], [2.5]), Ranking("x", ["y"], [0.0])]
    ((name, _, predictions),) = baselines_of("embedding", [], examples)
    assert name == "word-overlap" and [one["scores"] for one in predictions] == [[0.5], [0.0]]
    assert overlap("", "") == 0 and overlap("春风", "春风") == 1


def test_choices():
    known = [Choice("p", ["a", "b", "c"], 2)] * 3 + [Choice("p", ["a", "b"], 0)]
    asked = [Choice("the river is wide", ["short", "a wide river", "a much longer answer than those"], 1), Choice("p", ["a", "b"], 0)]
    found = {name: [one["choice"] for one in predictions] for name, _, predictions in baselines_of("choice", known, asked)}
    assert found == {"majority-position": [2, 1], "longest-answer": [2, 0], "word-overlap": [1, 0]}
    assert "majority-position" not in {name for name, _, _ in baselines_of("choice", [], asked)}
