"""BLEU, chrF and TER of any resample against sacrebleu itself; tokenizers by language; hostile sentences."""

import sys

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER

from luban.foundation.errors import LubanError
from luban.metrics.resampling import differences
from luban.metrics.translation import bleu_of_sums, chrf_of_sums, ter_is_affordable, ter_of_sums, tokenizer_for, translation_measures, translations

WORDS = ["the", "cat", "sat", "on", "a", "mat", ",", "dogs", "bark", ".", "3.5"]
ENGLISH = [" ".join(np.random.default_rng(seed).choice(WORDS, 3 + seed % 9)) for seed in range(24)]
GUESSES = [" ".join(word for word in text.split() if np.random.default_rng(len(text)).random() < 0.8 or word == "cat") for text in ENGLISH]


def test_english_equals_sacrebleu_with_its_signature():
    found = translations(GUESSES, ENGLISH, "en")
    for name, metric in (("bleu", BLEU(tokenize="13a")), ("chrf", CHRF()), ("ter", TER())):
        assert found[name].value == pytest.approx(metric.corpus_score(GUESSES, [ENGLISH]).score)
        for fact in str(metric.get_signature()).replace("version:", "sacrebleu:").split("|"):
            assert fact in found[name].signature.split("|")
        low, high = found[name].interval
        assert low < found[name].value < high


def test_chinese_is_split_by_character():
    guess, gold = ["今天天气很好。", "我爱北京GPT 4"], ["今天的天气很好。", "我爱北京GPT 4！"]
    found = translations(guess, gold)
    assert found["bleu"].value == pytest.approx(BLEU(tokenize="zh").corpus_score(guess, [gold]).score) and "tok:zh" in found["bleu"].signature
    assert found["ter"].value == pytest.approx(TER(normalized=True, asian_support=True).corpus_score(guess, [gold]).score)
    assert found["bleu"].value > 50 > 10 > translations(guess, gold, "en")["bleu"].value
    assert [tokenizer_for(language) for language in ("zh", "ja", "de", "th", "other")] == ["zh", "char", "13a", "char", "13a"]


@pytest.mark.parametrize(("metric", "of_sums", "columns"), [(BLEU(), bleu_of_sums, 10), (CHRF(), chrf_of_sums, 18), (TER(), ter_of_sums, 2)])
def test_figures_of_any_sums_are_sacrebleu_s(metric, of_sums, columns):
    """Random statistics, zeros among them: what a resample of short and empty sentences can add up to."""
    random = np.random.default_rng(columns)
    for _ in range(200):
        sums = random.integers(0, 4, size=columns).astype(float)
        if columns == 10:  # no more matches than n-grams
            sums[2:6] = np.minimum(sums[2:6], sums[6:])
        if columns == 18:
            sums[2::3] = np.minimum(sums[2::3], np.minimum(sums[0::3], sums[1::3]))
        assert of_sums(sums[None])[0] == pytest.approx(metric._compute_score_from_stats(sums.tolist() if columns != 10 else [int(one) for one in sums]).score)


def test_several_references_and_missing_ones():
    guess = ["the cat sat", "dogs bark"]
    found = translations(guess, [["a cat sat", "the cat sat down"], ["the dogs bark"]], "en")
    assert found["bleu"].value == pytest.approx(BLEU().corpus_score(guess, [["a cat sat", "the dogs bark"], ["the cat sat down", None]]).score)


def test_empty_sentences_are_scored_not_skipped():
    full, holed = translations(ENGLISH, ENGLISH, "en"), translations(["", *ENGLISH[1:]], ENGLISH, "en")
    assert full["bleu"].value == pytest.approx(100) and full["chrf"].value == pytest.approx(100) and full["ter"].value == 0
    assert holed["bleu"].value < 100 and holed["chrf"].value < 100 and holed["ter"].value > 0
    nothing = translations(["", ""], ["a b", "c"], "en")
    assert nothing["bleu"].value == 0 and nothing["chrf"].value == 0 and nothing["ter"].value == 100


def test_two_systems_are_compared_in_pairs():
    before, after = (translation_measures(texts, ENGLISH, "en", with_ter=False)[0] for texts in (GUESSES, ENGLISH))
    found = differences(before, after)["bleu"]
    assert found.value == pytest.approx(100 - BLEU().corpus_score(GUESSES, [ENGLISH]).score) and found.interval[0] > 0


def test_without_sacrebleu_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(LubanError, match=r"pip install -e .\.\[tasks\]"):
        translations(["a"], ["a"])


def test_ter_of_long_sentences_is_known_to_be_dear():
    assert ter_is_affordable(["a b c " * 7] * 2000, ["a b c " * 7] * 2000)
    assert not ter_is_affordable(["雨" * 100_000], ["雨"])
