"""Blanks, next words, spans and middles: predictions are what the model's probabilities say, on texts as users write them."""

from __future__ import annotations

import pytest
import torch
from text_lab import shape_of, tokenizer_of_style

from luban.foundation.errors import DataError
from luban.inference.filling import MIDDLE_TOKENS, _spans
from luban.inference.predictor import PREDICTORS, Predictor
from luban.models.families import build_model
from luban.models.heads import Head
from luban.tokenizer.special import add_sentinels, with_entity_markers


def predictor_of(style: str, architecture: str, task: str, tokenizer=None, **settings) -> Predictor:
    tokenizer = tokenizer or tokenizer_of_style(style)
    model = build_model(shape_of(architecture, tokenizer)).initialize(3)
    return Predictor(model.with_head(Head("language_model", task, settings={"maximum_tokens": 64, **settings})), tokenizer)


def test_every_objective_on_text_predicts():
    assert {"causal", "masked", "span_corruption", "denoising", "prefix", "fill_in_middle"} <= set(PREDICTORS)


@pytest.mark.parametrize("style, architecture", [("bert", "bert"), ("roberta", "roberta")])
def test_blanks_are_filled_by_probability(style, architecture):
    predictor = predictor_of(style, architecture, "masked")
    tokenizer, model = predictor.tokenizer, predictor.model
    found = predictor.predict(["The king of [MASK] came.", {"text": "明月几时有，把[MASK]问<mask>天", "top": 3}])
    assert [len(fills) for fills in found[0]["fills"]] == [5] and [len(fills) for fills in found[1]["fills"]] == [3, 3]
    mask = tokenizer.special_tokens["mask_token"]
    ids = tokenizer.core.encode(f"The king of {mask} came.").ids
    probabilities = model.logits(model(torch.tensor([ids])))[0, ids.index(tokenizer.mask_id)].softmax(-1)
    probabilities[torch.from_numpy(tokenizer.is_special)] = 0
    best = probabilities.topk(5)
    assert [fill["probability"] for fill in found[0]["fills"][0]] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert [fill["token"] for fill in found[0]["fills"][0]] == [tokenizer.core.id_to_token(index) for index in best.indices.tolist()]
    chosen = found[0]["fills"][0][0]
    space = "" if chosen["token"].startswith("##") else " "
    assert found[0]["text"] == f"The king of{space}{chosen['text']} came."
    assert found[1]["text"].startswith("明月几时有，把") and "MASK" not in found[1]["text"]


def test_a_text_without_a_blank_is_named():
    predictor = predictor_of("bert", "bert", "masked")
    with pytest.raises(DataError, match="item 2: there is no blank"):
        predictor.predict(["a [MASK]", "nothing to do"])
    with pytest.raises(DataError, match="beyond the first"):
        predictor.predict(["the king " * 100 + "[MASK]"])
    with pytest.raises(DataError, match="'text' is missing"):
        predictor.predict([{"words": "a [MASK]"}])


def test_next_words_are_the_likeliest():
    tokenizer = tokenizer_of_style("plain")
    model = build_model(shape_of("llama", tokenizer)).initialize(3)
    predictor = Predictor(model, tokenizer)  # no head: a plain language model
    found = predictor.predict([{"text": "the king", "top": 4}, "春风", ""])
    for item, text in zip(found, ("the king", "春风"), strict=False):
        ids = tokenizer.encode(text)
        probabilities = model.logits(model(torch.tensor([ids]))[0, -1]).softmax(-1)
        probabilities[torch.from_numpy(tokenizer.is_special)] = 0
        best = probabilities.topk(len(item["next"]))
        assert [word["probability"] for word in item["next"]] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert len(found[0]["next"]) == 4 and len(found[2]["next"]) == 5


def test_spans_are_read_by_their_sentinels():
    tokenizer = tokenizer_of_style("t5")
    first, second, third = tokenizer.sentinel_ids[:3]
    ids = [first, *tokenizer.encode("the king"), second, *tokenizer.encode("春风"), third]
    assert _spans(tokenizer, ids) == {0: "the king", 1: "春风", 2: ""}


@pytest.mark.parametrize("style, architecture", [("t5", "t5"), ("bart", "bart")])
def test_spans_are_put_into_the_text(style, architecture):
    tokenizer = add_sentinels(tokenizer_of_style(style))[0]
    predictor = predictor_of(style, architecture, "span_corruption", tokenizer)
    found = predictor.predict(["The <extra_id_0> came to <extra_id_1>.", "no more <extra_id_0>"])
    assert [len(item["fills"]) for item in found] == [2, 1]
    assert found[0]["text"] == f"The {found[0]['fills'][0]} came to {found[0]['fills'][1]}."
    with pytest.raises(DataError, match="no blank"):
        predictor.predict(["The king"])


def test_texts_are_written():
    assert isinstance(predictor_of("bart", "bart", "denoising").predict(["The [MASK] came. <mask>"])[0]["text"], str)
    assert isinstance(predictor_of("t5", "t5", "prefix").predict(["The king"])[0]["text"], str)
    assert isinstance(predictor_of("plain", "llama", "prefix").predict(["The king", ""])[1]["text"], str)


def test_middles_are_written_from_both_ends():
    tokenizer = with_entity_markers(tokenizer_of_style("plain"), MIDDLE_TOKENS)[0]
    for order in ("prefix_suffix_middle", "suffix_prefix_middle"):
        predictor = predictor_of("plain", "llama", "fill_in_middle", tokenizer, order=order)
        assert isinstance(predictor.predict([{"prefix": "the king", "suffix": "came"}])[0]["text"], str)
    with pytest.raises(DataError, match="'suffix' is missing"):
        predictor.predict([{"prefix": "the king"}])
    with pytest.raises(DataError, match="no token"):
        predictor_of("plain", "llama", "fill_in_middle").predict([{"prefix": "a", "suffix": "b"}])
