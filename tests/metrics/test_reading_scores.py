"""Reading figures against slow versions written from the definitions of the official scripts."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.metrics.reading import answer_f1, chinese_units, common_run, exact_match, normalise, normalise_chinese, reading


def slow_normalise(answer):
    kept = "".join(character for character in answer.lower() if character not in string.punctuation)
    words, word = [], ""
    for character in kept + " ":  # an article is a run of word characters, as \b sees it
        if character.isalnum() or character == "_":
            word += character
            continue
        words += [" " if word in ("a", "an", "the") else word, character]
        word = ""
    return " ".join("".join(words).split())


def slow_f1(answer, gold):
    first, second = slow_normalise(answer).split(), slow_normalise(gold).split()
    if not first or not second:
        return float(first == second)
    rest, same = list(second), 0
    for word in first:
        if word in rest:
            rest.remove(word)
            same += 1
    if not same:
        return 0.0
    precision, recall = same / len(first), same / len(second)
    return 2 * precision * recall / (precision + recall)


texts = st.lists(st.sampled_from(["the", "The", "a", "cat", "Cats", "sat", "an", "1,000", "it's", "—", "...", "naïve", "the-cat", "a_b", "  "]), max_size=6).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(texts, st.lists(texts, max_size=3))
def test_squad_equals_the_slow_version(answer, gold):
    kept = [one for one in gold if slow_normalise(one)] or [""]
    assert normalise(answer) == slow_normalise(answer)
    assert answer_f1(answer, gold) == pytest.approx(max(slow_f1(answer, one) for one in kept))
    assert exact_match(answer, gold) == float(any(slow_normalise(answer) == slow_normalise(one) for one in kept))


def slow_run(first, second):
    def runs(units, length):
        return [tuple(units[start : start + length]) for start in range(len(units) - length + 1)]

    return max(length for length in range(min(len(first), len(second)) + 1) if set(runs(first, length)) & set(runs(second, length)))


@settings(max_examples=300, deadline=None)
@given(st.text("ab", max_size=9), st.text("abc", max_size=9))
def test_longest_common_run_equals_brute_force(first, second):
    assert common_run(first, second) == slow_run(first, second)


def test_chinese_by_hand():
    assert chinese_units("《红楼梦》共120回，GPT-4 说") == ["红", "楼", "梦", "共", "120", "回", "gpt4", "说"]
    assert chinese_units("约3.5万 (a)") == ["约", "3.5", "万", "(", "a", ")"]
    assert normalise_chinese(" “北京”：A ") == "北京a"
    assert exact_match("《红楼梦》", ["红楼梦"], chinese=True) == 1
    assert answer_f1("北京大学", ["北京的大学"], chinese=True) == pytest.approx(2 * 2 / 9)  # the run is 北京 or 大学, not both
    assert answer_f1("在北京大学", ["北京大学", "大学"], chinese=True) == pytest.approx(8 / 9)
    assert answer_f1("", ["北京"], chinese=True) == 0 and answer_f1("", [], chinese=True) == 1


chinese = st.lists(st.sampled_from(["北", "京", "大", "学", "，", "《", "1998", " ", "Abc", "-"]), max_size=8).map("".join)


@settings(max_examples=200, deadline=None)
@given(chinese, st.lists(chinese, min_size=1, max_size=3))
def test_chinese_f1_equals_the_definition(answer, gold):
    def slow(one):
        first, second = chinese_units(answer), chinese_units(one)
        run = slow_run(first, second)
        if not first or not second:
            return float(first == second)
        return 2 * (run / len(first)) * (run / len(second)) / (run / len(first) + run / len(second)) if run else 0.0

    kept = [one for one in gold if normalise_chinese(one)] or [""]
    assert answer_f1(answer, gold, chinese=True) == pytest.approx(max(slow(one) for one in kept))


def test_questions_without_an_answer_are_counted_apart():
    found = reading(["cat", "", "dog", "the"], [["the cat", "dog"], [], [], ["..."]], no_answer_scores=[0.1, 0.9, 0.2, 0.8])
    assert found["exact_match"].value == 0.75 and found["answer_f1"].value == 0.75
    assert found["answerable_f1"].value == 1 and found["no_answer_accuracy"].value == pytest.approx(2 / 3)
    assert found["no_answer_auc"].value == 1 and "no_answer:yes" in found["exact_match"].signature
    plain = reading(["cat"] * 3, [["cat"]] * 3)
    assert list(plain) == ["answer_f1", "exact_match"] and "normal:squad" in plain["exact_match"].signature


def test_language_is_seen_or_said():
    assert "normal:cmrc2018" in reading(["北京"], [["北京"]])["exact_match"].signature
    assert "normal:cmrc2018" in reading(["1998"], [["1998"]], "zh-CN")["exact_match"].signature
    assert "normal:squad" in reading(["北京"], [["北京"]], "en")["exact_match"].signature


def test_a_long_answer_costs_no_table():
    """A table of 50,000 by 50,000 would take hours; this takes a moment."""
    assert common_run(list("abcde" * 10_000), list("edcba" * 10_000)) == 1


def test_missing_answers_are_empty_ones():
    found = reading([None, "x"], [["x"], ["x"]])
    assert found["exact_match"].value == 0.5
