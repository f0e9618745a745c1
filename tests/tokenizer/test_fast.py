"""The fast way of encoding gives the ids of `tokenizers`, or is not taken."""

from __future__ import annotations

import json
import random
import unicodedata

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_samples import chinese, english, tokenizer_of
from tokenizers import AddedToken, Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core

from luban.tokenizer import fast, tokenizer
from luban.tokenizer.algorithms import QWEN2_PATTERN

TEXTS = english() + chinese()


@pytest.fixture(scope="module")
def made():
    return tokenizer_of("byte_bpe", 3000, TEXTS)


def plain(made, texts):
    return [encoding.ids for encoding in made._plain.encode_batch(texts, add_special_tokens=False)]


def test_real_text_control_tokens_and_odd_characters_give_the_same_ids(made):
    odd = ["", " ", "\r\n\r\n  \t x", "<|endoftext|> <|im_end|>", "e\u0301 A\u030a ﬁ 한국어 \u1100\u1161", "👩‍👩‍👧‍👦 🇨🇳", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵", "\u0085\u2028\u3000\u00a0\u180e x", "𠀀𪚥龘\U00031350", "\U0003134b\ufdd0\u0378", "１２３4५", "don't I'LL we'Re"]
    found = made._fast.encode_batch([*TEXTS, *odd], 2)
    assert found == plain(made, [*TEXTS, *odd])
    endless = [" " * 2_000_000 + "x", "\t\n " * 20_000, "a" * 50_000, "春" * 50_000]
    assert made._fast.encode_batch(endless, 2) == plain(made, endless)
    assert not fast.is_known("\u0378") and fast.is_known("龘𠀀 e\u0301")


def test_large_batches_take_it_and_small_ones_do_not(made, monkeypatch):
    asked = []
    monkeypatch.setattr(fast.FastEncoder, "encode_batch", lambda self, texts, threads: asked.append(len(texts)) or [[1]] * len(texts))
    assert made.encode_batch(["To be"]) == plain(made, ["To be"]) and not asked
    assert made.encode_batch(["a" * tokenizer.LARGE_CHARACTERS]) == [[1]] and asked == [1]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(alphabet=st.one_of(st.sampled_from("abc ab the 春夜雨\n\r'\t0 1,.;é\u0301"), st.characters(exclude_categories=["Cs"])), max_size=60), max_size=4))
def test_any_text_gives_the_same_ids(made, texts):
    assert made._fast.encode_batch(texts, 1) == plain(made, texts)


def test_random_merges_give_the_same_ids_though_some_tokens_are_never_reached():
    chance = random.Random(3)
    for _ in range(30):
        tokens, merges = list("abcd"), []
        while len(merges) < 40:
            pair = chance.choice(tokens), chance.choice(tokens)
            if "".join(pair) not in tokens and len("".join(pair)) < 9:
                merges.append(pair)
                tokens.append("".join(pair))
        alphabet = sorted(fast.byte_of_character())
        vocabulary = {token: index for index, token in enumerate([*alphabet, *tokens[4:]])}
        core = Core(models.BPE(vocabulary, merges))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        texts = ["".join(chance.choice("abcd") for _ in range(chance.randrange(1, 40))) for _ in range(60)]
        assert fast.fast_encoder(core).encode_batch(texts, 1) == [encoding.ids for encoding in core.encode_batch(texts)]


def changed(made, change):
    data = json.loads(made._plain.to_str())
    change(data)
    return Core.from_str(json.dumps(data))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["model"].update(dropout=0.1),
        lambda data: data.update(normalizer={"type": "Lowercase"}),
        lambda data: data["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        lambda data: data["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
        lambda data: data["model"]["merges"].reverse(),
    ],
)
def test_other_rules_are_not_taken(made, change):
    assert fast.fast_encoder(changed(made, change)) is None


def test_added_words_and_other_kinds_are_not_taken(made):
    core = changed(made, lambda data: None)
    core.add_tokens([AddedToken("鲁班", special=False)])
    assert fast.fast_encoder(core) is None
    assert fast.fast_encoder(tokenizer_of("wordpiece", 1500, TEXTS[:20])._plain) is None
    assert tokenizer_of("unigram", 800, TEXTS[:20])._fast is None


def test_gpt2s_own_rules_are_taken():
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.train_from_iterator(TEXTS[:30], trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    texts = [*TEXTS[30:60], "it's  1234 ünï\t\tx\n\n y"]
    assert fast.fast_encoder(core).encode_batch(texts, 1) == [encoding.ids for encoding in core.encode_batch(texts)]


@pytest.mark.slow
def test_every_character_is_cut_as_tokenizers_cuts_it():
    """The two libraries have Unicode tables of their own: what Python knows, both class alike. A piece that is a token comes back as that token, so ids show the cuts."""
    cut = pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")
    known = [chr(point) for point in range(0x110000) if unicodedata.category(chr(point)) not in ("Cn", "Cs")]
    for start in range(0, len(known), 5000):
        text = "".join(f"a{character}b {character}{character}\n{character}1" for character in known[start : start + 5000])
        pieces = [piece.encode() for piece, _ in cut.pre_tokenize_str(text)]
        ranks = {piece: index for index, piece in enumerate(dict.fromkeys([*(bytes([byte]) for byte in range(256)), *pieces]))}
        encoding = tiktoken.Encoding("pieces", pat_str=QWEN2_PATTERN, mergeable_ranks=ranks, special_tokens={})
        assert encoding.encode_ordinary(text) == [ranks[piece] for piece in pieces]
