"""No text is lost: every byte, emoji, rare characters, half surrogates, and tokens streamed one by one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_samples import tokenizer_of

from luban.foundation.errors import DataError
from luban.tokenizer.evaluation import _EVERY_UTF8_BYTE, every_byte_survives
from luban.tokenizer.tokenizer import Tokenizer

HARD = [
    "👨‍👩‍👧‍👦🏳️‍🌈",
    "𠮷野家で𩸽を食べた",
    "龘靐齉爩",
    "a\u0301 é",
    "\x00\x01\x7f",
    "مرحبا",
    "ไทย",
    "\ufeff\u200b\u3000",
    "\r\n\r \t",
    "��",
    "1234567890" * 3,
    "",
]


def normal(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.core.normalizer.normalize_str(text)


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_survives(bpe, text):
    assert bpe.decode(bpe.encode(text)) == normal(bpe, text)


@given(st.lists(st.integers(0, 1999), max_size=40))
@settings(max_examples=300, deadline=None)
def test_streamed_equals_whole_for_any_tokens(bpe, ids):
    stream = bpe.stream()
    parts = [stream.push(index) for index in ids]
    assert "".join(parts) + stream.flush() == bpe.decode(ids)
    # transformers' backend is the independent source of what a sequence of tokens says
    assert bpe.decode(ids) == bpe.core.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", HARD)
def test_hard_texts(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == normal(bpe, text)
    assert bpe.token_bytes()[ids].sum() == len(normal(bpe, text).encode())


def test_a_character_in_pieces_is_shown_when_it_is_whole(bpe):
    ids = bpe.encode("𠮷")
    assert len(ids) > 1
    stream = bpe.stream()
    assert [stream.push(index) for index in ids] == [""] * (len(ids) - 1) + ["𠮷"]
    stream = bpe.stream()
    assert stream.push(ids[0]) == "" and stream.flush() == "\ufffd"


def test_the_probe_texts_use_every_byte_that_utf8_can_hold(bpe):
    used = {byte for text in _EVERY_UTF8_BYTE for byte in text.encode()}
    assert used == {*range(0x80), *range(0x80, 0xC0), *range(0xC2, 0xF5)}
    assert every_byte_survives(bpe)


def test_half_a_surrogate_becomes_a_replacement_character(bpe):
    assert bpe.decode(bpe.encode("a\ud800b")) == "a\ufffdb"
    assert bpe.decode(bpe.encode_batch(["\udc00"])[0]) == "\ufffd"


def test_token_bytes_of_special_tokens_are_none(bpe):
    sizes = bpe.token_bytes()
    assert sizes[:3].tolist() == [0, 0, 0] and sizes[3:].min() >= 1 and len(sizes) == bpe.vocabulary_size


def test_batch_equals_one_by_one(bpe):
    texts = HARD + ["First Citizen:\nBefore we proceed"]
    assert bpe.encode_batch(texts) == [bpe.encode(text) for text in texts]


def test_save_and_load_change_nothing(bpe, tmp_path):
    bpe.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("stale")
    bpe.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint() == bpe.fingerprint() and again.stop_ids == bpe.stop_ids
    assert Tokenizer.load(tmp_path / "tokenizer.json").fingerprint() == bpe.fingerprint()
    assert again.encode("再见 goodbye") == bpe.encode("再见 goodbye")


def test_fingerprint_sees_vocabulary_template_and_special_tokens(bpe):
    def variant(**changes):
        return Tokenizer(bpe.core, {**bpe.config, **changes}).fingerprint()

    prints = {
        bpe.fingerprint(),
        variant(chat_template=bpe.chat_template + " "),
        variant(pad_token="<|im_end|>"),
        variant(eos_token="<|im_end|>"),
        tokenizer_of("byte_bpe", 1999).fingerprint(),
    }
    assert len(prints) == 5


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(DataError, match="no tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_threads_share_one_tokenizer(bpe):
    from concurrent.futures import ThreadPoolExecutor

    texts = ["a<|im_end|>b", "你好<|im_start|>"] * 200
    random.Random(0).shuffle(texts)
    expected = [(bpe.encode(text), bpe.encode(text, allow_special=True)) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: (bpe.encode(text), bpe.encode(text, allow_special=True)), texts)) == expected
