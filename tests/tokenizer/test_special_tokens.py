"""Each family's tokenizer, learned here, is opened by transformers and frames the same; so is one that was given more special tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
from framing_families import FAMILIES, both
from tokenizer_samples import chinese, english, tokenizer_of
from transformers import AutoTokenizer

from luban.foundation.errors import ConfigError
from luban.tokenizer.algorithms import Plan, learn
from luban.tokenizer.framing import frame
from luban.tokenizer.special import STYLES, add_sentinels, add_special, with_entity_markers
from luban.tokenizer.tokenizer import Tokenizer

TEXTS = ["To be, or not to be?", "白日依山尽，黄河入海流。", "Café and 中文 mixed", "", "  two  spaces\nand a line"]
SPECIALS = {
    "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "bart": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "t5": ["<pad>", "</s>", "<unk>"],
}
NAMES = {"eos_token", "bos_token", "cls_token", "sep_token", "pad_token", "mask_token", "unk_token"}


def styled(style: str, algorithm: str | None = None, size: int = 1500, **options: object) -> Tokenizer:
    texts = english(40_000) + chinese(60)
    core, named = learn(Plan(algorithm or STYLES[style].algorithm, size, style=style, **options), lambda: iter(texts))
    return Tokenizer(core, {"tokenizer_class": "PreTrainedTokenizerFast", **named})


def check(ours: Tokenizer, folder, texts=TEXTS, model_type: str | None = None) -> None:
    ours.save(folder)
    if model_type:  # beside a model transformers would like to choose a class of its own
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = AutoTokenizer.from_pretrained(folder)
    again = Tokenizer.load(folder)
    assert again.fingerprint() == ours.fingerprint()
    for first in texts:
        for second in (None, "中文 and more"):
            framed = frame(again, first, second, maximum=200, allow_special=True)
            expected = theirs(first, second, return_token_type_ids=True)
            assert framed.ids == expected["input_ids"] and framed.types == expected["token_type_ids"]
    for name, index in (("mask", again.mask_id), ("cls", again.cls_id), ("sep", again.sep_id), ("pad", again.pad_id)):
        assert getattr(theirs, f"{name}_token_id") == index
    assert set(theirs.all_special_ids) <= set(np.flatnonzero(again.is_special))


@pytest.mark.parametrize("style", list(SPECIALS))
def test_a_style_has_its_familys_tokens_in_their_places(style, tmp_path):
    tokenizer = styled(style)
    assert [tokenizer.core.id_to_token(index) for index in range(len(SPECIALS[style]))] == SPECIALS[style]
    assert tokenizer.vocabulary_size == 1500 and tokenizer.chat_template is None
    check(tokenizer, tmp_path, [*TEXTS, f"a {tokenizer.special_tokens.get('mask_token', '<extra_id_5>')} b"], style)
    assert ("token_type_ids" in AutoTokenizer.from_pretrained(tmp_path)("a", "b")) == (style == "bert")
    end = {"bert": "[SEP]"}.get(style, "</s>")
    assert tokenizer.core.id_to_token(tokenizer.end_of_text_id) == end and tokenizer.stop_ids == [tokenizer.end_of_text_id]
    begin = tokenizer.begin_of_text_id
    assert (None if begin is None else tokenizer.core.id_to_token(begin)) == {"bert": "[CLS]", "t5": None}.get(style, "<s>")


def test_t5_ends_with_its_sentinels_the_first_one_last():
    tokenizer = styled("t5")
    assert tokenizer.sentinel_ids == list(range(1499, 1399, -1)) and tokenizer.core.id_to_token(1499) == "<extra_id_0>"
    assert tokenizer.mask_id is None and tokenizer.is_special.sum() == 103
    assert frame(tokenizer, "a <extra_id_0> b", maximum=60).ids.count(1499) == 0
    assert frame(tokenizer, "a <extra_id_0> b", maximum=60, allow_special=True).ids.count(1499) == 1


def test_bert_cuts_chinese_singly_and_lowers_when_asked(tmp_path):
    tokens = lambda tokenizer, text: [tokenizer.core.id_to_token(index) for index in tokenizer.encode(text)]  # noqa: E731
    assert tokens(styled("bert"), "白日依山尽") == list("白日依山尽")
    lower = styled("bert", lowercase=True)
    assert lower.encode("TO BE Café") == lower.encode("to be cafe") and styled("bert").encode("TO") != styled("bert").encode("to")
    check(lower, tmp_path, [*TEXTS, "ÀÉÎ ÜBER"])


@pytest.mark.parametrize(("style", "algorithm"), [("bert", "byte_bpe"), ("roberta", "wordpiece"), ("t5", "byte_bpe"), ("bert", "unigram")])
def test_styles_go_with_other_algorithms(style, algorithm, tmp_path):
    tokenizer = styled(style, algorithm, byte_fallback=False)
    assert tokenizer.unk_id == tokenizer.core.token_to_id("[UNK]" if style == "bert" else "<unk>")
    check(tokenizer, tmp_path)


def test_a_mask_takes_the_space_before_it(tmp_path):
    tokenizer = styled("roberta")
    tokens = [tokenizer.core.id_to_token(index) for index in tokenizer.encode("to <mask> be", allow_special=True)]
    assert tokens == ["to", "<mask>", "Ġbe"]


@pytest.mark.parametrize("style", list(SPECIALS))
def test_too_small_a_vocabulary_is_told(style):
    with pytest.raises(ConfigError, match="too small"):
        styled(style, size=len(SPECIALS[style]))


# ---- more special tokens


@pytest.mark.parametrize("name", ["bert", "roberta", "t5", "bart"])
def test_markers_and_sentinels_go_behind_and_come_back(name, tmp_path):
    _, old = both(name, tmp_path)
    size, before = old.vocabulary_size, old.fingerprint()
    marked, markers = with_entity_markers(old)
    assert markers == list(range(size, size + 4)) and old.fingerprint() == before
    both_kinds, sentinels = add_sentinels(marked, 3)
    assert sentinels == both_kinds.sentinel_ids == list(range(size + 4, size + 7))
    again, same = add_sentinels(both_kinds, 5)
    assert same[:3] == sentinels and again.vocabulary_size == size + 9
    check(again, tmp_path / "more", [*TEXTS, "[E1] 王芳 [/E1] met [E2] Ann [/E2] <extra_id_4>"])
    assert old.encode(TEXTS[0]) == again.encode(TEXTS[0])
    assert not set(markers) & set(again.encode("[E1] x [/E1]")), "a text cannot forge a marker"
    custom, (index,) = with_entity_markers(old, ["<药物>"])
    assert custom.core.id_to_token(index) == "<药物>"


def test_a_plain_tokenizer_learns_to_mask_and_to_classify(tmp_path):
    plain = tokenizer_of("byte_bpe", 800, english(40_000))
    masked, ids = add_special(plain, {"mask": "[MASK]"})
    assert ids == {"mask": 800} and masked.mask_id == 800 and plain.mask_id is None and masked.layout == plain.layout
    assert [masked.core.id_to_token(i) for i in masked.encode("to [MASK]", allow_special=True)][-1] == "[MASK]"
    full, ids = add_special(masked, {"cls": "[CLS]", "sep": "[SEP]", "pad_token": "[PAD]"})
    assert ids == {"cls": 801, "sep": 802, "pad_token": 803} and full.pad_id == 803 and plain.pad_id == 0
    check(full, tmp_path)
    assert frame(full, "a", maximum=9).ids == [801, *plain.encode("a"), 802]
    assert full.chat_template == plain.chat_template and full.end_of_text_id == plain.end_of_text_id
    known, ids = add_special(plain, {"sep": "<|endoftext|>"})
    assert ids == {"sep": 0} and known.vocabulary_size == 800


def test_a_decoders_begin_gives_way_to_cls(tmp_path):
    _, llama = both("llama", tmp_path)
    grown, _ = add_special(llama, {"cls": "<s>", "sep": "</s>", "mask": "<mask>", "pad": "</s>"})
    check(grown, tmp_path / "grown")


def test_old_and_new_lists_of_extra_tokens_are_kept(tmp_path):
    _, bert = both("bert", tmp_path)
    old = Tokenizer(bert.core, {**bert.config, "additional_special_tokens": ["[PAD]", {"content": "[MASK]"}]})
    grown, _ = with_entity_markers(old, ["[E1]"])
    assert grown.config["extra_special_tokens"] == ["[PAD]", "[MASK]", "[E1]"] and "additional_special_tokens" not in grown.config
    named = Tokenizer(bert.core, {**bert.config, "extra_special_tokens": {"image_token": "[MASK]"}})
    grown, _ = with_entity_markers(named, ["[E1]"])
    check(grown, tmp_path / "named", ["[E1] a"])


def test_bad_names_are_told():
    plain = tokenizer_of("byte_bpe", 400, ["a"])
    for tokens in ({"masc": "[MASK]"}, {"mask": ""}, {"mask": " [MASK]"}):
        with pytest.raises(ConfigError, match="special token"):
            add_special(plain, tokens)
    with pytest.raises(ConfigError, match="marker"):
        with_entity_markers(plain, ["ok", ""])


def test_padding_and_truncation_of_a_file_are_off(tmp_path):
    theirs, ours = both("bert", tmp_path)
    assert theirs.backend_tokenizer.to_str() and json.loads((tmp_path / "bert" / "tokenizer.json").read_text())["model"]
    raw = json.loads((tmp_path / "bert" / "tokenizer.json").read_text())
    raw["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    raw["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    (tmp_path / "bert" / "tokenizer.json").write_text(json.dumps(raw))
    loaded = Tokenizer.load(tmp_path / "bert")
    text = "to be or not " * 20
    assert loaded.encode(text) == ours.encode(text) and len(loaded.encode("to")) < 5
    assert len(frame(loaded, text, maximum=400).ids) > 60


def test_every_family_knows_its_special_ids(tmp_path):
    for name in FAMILIES:
        theirs, ours = both(name, tmp_path)
        assert (ours.mask_id, ours.cls_id, ours.sep_id) == (theirs.mask_token_id, theirs.cls_token_id, theirs.sep_token_id)
        assert set(theirs.all_special_ids) <= set(np.flatnonzero(ours.is_special)) and ours.is_special.dtype == bool
        assert ours.sentinel_ids == []
