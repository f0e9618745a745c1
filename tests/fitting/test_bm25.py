"""BM25 against its formula written out, its order and ties, and Chinese without spaces."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from luban.fitting.bm25 import BM25, terms


def brute(documents: list[list[str]], query: list[str], k1: float, b: float) -> list[float]:
    average = sum(map(len, documents)) / len(documents)
    found = []
    for document in documents:
        score = 0.0
        for term in query:
            n = sum(term in other for other in documents)
            often = document.count(term)
            if not often:
                continue
            score += math.log(1 + (len(documents) - n + 0.5) / (n + 0.5)) * often * (k1 + 1) / (often + k1 * (1 - b + b * len(document) / average))
        found.append(score)
    return found


@pytest.mark.parametrize("k1, b", [(1.2, 0.75), (0.9, 0.4), (2.0, 0.0), (1.5, 1.0)])
def test_scores_against_the_formula(k1, b):
    rng = random.Random(1)
    words = ["apple", "river", "stone", "cloud", "horse", "candle"]
    documents = [[rng.choice(words) for _ in range(rng.randint(0, 12))] for _ in range(15)]
    index = BM25([" ".join(document) for document in documents], k1=k1, b=b)
    for _ in range(10):
        query = [rng.choice([*words, "unseen"]) for _ in range(rng.randint(0, 5))]
        assert index.scores(" ".join(query)).tolist() == pytest.approx(brute(documents, query, k1, b))


def test_search_is_the_sorted_scores_and_the_first_of_equals_first():
    documents = ["apple", "river apple", "stone", "apple", "river river"]
    index = BM25(documents)
    scores, numbers = index.search(["apple", "river", "nothing"], 3)
    assert numbers.tolist() == [[0, 3, 1], [4, 1, 0], [0, 1, 2]]
    for query, own, places in zip(["apple", "river", "nothing"], scores, numbers, strict=True):
        assert own.tolist() == index.scores(query)[places].tolist()
    assert index.search(["apple"], 99)[0].shape == (1, 5)


def test_chinese_and_case_and_punctuation():
    assert terms("The KING, 王国!") == ["the", "king", "王", "国", "王国"]
    assert terms("我们在北京", "characters") == ["我", "们", "在", "北", "京"] and "北京" in terms("我们在北京", "jieba")
    index = BM25(["他住在北京。", "他住在东京。", "She lives in Peking."])
    assert np.argmax(index.scores("北京在哪里？")) == 0 and np.argmax(index.scores("peking")) == 2


def test_empty_things():
    assert BM25([]).search(["a"], 3)[0].shape == (1, 0)
    assert BM25(["", "."]).scores("a").tolist() == [0, 0]
