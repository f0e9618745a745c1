"""Frames equal transformers', whatever the family, the texts and the length; and every token knows its characters."""

from __future__ import annotations

import json

import pytest
from framing_families import FAMILIES, TEXTS, both
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_samples import tokenizer_of
from tokenizers import Tokenizer as Core

from luban.foundation.errors import ConfigError
from luban.tokenizer.framing import Slot, frame, frame_batch, frame_windows
from luban.tokenizer.tokenizer import Tokenizer

ENDED = ("bert", "roberta", "t5", "bart")  # families that put a token behind a text
NAMES = {"longest": "longest_first", "first": "only_first", "second": "only_second"}
texts = st.text(st.characters(codec="utf-8", exclude_characters="<>[]|"), max_size=60) | st.sampled_from(TEXTS)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    held: dict = {}
    return lambda name: held.get(name) or held.setdefault(name, both(name, folder))


def trimmed(text: str, span: tuple[int, int]) -> tuple[int, int]:
    inner = text[slice(*span)]
    if not inner.strip():
        return (0, 0)
    return span[0] + len(inner) - len(inner.lstrip()), span[1] - len(inner) + len(inner.rstrip())


def check(theirs, ours: Tokenizer, first: str, second: str | None, maximum: int, truncate: str) -> None:
    expected = theirs(
        first, second or None, truncation=NAMES[truncate], max_length=maximum, return_offsets_mapping=True, return_token_type_ids=True
    )
    framed = frame(ours, first, second, maximum=maximum, truncate=truncate)
    assert framed.ids == expected["input_ids"]
    assert framed.types == expected["token_type_ids"]
    parts = [-1 if part is None else part for part in expected.sequence_ids(0)]
    assert framed.parts == parts
    for part, given_span, found in zip(parts, expected["offset_mapping"], framed.offsets, strict=True):
        text = second if part == 1 else first
        if part < 0:
            assert found == (0, 0)
        elif found[0] < found[1] and not any("\u0300" <= c <= "\u20ff" or c >= "\ufe00" for c in text[found[0] : found[1]]):
            assert found == trimmed(text, given_span)
    whole = sum(len(ours.encode(text)) for text in (first, second) if text)
    assert framed.truncated == whole - sum(part >= 0 for part in parts)


@pytest.mark.parametrize("name", ENDED)
@pytest.mark.parametrize("maximum", [9, 16, 400])
def test_texts_and_pairs_equal_transformers(family, name, maximum):
    theirs, ours = family(name)
    for first in TEXTS:
        check(theirs, ours, first, None, maximum, "longest")
        for second in TEXTS[1::3]:
            check(theirs, ours, first, second, maximum, "longest")
    check(theirs, ours, "word " * 30, "to be", 24, "first")
    check(theirs, ours, "to be", "word " * 30, 24, "second")


@pytest.mark.parametrize("name", ENDED)
def test_random_texts_equal_transformers(family, name):
    theirs, ours = family(name)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(texts, st.none() | texts, st.integers(9, 40))
    def run(first, second, maximum):
        check(theirs, ours, first, second, maximum, "longest")

    run()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_decoders_end_a_text_and_put_a_line_break_between_two(family, name):
    theirs, ours = family(name)
    bare = lambda text: theirs(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    begin = [theirs.bos_token_id] if name == "llama" else []
    line = bare("\n")
    if theirs.unk_token_id in line:  # this little Llama knows no line break
        line = [theirs.eos_token_id]
    for text in TEXTS:
        framed = frame(ours, text, maximum=500)
        assert framed.ids == begin + bare(text) + [theirs.eos_token_id] and framed.parts.count(-1) == len(begin) + 1
        if text:
            framed = frame(ours, "白日", text, maximum=500)
            assert framed.ids == begin + bare("白日") + line + bare(text) + [theirs.eos_token_id] and set(framed.types) == {0}


def test_a_tokenizer_without_post_processor_is_framed_by_its_named_tokens(family):
    _, bert = family("bert")
    _, roberta = family("roberta")
    for ours, types in ((bert, [0, 0, 0, 0, 1, 1]), (roberta, None)):
        lost = Tokenizer(_without_post_processor(ours), ours.config)
        assert lost.layout.single == ours.layout.single
        assert [slot.id for slot in lost.layout.pair] == [slot.id for slot in ours.layout.pair]
        if types:
            assert lost.layout.pair[3:] == (Slot(1, 1), Slot(-1, 1, ours.sep_id))


def _without_post_processor(tokenizer: Tokenizer) -> Core:
    return Core.from_str(json.dumps({**json.loads(tokenizer.core.to_str()), "post_processor": None}))


def test_both_texts_keep_a_token_whatever_is_cut(family):
    for name in FAMILIES:
        _, ours = family(name)
        special = frame(ours, "a", "b", maximum=99).parts.count(-1)
        for truncate in ("first", "second", "longest"):
            for first, second in (("word " * 50, "word " * 50), ("to", "word " * 50), ("word " * 50, "to")):
                framed = frame(ours, first, second, maximum=special + 2, truncate=truncate)
                assert len(framed.ids) == special + 2 and {0, 1} <= set(framed.parts)
        with pytest.raises(ConfigError, match="too few"):
            frame(ours, "a", "b", maximum=special + 1)
        empty = frame(ours, "", maximum=special)
        assert set(empty.parts) == {-1} and empty.visible == [(0, 0)]


def test_which_text_loses_its_end(family):
    _, ours = family("bert")
    counts = lambda truncate, first, second: [  # noqa: E731
        frame(ours, "a " * first, "a " * second, maximum=23, truncate=truncate).parts.count(part) for part in (0, 1)
    ]
    assert counts("longest", 30, 5) == [15, 5] and counts("longest", 5, 30) == [5, 15] and counts("longest", 30, 40) == [10, 10]
    assert counts("first", 30, 5) == [15, 5] and counts("first", 5, 30) == [1, 19]
    assert counts("second", 5, 30) == [5, 15] and counts("second", 30, 5) == [19, 1]


def test_control_tokens_in_a_text_are_text(family):
    _, ours = family("bert")
    assert frame(ours, "a [SEP] b [MASK]", maximum=50).ids.count(ours.sep_id) == 1
    allowed = frame(ours, "a [MASK] b", maximum=50, allow_special=True)
    assert ours.mask_id in allowed.ids and allowed.offsets[allowed.ids.index(ours.mask_id)] == (2, 8)


def test_offsets_count_the_given_text_even_where_it_is_no_unicode(family):
    for name in FAMILIES:
        _, ours = family(name)
        text = "\ud800ab \ud83d\ude00 word"  # half a pair, and a pair in two characters
        framed = frame(ours, text, maximum=99)
        assert max(end for _, end in framed.offsets) == len(text)
        assert any(text[start:end].startswith("w") for start, end in framed.offsets)
        assert not any(end == 5 or start == 5 for start, end in framed.offsets), "nothing begins between the two halves of a pair"


def test_accents_belong_to_their_letter(family):
    _, ours = family("bert")
    framed = frame(ours, "cafe\u0301\u0302 a e\u0301", maximum=99)
    ends = [end for _, end in framed.offsets]
    assert 6 in ends and 11 in ends and ours.decode(framed.ids) == "cafe a e"


@pytest.mark.parametrize("name", ["bert", "roberta", "t5"])
@pytest.mark.parametrize("stride", [0, 5])
def test_windows_equal_transformers(family, name, stride):
    theirs, ours = family(name)
    context = "To be, or not to be. 白日依山尽，黄河入海流。 " * 6
    for question in ("Who is it?", ""):
        expected = theirs(
            *((question, context) if question else (context,)), max_length=40, stride=stride, return_overflowing_tokens=True,
            truncation="only_second" if question else True, return_token_type_ids=True,
        )  # fmt: skip
        windows = frame_windows(ours, question, context, maximum=40, stride=stride)
        assert [window.ids for window in windows] == expected["input_ids"]
        # (The library numbers the second text of T5's later windows otherwise than that of its first, and T5 reads no types.)
        same = len(windows) if name != "t5" else 1
        assert [window.types for window in windows][:same] == expected["token_type_ids"][:same]
        part = 1 if question else 0
        assert windows[0].visible[part][0] == 0 and windows[-1].visible[part][1] == len(context)
        for before, after in zip(windows, windows[1:], strict=False):
            assert after.visible[part][0] <= before.visible[part][1] + 1  # nothing but a space is unseen


def test_windows_of_nothing_and_long_questions(family):
    _, ours = family("bert")
    (window,) = frame_windows(ours, "who?", "", maximum=20, stride=5)
    assert set(window.parts) == {-1, 0}
    windows = frame_windows(ours, "why " * 100, "word " * 40, maximum=23, stride=4)
    assert {window.parts.count(0) for window in windows} == {10} and windows[0].truncated == len(ours.encode("why " * 100)) - 10
    assert len(windows[0].ids) == 23
    for stride in (10, -1):
        with pytest.raises(ConfigError, match="stride"):
            frame_windows(ours, "who", "word", maximum=23, stride=stride)


def test_a_batch_is_its_texts_one_by_one(family):
    for name in FAMILIES:
        _, ours = family(name)
        seconds = [None, *TEXTS[:-1]]
        batch = frame_batch(ours, TEXTS, seconds, maximum=30)
        assert batch == [frame(ours, first, second, maximum=30) for first, second in zip(TEXTS, seconds, strict=True)]
        assert frame_batch(ours, [], maximum=30) == []


def test_a_long_document_is_framed_at_once():
    tokenizer = tokenizer_of("wordpiece", 500, ["白日依山尽 to be"], style="bert")
    framed = frame(tokenizer, "e\u0301中 " * 33_000, maximum=128)
    assert len(framed.ids) == 128 and framed.truncated > 60_000 and framed.visible[0][1] < 300
