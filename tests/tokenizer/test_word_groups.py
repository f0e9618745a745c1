"""Tokens that form a word, for every kind of tokenizer, in English and Chinese."""

from __future__ import annotations

import re

import pytest
from framing_families import both
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_samples import chinese, english, tokenizer_of

from luban.tokenizer.framing import frame
from luban.tokenizer.words import WordGroups, word_groups

KINDS = ("byte_bpe", "wordpiece", "unigram", "character")
DICTIONARY = ["中国", "人民", "银行", "北京大学", "在", "我们"]


def segment(run: str) -> list[str]:
    """Longest word of a small dictionary first, else one character."""
    return re.findall("|".join([*sorted(DICTIONARY, key=len, reverse=True), "."]), run)


@pytest.fixture(scope="module")
def tokenizers():
    texts = [*english(60_000), *chinese(100), "我们在北京大学，中国人民银行。" * 3]
    return {kind: tokenizer_of(kind, 1300, texts) for kind in KINDS}


def words_of(tokenizer, text: str, cut=None) -> list[str]:
    """The words as they read, without the space around; white space left out."""
    ids = tokenizer.encode(text)
    read = [b"".join(tokenizer._byte_table[ids[place]] for place in group).decode("utf-8", "replace").strip() for group in word_groups(tokenizer, ids, cut)]
    return [word for word in read if word]


@pytest.mark.parametrize("kind", ["byte_bpe", "unigram", "character"])
def test_english_words_are_those_between_spaces_and_marks(tokenizers, kind):
    text = "Unbelievable, don't you-know?  two\n\n1999 (café) a_b 3.14"
    assert words_of(tokenizers[kind], text) == [
        "Unbelievable", ",", "don't", "you", "-", "know", "?", "two", "1999", "(", "café", ")", "a", "_", "b", "3", ".", "14",
    ]  # fmt: skip


def test_wordpiece_words_begin_where_no_mark_says_otherwise(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    ids = tokenizer.encode("the notorious gentleman, unworthiness")
    tokens = [tokenizer.core.id_to_token(index) for index in ids]
    expected: list[list[int]] = []
    for place, token in enumerate(tokens):
        expected.append([place]) if not token.startswith("##") else expected[-1].append(place)
    assert any(len(group) > 1 for group in expected) and word_groups(tokenizer, ids) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_chinese_words_come_from_the_segmenter(tokenizers, kind):
    text = "我们在北京大学"
    assert words_of(tokenizers[kind], text, segment) == ["我们", "在", "北京大学"]
    singles = words_of(tokenizers[kind], text)
    assert "".join(singles) == text and (kind in ("byte_bpe", "unigram") or singles == list(text))


def test_a_character_in_several_tokens_is_one_word(tokenizers):
    tokenizer = tokenizers["byte_bpe"]
    ids = tokenizer.encode("𠮷鼕")
    assert len(ids) > 4 and len(word_groups(tokenizer, ids)) == 2


def test_special_tokens_belong_to_no_word_and_end_one(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    framed = frame(tokenizer, "gentleman", "gentlemen", maximum=50)
    groups = word_groups(tokenizer, framed.ids)
    assert {place for group in groups for place in group} == {place for place, part in enumerate(framed.parts) if part >= 0}
    assert len(groups) == 2
    cut = [framed.ids[1], tokenizer.mask_id, *framed.ids[2:-1]]
    assert all(1 not in group for group in word_groups(tokenizer, cut))
    assert word_groups(tokenizer, []) == [] == word_groups(tokenizer, [tokenizer.cls_id, 10**9, -1])


def test_a_sequence_may_begin_inside_a_character_or_a_word(tokenizers):
    tokenizer = tokenizers["byte_bpe"]
    ids = tokenizer.encode("鼕鼕 word")
    assert sum(map(len, word_groups(tokenizer, ids[1:]))) == len(ids) - 1
    wordpiece = tokenizers["wordpiece"]
    tail = next(index for token, index in sorted(wordpiece.core.get_vocab().items()) if token.startswith("##"))
    assert word_groups(wordpiece, [tail, tail]) == [[0, 1]]


def test_a_segmenter_that_changes_the_text_is_refused(tokenizers):
    with pytest.raises(ValueError, match="segmenter"):
        words_of(tokenizers["byte_bpe"], "中国", lambda run: run[:-1])


def test_runs_are_segmented_once(tokenizers):
    calls: list[str] = []

    def count(run: str) -> list[str]:
        calls.append(run)
        return segment(run)

    groups = WordGroups(tokenizers["byte_bpe"], count)
    ids = tokenizers["byte_bpe"].encode("中国人民 银行 中国人民")
    assert groups.groups(ids) == groups.groups(ids) and calls == ["中国人民", "银行"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_is_in_one_group_and_groups_run_on(tokenizers, kind):
    tokenizer, groups = tokenizers[kind], WordGroups(tokenizers[kind], segment)

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.text(st.characters(codec="utf-8"), max_size=40) | st.text("ab中国人民, '\n", max_size=40))
    def run(text):
        ids = tokenizer.encode(text)
        found = groups.groups(ids)
        ordinary = [place for place, index in enumerate(ids) if not tokenizer.is_special[index]]
        assert [place for group in found for place in group] == ordinary
        assert all(group == list(range(group[0], group[-1] + 1)) for group in found)

    run()


@settings(max_examples=150, deadline=None)
@given(st.text("abc中国人民银行 ,.", max_size=30))
def test_character_groups_are_the_words_of_the_text(text):
    """Where every token is a character, the groups are the words that a plain search finds."""
    tokenizer = _characters()
    found = [text[group[0] : group[-1] + 1] for group in word_groups(tokenizer, tokenizer.encode(text), segment)]
    expected = []
    for match in re.finditer(r"[abc]+|[中国人民银行]+|\s|[,.]", text):
        expected += segment(match.group()) if match.group()[0] > "\u4e00" else [match.group()]
    assert found == expected


_HELD: list = []


def _characters():
    if not _HELD:
        _HELD.append(tokenizer_of("character", 400, ["abc 中国人民银行 ,." * 3]))
    return _HELD[0]


def test_metaspace_and_byte_prefixes_of_transformers_tokenizers(tmp_path):
    for name in ("t5", "llama", "roberta", "gpt2"):
        _, ours = both(name, tmp_path)
        assert words_of(ours, "the gentleman speak") == ["the", "gentleman", "speak"]
