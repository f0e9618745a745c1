"""Words with their places, in English and Chinese; stop words."""

from __future__ import annotations

import sys

import jieba
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.examples.segmentation import stop_words, word_spans, words
from luban.foundation.errors import ConfigError, LubanError


def test_english_keeps_what_belongs_together():
    assert words("Don't touch state-of-the-art models, 3.14% cheaper (e.g. BERT)!") == ["don't", "touch", "state-of-the-art", "models", "3.14%", "cheaper", "e", "g", "bert"]
    assert words("Hi, Bob!", lower=False, punctuation=True) == ["Hi", ",", "Bob", "!"]


def test_chinese_as_jieba_cuts_it():
    oracle = jieba.Tokenizer()
    for text in ("我来到北京清华大学", "他在人工智能领域工作了十年", "南京市长江大桥"):
        assert words(text) == list(oracle.cut(text))


def test_mixed_text_and_characters():
    assert words("用BERT-base做情感分析", "characters") == ["用", "bert-base", "做", "情", "感", "分", "析"]
    assert words("已经 分好 的 词", "spaces") == ["已经", "分好", "的", "词"]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab1.,' -你好世界。\n\u3000é👍\u0301_𠀀"), max_size=30), st.sampled_from(["jieba", "characters", "spaces"]))
def test_spans_are_in_order_and_leave_out_white_space_only(text, method):
    spans = word_spans(text, method)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all(one[1] <= two[0] for one, two in zip(spans, spans[1:], strict=False))
    covered = {place for start, end in spans for place in range(start, end)}
    assert all(text[place].isspace() for place in set(range(len(text))) - covered)


def test_a_long_document_is_cut_in_pieces():
    text = "自然语言处理" * 17_000
    assert "".join(text[start:end] for start, end in word_spans(text)) == text


def test_stop_words_of_both_languages_keep_what_turns_a_meaning_round():
    assert {"the", "of", "it's"} <= stop_words("en") and {"的", "因为", "我们"} <= stop_words("zh")
    assert stop_words() == stop_words("en") | stop_words("zh")
    assert not stop_words() & {"not", "no", "never", "don't", "nor", "不", "没", "没有", "无", "别"}
    assert words("这不是我喜欢的电影", stop=stop_words("zh")) == ["不是", "喜欢", "电影"]


def test_unknown_names_and_a_missing_package(monkeypatch):
    with pytest.raises(ConfigError):
        stop_words("fr")
    with pytest.raises(ConfigError):
        word_spans("a", "magic")
    from luban.examples import segmentation

    segmentation._jieba.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(LubanError, match="tasks"):
        word_spans("北京大学")
    assert word_spans("plain text") == [(0, 5), (6, 10)]
