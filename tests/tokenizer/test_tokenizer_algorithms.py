"""The five algorithms: sizes, control tokens, round trips, and the same tokenizer from the same text."""

from __future__ import annotations

import unicodedata

import pytest
from tokenizer_samples import chinese, english, tokenizer_of
from transformers.models.qwen2 import tokenization_qwen2

from luban.foundation.errors import ConfigError
from luban.tokenizer.algorithms import QWEN2_PATTERN, automatic_vocabulary_size
from luban.tokenizer.evaluation import evaluate, every_byte_survives

ALGORITHMS = ("byte_bpe", "wordpiece", "unigram", "word", "character")
MIXED = "Speak, speak! 白日依山尽。\n\n\tnaïve café  𠮷野家 👩‍👩‍👧 <|im_end|>"


@pytest.fixture(scope="module", params=ALGORITHMS)
def learned(request):
    return request.param, tokenizer_of(request.param, 1500, english(40_000) + chinese(60))


def test_size_and_control_tokens(learned):
    algorithm, tokenizer = learned
    assert tokenizer.vocabulary_size <= 1500
    assert [tokenizer.core.token_to_id(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [0, 1, 2]
    assert tokenizer.end_of_text_id == 0 and tokenizer.end_of_turn_id == 2 and tokenizer.stop_ids == [0, 2]
    assert tokenizer.core.get_vocab_size() == len(set(tokenizer.core.get_vocab().values()))


@pytest.mark.parametrize("algorithm", ["byte_bpe", "unigram", "character"])
def test_bytes_stand_in_for_what_is_unknown(algorithm):
    tokenizer = tokenizer_of(algorithm, 1500, english(40_000) + chinese(60))
    assert tokenizer.decode(tokenizer.encode(MIXED)) == unicodedata.normalize("NFC", MIXED)
    assert every_byte_survives(tokenizer)


@pytest.mark.parametrize("algorithm", ["word", "wordpiece"])
def test_known_words_survive_and_unknown_ones_do_not(algorithm):
    tokenizer = tokenizer_of(algorithm, 1500, english(40_000) + chinese(60))
    text = "you are all resolved"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert not every_byte_survives(tokenizer)


def test_text_that_spells_a_control_token_is_text(learned):
    _, tokenizer = learned
    assert not {0, 1, 2} & set(tokenizer.encode("<|im_end|><|endoftext|> <|im_start|>"))
    assert tokenizer.encode("a<|im_end|>", allow_special=True)[-1] == 2


def test_stream_equals_decode(learned):
    _, tokenizer = learned
    for text in (MIXED, "First Citizen: you", "白日"):
        ids = tokenizer.encode(text)
        stream = tokenizer.stream()
        assert "".join(stream.push(index) for index in ids) + stream.flush() == tokenizer.decode(ids)


@pytest.mark.parametrize("algorithm", ["byte_bpe", "wordpiece", "word", "character"])
def test_the_same_text_gives_the_same_tokenizer(algorithm):
    texts = english(30_000) + chinese(40)
    one, other = (tokenizer_of(algorithm, 1200, texts) for _ in range(2))
    assert one.core.to_str() == other.core.to_str()


def test_wordpiece_frames_a_text_as_bert_does():
    tokenizer = tokenizer_of("wordpiece", 1500, english(40_000))
    ids = tokenizer.core.encode("you are").ids
    assert [tokenizer.core.id_to_token(index) for index in (ids[0], ids[-1])] == ["[CLS]", "[SEP]"]
    assert tokenizer.encode("you are") == ids[1:-1]


def test_pattern_is_qwen2s():
    assert QWEN2_PATTERN == tokenization_qwen2.PRETOKENIZE_REGEX


def test_too_small_a_vocabulary_is_refused_with_the_least_size():
    with pytest.raises(ConfigError, match="259"):
        tokenizer_of("byte_bpe", 200)


def test_automatic_size_grows_as_the_root_of_the_corpus():
    assert automatic_vocabulary_size(2_000_000) == 4096
    assert automatic_vocabulary_size(1_000_000_000) == 91_648
    assert automatic_vocabulary_size(10) == 512
    assert automatic_vocabulary_size(10**13) == 131_072


def test_evaluation_counts_what_a_closed_form_gives():
    tokenizer = tokenizer_of("character", 4000, english(40_000) + chinese(60))
    figures = evaluate(tokenizer, {"en": ["to be or not to be"], "zh": ["白日依山尽"]})["languages"]
    assert figures["en"]["bytes_per_token"] == 1 and figures["zh"]["bytes_per_token"] == 3
    assert figures["zh"]["characters_in_one_token"] == 1 and figures["zh"]["characters_covered"] == 1
