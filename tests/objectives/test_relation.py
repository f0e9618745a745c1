"""Relations of two marked entities: where markers stand, what is cut, the loss, learning, and who can open the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from span_lab import learn, model_for, open_task, planted_text, some_names, wordpiece

from luban.foundation.errors import ConfigError, DataError
from luban.inference.predictor import Predictor
from luban.inference.relations import mark
from luban.models.huggingface import load_model, save_model
from luban.tokenizer.framing import frame
from luban.tokenizer.special import ENTITY_MARKERS, with_entity_markers
from luban.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def marked_tokenizer() -> Tokenizer:
    return with_entity_markers(wordpiece())[0]


def planted(count: int, seed: int = 0, longest: int = 10) -> list[dict]:
    """visits: a person and a place; hosts: a place and a person; meets: two persons."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        person, place = some_names(random)
        other = next(name for name in ("anna", "boris") if name != person)
        names = [(person, "person"), (other, "person") if number % 3 == 0 else (place, "place")]
        text, spans = planted_text(random, names, int(random.integers(3, longest)))
        head, tail = spans if random.random() < 0.5 else spans[::-1]
        label = {"personplace": "visits", "placeperson": "hosts"}.get(head[2] + tail[2], "meets")
        rows.append({"text": text, "head": {"pos": list(head[:2]), "type": head[2]}, "tail": {"pos": list(tail[:2]), "type": tail[2]}, "label": label})
    return rows


# ---- markers -----------------------------------------------------------------------------------------------------------


def spelt(text: str, head: tuple[int, int], tail: tuple[int, int]) -> str:
    """The text with markers written into it: what ends first, then what begins; the inner one inside."""
    put = []
    for number, (start, end) in enumerate((head, tail)):
        put += [(start, 1, start - end, number, ENTITY_MARKERS[2 * number]), (end, 0, -start, -number, ENTITY_MARKERS[2 * number + 1])]
    for place, *_, marker in sorted(put, reverse=True):
        text = f"{text[:place]} {marker} {text[place:]}"
    return text


def test_markers_stand_where_they_would_be_written(marked_tokenizer):
    random = np.random.default_rng(0)
    for _ in range(200):
        text, _ = planted_text(random, [], int(random.integers(1, 9)))
        bounds = [0, *(place + 1 for place, letter in enumerate(text) if letter == " ")]
        ranges = []
        for _ in range(2):
            first = int(random.integers(len(bounds)))
            last = int(random.integers(first, len(bounds)))
            ranges.append((bounds[first], ([*bounds, len(text) + 1])[last + 1] - 1))
        made = mark(marked_tokenizer, text, (*ranges[0], ""), (*ranges[1], ""), {"maximum_tokens": 100})
        wanted = frame(marked_tokenizer, spelt(text, *ranges), maximum=100, allow_special=True)
        assert made.framed.ids == wanted.ids and made.framed.types == wanted.types and made.misaligned == 0 and not made.cut
        assert [made.framed.ids[place] for place in made.markers] == [marked_tokenizer.special_ids[name] for name in ("[E1]", "[E2]")]
        for place in range(len(made.framed.ids)):
            start, end = made.framed.offsets[place]
            assert made.framed.parts[place] == (0 if start < end else -1)


def test_a_text_that_spells_a_marker_holds_none(marked_tokenizer):
    made = mark(marked_tokenizer, "[E1] anna [/E1] saw paris", (5, 9, ""), (20, 25, ""), {})
    assert made.framed.ids.count(marked_tokenizer.special_ids["[E1]"]) == 1 and made.framed.ids[made.markers[0] + 1] == marked_tokenizer.encode("anna")[0]


def test_types_are_written_as_words(marked_tokenizer):
    made = mark(marked_tokenizer, "anna saw paris", (0, 4, "the_house"), (9, 14, ""), {"entity_types": True})
    assert marked_tokenizer.decode(made.framed.ids, skip_special=False) == "[CLS] [E1] * the house * anna [/E1] saw [E2] paris [/E2] [SEP]"


def test_odd_stretches_are_marked_and_counted(marked_tokenizer):
    inside = mark(marked_tokenizer, "dmitri saw paris", (1, 3, ""), (11, 16, ""), {})
    assert inside.misaligned == 1 and marked_tokenizer.decode(inside.framed.ids, skip_special=False).startswith("[CLS] [E1] dmi")
    empty = mark(marked_tokenizer, "the house", (4, 4, ""), (4, 9, ""), {})
    assert empty.misaligned == 1 and empty.markers == (3, 2)
    nothing = mark(marked_tokenizer, "", (0, 0, ""), (0, 0, ""), {})
    assert [nothing.framed.ids[place] for place in nothing.markers] == [marked_tokenizer.special_ids[name] for name in ("[E1]", "[E2]")]


def test_both_entities_stay_visible_in_a_long_text(marked_tokenizer):
    random = np.random.default_rng(1)
    text, _ = planted_text(random, [], 300)
    bounds = [0, *(place + 1 for place, letter in enumerate(text) if letter == " ")]
    for _ in range(200):
        first, second = (int(number) for number in random.integers(0, 296, 2))
        spans = [(bounds[number], bounds[number + int(random.integers(1, 4))] - 1, "") for number in (first, second)]
        maximum = int(random.integers(14, 60))
        made = mark(marked_tokenizer, text, *spans, {"maximum_tokens": maximum})
        ids, offsets = made.framed.ids, made.framed.offsets
        assert len(ids) == maximum and not made.cut
        assert all(ids.count(marked_tokenizer.special_ids[name]) == 1 for name in ENTITY_MARKERS)
        shown = [offset for offset in offsets if offset[0] < offset[1]]
        assert shown == sorted(shown)
        for start, end, _ in spans:
            assert text[start:end].split() == [text[a:b] for a, b in shown if a >= start and b <= end]
        between = text[min(end for _, end, _ in spans) : max(start for start, _, _ in spans)].split()
        low, high = min(end for _, end, _ in spans), max(start for start, _, _ in spans)
        kept = [offset for offset in shown if low <= offset[0] and offset[1] <= high]
        outside = [offset for offset in shown if not any(start <= offset[0] < end for start, end, _ in spans) and offset not in kept]
        assert not outside or len(kept) == len(between)  # what lies around comes after what lies between


def test_entities_that_do_not_fit_are_cut_and_said(marked_tokenizer):
    made = mark(marked_tokenizer, "the house " * 20, (0, 99, ""), (100, 199, ""), {"maximum_tokens": 12})
    assert made.cut and len(made.framed.ids) == 12
    assert [made.framed.ids[place] for place in made.markers] == [marked_tokenizer.special_ids[name] for name in ("[E1]", "[E2]")]
    with pytest.raises(ConfigError, match="too few"):
        mark(marked_tokenizer, "the house", (0, 3, ""), (4, 9, ""), {"maximum_tokens": 5})


# ---- learning ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    objective, loaders, request = open_task(tmp_path_factory.mktemp("relation"), planted(300), name="relation", length=40, examples=24)
    return objective, loaders, request, learn(objective, loaders, model_for(objective, request), 300)


def test_it_learns_and_a_directory_predicts_alone(learned, tmp_path):
    objective, loaders, request, model = learned
    scores = objective.score(model, request.tokenizer, loaders.held_out)
    assert scores["accuracy"].value > 0.85 and loaders.report["labels"] == ["hosts", "meets", "visits"]
    save_model(model, tmp_path)
    again = Predictor(load_model(tmp_path), request.tokenizer)
    items = [objective.item_of(example) for example in loaders.held_out[:9]]
    for one, other in zip(again.predict(items), Predictor(model, request.tokenizer).predict(items, rows=2), strict=True):
        assert one["label"] == other["label"] and sum(one["probabilities"].values()) == pytest.approx(1)
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    trunk = transformers.AutoModel.from_pretrained(tmp_path)  # opens what it has a class for
    tokens = torch.tensor([request.tokenizer.encode("anna saw paris")])
    torch.testing.assert_close(trunk(tokens).last_hidden_state, model(tokens), atol=1e-5, rtol=1e-5)


def test_the_loss_is_a_linear_layer_on_the_states_of_both_markers(tmp_path):
    objective, loaders, request = open_task(tmp_path, planted(40), name="relation", length=48)
    model = model_for(objective, request).eval()
    save_model(model, tmp_path / "model")
    trunk = transformers.BertModel.from_pretrained(tmp_path / "model")
    batch = loaders.train.step(0)
    states = trunk(batch.inputs, attention_mask=(batch.segments >= 0).long(), token_type_ids=batch.types).last_hidden_state
    assert model.classifier.weight.shape == (3, 64) and objective.head.settings["entity_types"]
    wanted = 0.0
    for row, label in enumerate(batch.extra["labels"]):
        first, second = ((batch.inputs[row] == request.tokenizer.special_ids[name]).nonzero().item() for name in ("[E1]", "[E2]"))
        scores = model.classifier.weight @ torch.cat([states[row, first], states[row, second]]) + model.classifier.bias
        wanted += torch.logsumexp(scores, 0) - scores[label]
    torch.testing.assert_close(objective.terms(model, batch)["loss"].sum, wanted, atol=1e-4, rtol=1e-5)


def test_with_the_first_token_transformers_opens_it(tmp_path):
    objective, loaders, request = open_task(tmp_path, planted(40), name="relation", length=48, pooling="first")
    model = model_for(objective, request).eval()
    save_model(model, tmp_path / "model")
    theirs = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "model")
    batch = loaders.train.step(0)
    logits = theirs(batch.inputs, attention_mask=(batch.segments >= 0).long(), token_type_ids=batch.types).logits
    torch.testing.assert_close(objective.outputs(model, batch), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "luban-bilstm"])
def test_other_families_learn_it_too(tmp_path, architecture: str):
    from text_lab import tokenizer_of_style

    shape = {} if architecture == "gpt2" else {"heads": None, "feed_forward_size": None, "attention_dropout": None}
    style = "plain" if architecture == "gpt2" else "bert"
    objective, loaders, request = open_task(tmp_path, planted(40), name="relation", length=64, tokenizer=tokenizer_of_style(style), architecture=architecture, shape=shape)
    assert objective.head.settings["pooling"] == ("first" if architecture == "gpt2" else "markers")
    model = learn(objective, loaders, model_for(objective, request), 2)
    assert len(Predictor(model, request.tokenizer).predict([objective.item_of(example) for example in loaders.held_out])) == len(loaders.held_out)


# ---- bad data ----------------------------------------------------------------------------------------------------------


def test_one_relation_only_is_refused(tmp_path):
    rows = [row | {"label": "same"} for row in planted(9)]
    with pytest.raises(DataError, match="only one label"):
        open_task(tmp_path, rows, name="relation", mapping={"text": "text", "head": "head", "tail": "tail", "label": "label"})


def test_a_relation_that_training_lacks_is_counted_and_a_miss(tmp_path):
    held = [row | {"label": "knows"} for row in planted(3, 5)]
    objective, loaders, request = open_task(tmp_path, planted(30), name="relation", validation=held, mapping={"text": "text", "head": "head", "tail": "tail", "label": "label"})
    assert loaders.report["refused"] == {"a label that no training example has": 3} and loaders.validation == []
    assert objective.score(model_for(objective, request), request.tokenizer, loaders.held_out)["accuracy"].value == 0.0


@pytest.mark.parametrize("item", [{"text": "anna"}, {"text": "anna", "head": {"start": 0, "end": 9}, "tail": {"start": 0, "end": 2}}, {"text": "anna", "head": "anna", "tail": "anna"}])
def test_an_item_without_entities_is_named(learned, item: dict):
    _, _, request, model = learned
    with pytest.raises(DataError, match="item 1: head is no stretch of the text"):
        Predictor(model, request.tokenizer).predict([item])
