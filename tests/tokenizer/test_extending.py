"""New words: old ids stay, transformers agrees, and each new token knows its old pieces."""

from __future__ import annotations

from collections import Counter

import pytest
from tokenizer_samples import chinese, english, tokenizer_of
from transformers import AutoTokenizer

from luban.foundation.errors import ConfigError
from luban.tokenizer.extending import _next_merges, extend
from luban.tokenizer.tokenizer import Tokenizer

WORDS = ["客服机器人", "LoRA", "量子"]


@pytest.fixture(scope="module")
def old() -> Tokenizer:
    return tokenizer_of("byte_bpe", 800, english(100_000))


def test_words_become_tokens_and_old_ids_stay(old, tmp_path):
    new, added = extend(old, [*WORDS, "LoRA"], 0, iter(()))
    assert [item.id for item in added] == [800, 801, 802] and [item.text for item in added] == WORDS
    assert all(old.decode(item.pieces) == item.text for item in added)
    assert new.encode("客服机器人") == [800] and new.decode(new.encode("用LoRA做量子")) == "用LoRA做量子"
    assert {token: index for token, index in new.core.get_vocab().items() if index < 800} == old.core.get_vocab()
    assert new.encode("First Citizen: speak") == old.encode("First Citizen: speak")
    new.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "客服机器人 and LoRA<|im_end|>"
    assert theirs.encode(text, add_special_tokens=False) == Tokenizer.load(tmp_path).encode(text, allow_special=True)
    assert theirs.decode(theirs.encode(text)) == text


def test_learned_tokens_compress_a_new_language(old, tmp_path):
    texts = chinese(300)
    new, added = extend(old, [], 400, iter(texts))
    assert len(added) == 400 and [item.id for item in added] == list(range(800, 1200))
    before, after = (sum(map(len, tokenizer.encode_batch(texts))) for tokenizer in (old, new))
    assert after < 0.6 * before
    assert all(new.decode(new.encode(text)) == text for text in texts[:50])
    assert [new.core.token_to_id(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [0, 1, 2]
    for item in added:
        raw = b"".join(old._byte_table[index] for index in item.pieces)
        assert raw == new._byte_table[item.id]
    new.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode(texts[0], add_special_tokens=False) == new.encode(texts[0])


def test_merges_are_those_of_a_brute_force_search(old):
    texts = chinese(30)
    words = Counter(piece for text in texts for piece, _ in old.core.pre_tokenizer.pre_tokenize_str(text))
    split = {word: [token.value for token in old.core.model.tokenize(word)] for word in words}
    expected = []
    for _ in range(60):
        pairs = Counter()
        for word, tokens in split.items():
            for pair in zip(tokens, tokens[1:], strict=False):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        expected.append(best)
        for word, tokens in split.items():
            joined = []
            for token in tokens:
                if joined and (joined[-1], token) == best:
                    joined[-1] += token
                else:
                    joined.append(token)
            split[word] = joined
    assert _next_merges(old.core, iter(texts), 60) == expected


def test_control_tokens_behind_the_vocabulary_keep_their_ids(family):
    llama = family("llama3")  # its control tokens have ids above the vocabulary's
    new, added = extend(llama, ["量子"], 20, iter(english(20_000)))
    assert {token: new.core.token_to_id(token) for token in llama.special_ids} == llama.special_ids
    assert min(item.id for item in added) == llama.vocabulary_size and len(added) == 21
    chat = [{"role": "user", "content": "量子?"}]
    assert new.render(chat) == llama.render(chat)


@pytest.mark.parametrize("word", ["", " a", "café"])
def test_words_that_could_not_work_are_refused(old, word):
    with pytest.raises(ConfigError, match="extend"):
        extend(old, [word], 0, iter(()))


def test_learning_more_needs_merges():
    with pytest.raises(ConfigError, match="BPE"):
        extend(tokenizer_of("word", 500, english(20_000)), [], 5, iter(["a b"]))
