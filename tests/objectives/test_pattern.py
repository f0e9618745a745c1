"""Label words in a pattern: scores of brute force over transformers' logits, calibration, few-shot tuning, and a model that is given the pattern alone."""

from __future__ import annotations

import random

import pytest
import torch
from pair_lab import open_task
from text_lab import shape_of, tokenizer_of_style
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import luban
from luban.foundation.errors import ConfigError
from luban.inference.patterns import CONTENT_FREE, Asker, classify, fill
from luban.inference.predictor import Predictor
from luban.models.families import build_model
from luban.models.heads import Head
from luban.models.huggingface import save_model

WORDS = {"good": "good", "bad": "my", "odd": "Sycorax"}  # of one token, and of several
TEXTS = [("Friends, Romans, countrymen", ""), ("春风又绿江南岸", ""), ("", "")]


def written(folder, style, architecture, **settings):
    """A model directory with a pattern, its tokenizer, and transformers' model of it."""
    tokenizer = tokenizer_of_style(style)
    known = {"maximum_tokens": 64, "pattern": "{text} It was {label}.", "words": WORDS, "normalize": "tokens", **settings}
    head = Head("language_model", "pattern", tuple(WORDS), settings=known)
    model = build_model(shape_of(architecture, tokenizer, dropout=None if architecture == "llama" else 0.0)).initialize(3).with_head(head).eval()
    save_model(model, folder, end_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    tokenizer.save(folder)
    theirs = (AutoModelForMaskedLM if style in ("bert", "roberta") else AutoModelForCausalLM).from_pretrained(folder).eval()
    return Predictor.load(folder), tokenizer, theirs


@torch.no_grad()
def by_hand(tokenizer, theirs, text, decoder, mean=True):
    """Scores of the three words, each in a pass of its own."""
    scores = []
    for word in WORDS.values():
        if decoder:
            prompt, target = tokenizer.encode(f"{text} It was"), tokenizer.encode(f" {word}")
            nats = theirs(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
            each = [nats[len(prompt) - 1 + place, token] for place, token in enumerate(target)]
        else:
            target = tokenizer.encode(f" {word}")
            filled = f"{text} It was " + tokenizer.special_tokens["mask_token"] * len(target) + "."
            ids = torch.tensor([tokenizer.core.encode(filled).ids])
            places = (ids[0] == tokenizer.mask_id).nonzero()[:, 0]
            assert len(places) == len(target)
            nats = theirs(ids).logits[0].log_softmax(-1)
            each = [nats[place, token] for place, token in zip(places, target, strict=True)]
        total = torch.stack(each)
        scores.append(total.mean() if mean else total.sum())
    return torch.stack(scores)


@pytest.mark.parametrize("normalize", ["tokens", "none"])
@pytest.mark.parametrize(("style", "architecture"), [("bert", "bert"), ("roberta", "roberta"), ("plain", "gpt2"), ("plain", "llama")])
def test_scores_are_those_of_transformers_word_by_word(tmp_path, style, architecture, normalize):
    predictor, tokenizer, theirs = written(tmp_path, style, architecture, normalize=normalize)
    sizes = {len(tokenizer.encode(f" {word}")) for word in WORDS.values()}
    assert 1 in sizes and max(sizes) > 1
    decoder = style == "plain"
    said = predictor.predict([{"text": text} for text, _ in TEXTS])
    for (text, _), one in zip(TEXTS, said, strict=True):
        expected = by_hand(tokenizer, theirs, text, decoder, normalize == "tokens").softmax(-1)
        torch.testing.assert_close(torch.tensor(list(one["probabilities"].values())), expected, atol=1e-5, rtol=1e-4)
        assert list(WORDS).index(one["label"]) == int(expected.argmax())


def test_calibration_divides_by_what_empty_texts_get(tmp_path):
    predictor, tokenizer, theirs = written(tmp_path, "plain", "gpt2", calibrate=True)
    empty = torch.stack([by_hand(tokenizer, theirs, text, True).softmax(-1) for text in CONTENT_FREE]).mean(0)
    raw = by_hand(tokenizer, theirs, "the king", True).softmax(-1)
    expected = raw / empty / (raw / empty).sum()
    torch.testing.assert_close(torch.tensor(list(predictor.predict(["the king"])[0]["probabilities"].values())), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("style", "kind"), [("bert", "encoder"), ("plain", "decoder")])
def test_a_long_text_is_cut_and_the_pattern_is_whole(style, kind):
    tokenizer = tokenizer_of_style(style)
    asker = Asker(tokenizer, ["good", "bad"], {"pattern": "{text} So, {pair}: it was {label}.", "words": WORDS, "maximum_tokens": 40}, kind)
    for row in asker.rows("the king " * 20_000, "my lord " * 10_000):
        assert len(row.framed.ids) <= 40
        text = tokenizer.decode(row.framed.ids)
        assert text.startswith("the king") and "my lord" in text and ": it was" in text.replace(" :", ":")
    assert fill("{text}|{pair}", "{pair}", "{text}") == "{pair}|{text}"


def test_a_text_that_spells_the_mask_has_no_second_gap():
    tokenizer = tokenizer_of_style("bert")
    asker = Asker(tokenizer, ["good", "bad"], {"pattern": "{text} It was {label}.", "words": {"good": "love", "bad": "death"}, "maximum_tokens": 40}, "encoder")
    (row,) = asker.rows("a [MASK] b", "")
    assert row.framed.ids.count(tokenizer.mask_id) == len(row.places)


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"pattern": "{text} it was"}, "encoder", "label"),
        ({"pattern": "{label}: {text}"}, "decoder", "behind"),
        ({"words": {"good": "love", "bad": "love"}}, "encoder", "same word"),
        ({"words": {"good": "", "bad": "love"}}, "decoder", "cannot write"),
    ],
)
def test_patterns_that_cannot_work_are_refused(settings, kind, said):
    known = {"pattern": "{text} It was {label}.", "words": {}, "maximum_tokens": 40, **settings}
    with pytest.raises(ConfigError, match=said):
        Asker(tokenizer_of_style("bert" if kind == "encoder" else "plain"), ["good", "bad"], known, kind)
    with pytest.raises(ConfigError, match="mask"):
        Asker(tokenizer_of_style("plain"), ["good", "bad"], {"pattern": "{text} {label}", "maximum_tokens": 40}, "encoder")


def sentences(folder, number, seed=0, name="data.csv"):
    """Texts about a king are good, about a queen bad."""
    rng = random.Random(seed)
    rows = []
    for _ in range(number):
        label = rng.choice(["good", "bad"])
        words = rng.choices(["the", "my", "lord", "night", "sword"], k=3)
        words.insert(rng.randint(0, 3), "king" if label == "good" else "queen")
        rows.append(f"{' '.join(words)},{label}")
    path = folder / name
    path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(("style", "architecture"), [("bert", "bert"), ("plain", "llama")])
def test_terms_are_the_cross_entropy_of_what_predict_says(tmp_path, style, architecture):
    objective, loaders, request = open_task(tmp_path, sentences(tmp_path, 30), style, architecture, name="pattern", settings={"words": {"good": "love", "bad": "Sycorax"}}, dropout=None if architecture == "llama" else 0.0)
    model = build_model(request.shape).initialize(3).with_head(objective.head).eval()
    batch = next(loaders.train.pass_once())
    assert batch.group == 2 and objective.counts(batch)["loss"] == 8
    examples = {example.source: example for example in loaders.held_out} | {unit[0].source: None for unit in loaders.train.units}
    assert len(examples) == 30
    outputs = objective.outputs(model, batch)
    loss = objective.terms(model, batch)["loss"].sum.item()
    lines = (tmp_path / "data.csv").read_text(encoding="utf-8").splitlines()
    texts = [lines[int(source.rpartition(":")[2]) - 1].split(",") for source in batch.sources[::2]]
    said = classify(model, request.tokenizer, [{"text": text} for text, _ in texts], 4)
    torch.testing.assert_close(outputs.softmax(-1).detach(), torch.tensor([list(one["probabilities"].values()) for one in said]), atol=1e-5, rtol=1e-4)
    nats = sum(-torch.tensor(one["probabilities"][label]).log().item() for one, (_, label) in zip(said, texts, strict=True))
    assert loss == pytest.approx(nats, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("style", "architecture"), [("bert", "bert"), ("plain", "llama")])
def test_eight_examples_a_label_are_enough_for_a_planted_rule_and_none_are_needed(tmp_path, style, architecture):
    tokenizer = tokenizer_of_style(style)
    start = tmp_path / "start"
    model = build_model(shape_of(architecture, tokenizer)).initialize(3)
    save_model(model, start, end_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    tokenizer.save(start)
    data, test = sentences(tmp_path, 200), sentences(tmp_path, 60, seed=1, name="test.csv")
    common = {"kind": "train", "model": str(start), "threads": 1, "track": {"tensorboard": False}}
    pattern = {"name": "pattern", "pattern": "{text} is {label}.", "words": {"good": "love", "bad": "death"}}
    stages = {
        "zero": {**common, "objective": {**pattern, "zero_shot": True}, "data": str(test)},
        "few": {**common, "objective": pattern, "data": f"{data}#8/label", "length": "60 steps", "batch_examples": 8, "optimizer": {"learning_rate": 1e-2}, "validation": {"share": 0, "every": "60 steps"}},
        "report": {"kind": "evaluate", "models": ["zero", "few"], "data": str(test)},
    }  # fmt: skip
    zero, few, report = luban.run({"name": "few", "seed": 1, "stages": stages}, out=tmp_path / "run")
    assert zero.metrics["steps"] == 0 and zero.metrics["validation_examples"] == 60
    before, after = Predictor.load(start).model.state_dict(), Predictor.load(zero.path).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert report.metrics["few_accuracy"] >= 0.9 > report.metrics["zero_accuracy"]
