"""ROUGE against brute force over subsequences and n-grams, and against values worked out by hand."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.metrics.summarization import common_places, common_subsequence, rouge_l, rouge_lsum, rouge_n, sentences, summaries
from luban.metrics.words import characters, language_of, resolve_language, units

few = st.text("abc", max_size=8)


def subsequences(text, length):
    return {tuple(text[place] for place in places) for places in itertools.combinations(range(len(text)), length)}


def slow_length(first, second):
    return max(length for length in range(min(len(first), len(second)) + 1) if subsequences(first, length) & subsequences(second, length))


@settings(max_examples=150, deadline=None)
@given(few, few)
def test_common_subsequence_equals_brute_force(first, second):
    length = slow_length(first, second)
    places = common_places(first, second)
    assert common_subsequence(first, second) == length == len(places)
    assert places == sorted(set(places)) and tuple(first[place] for place in places) in (subsequences(second, length) if length else {()})


@settings(max_examples=100, deadline=None)
@given(few, few, st.integers(1, 3))
def test_ngram_overlap_equals_crossing_out(first, second, order):
    grams = [[tuple(text[start : start + order]) for start in range(len(text) - order + 1)] for text in (first, second)]
    rest, hits = list(grams[1]), 0
    for gram in grams[0]:
        if gram in rest:
            rest.remove(gram)
            hits += 1
    if first or second:
        expected = [2 * hits / max(len(grams[0]) + len(grams[1]), 1), hits / max(len(grams[0]), 1), hits / max(len(grams[1]), 1)]
        assert list(rouge_n(first, second, order)) == pytest.approx(expected)


def test_examples_of_lin_2004():
    """Section 3: police killed the gunman; ROUGE-L recall 3/4, 2/4, 2/4. Section 3.2: union of w1 w2 and w1 w3 w5 is 4 of 5."""
    gold = units("police killed the gunman")
    for summary, recall in (("police kill the gunman", 3 / 4), ("the gunman kill police", 2 / 4), ("the gunman police killed", 2 / 4)):
        assert rouge_l(units(summary), gold)[2] == recall
    assert rouge_lsum("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5")[2] == 4 / 5


PACKAGE = [  # summary, reference, and what rouge_score 0.1.2 without its stemmer gives: F1 of ROUGE-L; F1, precision, recall of ROUGE-Lsum
    ("the from cat\nit dog from ran and a and away on", "then a barked barked it it ran\ncat mat then cat barked then", 4 / 25, (6 / 25, 1 / 4, 3 / 13)),
    ("then barked\nthe barked it\nthen from and a it mat dog", "and ran the\nran cat mat ran the and a sat\naway barked mat then", 8 / 27, (10 / 27, 5 / 12, 1 / 3)),
    ("the the then\nit mat cat\nit mat on dog away away away barked cat\nthen", "it cat it ran then a\ndog away a\nand from\nthe away dog barked", 14 / 31, (16 / 31, 1 / 2, 8 / 15)),
]


@pytest.mark.parametrize(("summary", "reference", "whole", "joined"), PACKAGE)
def test_values_of_the_rouge_score_package(summary, reference, whole, joined):
    assert rouge_l(units(summary), units(reference))[0] == pytest.approx(whole)
    assert rouge_lsum(summary, reference) == pytest.approx(joined)


def test_chinese_is_scored_by_character_and_mixed_text_by_both():
    found = summaries(["北京今天下雨"], ["今天北京下雨"])
    assert found["rouge_1"].value == 1 and found["rouge_2"].value == pytest.approx(3 / 5) and found["rouge_l"].value == pytest.approx(4 / 6)
    assert units("使用GPT-4模型，Ｆｕｌｌ！café हिन्दी 한국어 かな") == ["使", "用", "gpt", "4", "模", "型", "full", "café", "हिन्दी", "한국어", "か", "な"]
    assert sentences("今天下雨。明天呢？\n好 3.5 ok. Yes") == [list("今天下雨"), list("明天呢"), ["好", "3", "5", "ok"], ["yes"]]


def test_empty_texts_are_decided():
    found = summaries(["", "a b", "", "..."], ["a b", "", "", "a"])
    for name in ("rouge_1", "rouge_2", "rouge_l", "rouge_lsum"):
        assert found[name].value == 0.25, name


def test_the_mean_has_an_interval_and_a_signature():
    found = summaries(["a b c", "a x y", "q r s"] * 20, ["a b c", "a b c", "a b c"] * 20)["rouge_1"]
    assert found.value == pytest.approx((1 + 1 / 3) / 3) and found.interval[0] < found.value < found.interval[1]
    assert "stemmer:no" in found.signature and "units:words+cjk" in found.signature


def test_a_hundred_thousand_characters_are_no_trouble():
    assert common_subsequence(units("春夏秋冬" * 5_000), units("冬秋夏春" * 5_000)) >= 5_000
    summaries(["雨" * 100_000], ["雨天" * 500])


def test_languages_by_script():
    assert language_of(["今天 is 好的 day"]) == "zh" and language_of(["今日はとても良い天気です"]) == "ja"
    assert language_of(["Paris est belle", "你好"]) == "other" and language_of([]) == "other"
    assert resolve_language("zh_CN", []) == "zh" and resolve_language("EN", []) == "en" and resolve_language("auto", ["你好"]) == "zh"
    assert characters("春眠不觉晓， cafe\u0301!") == 9
