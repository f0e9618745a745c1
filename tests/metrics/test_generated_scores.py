"""Variety, repetition and adherence by hand and by brute force; pass@k against exact combinatorics."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.foundation.errors import DataError
from luban.metrics.generation import adherence, generations, pass_at_k, passes, repetition


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from("ab雨"), max_size=9), min_size=1, max_size=6))
def test_distinct_and_repetition_equal_sets(texts):
    found = generations([" ".join(text) for text in texts])
    for order in (1, 2):
        grams = [tuple(text[start : start + order]) for text in texts for start in range(len(text) - order + 1)]
        value = found[f"distinct_{order}"].value
        assert value == pytest.approx(len(set(grams)) / len(grams)) if grams else math.isnan(value)
    for text in texts:
        grams = [tuple(text[start : start + 4]) for start in range(len(text) - 3)]
        value = repetition(text, 4)
        assert value == pytest.approx(1 - len(set(grams)) / len(grams)) if grams else math.isnan(value)


def test_a_loop_repeats_and_chinese_is_counted_by_character():
    found = generations(["我爱你 " * 30, "the end of it all"], ["春天来了", "x y"])
    assert found["repetition_4"].value == pytest.approx((1 - 3 / 87) / 2)
    assert found["length"].value == pytest.approx((90 + 5) / 2) and found["length_ratio"].value == pytest.approx(95 / 6)
    assert generations(["", "a"])["empty"].value == 0.5


def test_the_interval_of_distinct_holds_its_value():
    """Drawn with replacement, texts would repeat themselves, and the interval would lie below the value."""
    found = generations([f"word{number} word{number + 1} the" for number in range(200)])["distinct_1"]
    assert found.interval[0] <= found.value <= found.interval[1] and "jackknife:100" in found.signature


@pytest.mark.parametrize(
    ("text", "controls", "kept"),
    [
        ("春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。", {"体裁": "五言绝句", "关键词": "春、鸟、雪", "行数": "2"}, {"form": 1, "keywords": 2 / 3, "lines": 1}),
        ("床前明月光，疑是地上霜。举头望明月，低头思故乡啊。", {"form": "4x5"}, {"form": 0}),
        ("海阔凭鱼跃，天高任鸟飞", {"体裁": "对联"}, {"form": 1}),
        ("风声，雨声，读书声，声声入耳\n家事，国事，天下事，事事关心", {"form": "couplet", "每行字数": "11"}, {"form": 1, "characters_per_line": 1}),
        ("The cat sat. It was 3.5 years old! Was it?", {"sentences": "3", "words": "8-12", "Keywords": "Cat, years old, at"}, {"sentences": 1, "words": 1, "keywords": 2 / 3}),
        ("今天下雨。明天呢？", {"句数": "2", "字数": "7～9字", "style": "sad"}, {"sentences": 1, "characters": 1}),
        ("", {"lines": "1", "keywords": "x", "characters_per_line": "5", "form": "4x5"}, {"lines": 0, "keywords": 0, "characters_per_line": 0, "form": 0}),
        ("anything", {"keywords": " ", "lines": ""}, {}),
        ("anything", {"keywords": "，！"}, {"keywords": 1}),
    ],
)
def test_controls_by_hand(text, controls, kept):
    assert adherence(text, controls) == pytest.approx(kept)


def test_adherence_is_a_mean_over_texts_with_controls():
    found = generations(["cat", "dog", "bird"], controls=[{"keywords": "cat", "style": "x"}, {"keywords": "cat"}, {}])
    assert found["adherence"].value == 0.5 and found["adherence/keywords"].value == 0.5 and found["controls_unchecked"].value == pytest.approx(1 / 4)
    assert next(iter(found)) == "adherence"
    assert "adherence" not in generations(["a"], controls=[{"style": "x"}]) and "adherence" not in generations(["a"], controls=[{}])


def test_controls_that_make_no_sense_are_named():
    with pytest.raises(DataError, match="the control lines is 'many'"):
        adherence("a", {"行数": "many"})
    with pytest.raises(DataError, match="the form 'sonnet' is not known"):
        adherence("a", {"form": "sonnet"})


def test_pass_at_k_equals_exact_combinatorics():
    for tried, right, k in itertools.product(range(1, 8), range(8), range(1, 8)):
        if right > tried or k > tried:
            with pytest.raises(ValueError):
                pass_at_k(tried, right, k)
            continue
        programs = [True] * right + [False] * (tried - right)
        counted = Counter(any(chosen) for chosen in itertools.combinations(programs, k))
        assert pass_at_k(tried, right, k) == pytest.approx(float(Fraction(counted[True], counted.total())))
    assert pass_at_k(10_000, 3, 1) == pytest.approx(3 / 10_000)


def test_pass_at_k_over_problems():
    found = passes([5, 5, 4], [5, 0, 1], (1, 4, 5))
    assert found["pass@1"].value == pytest.approx((1 + 0 + 0.25) / 3) and found["pass@4"].value == pytest.approx(2 / 3) and "pass@5" not in found
    with pytest.raises(ValueError):
        passes([2], [3])
