"""Tagging: reading in windows, decoding under rules, the loss, and learning, against brute force and transformers."""

from __future__ import annotations

import ast
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from span_lab import byte_tokenizer, learn, model_for, open_task, planted_text, some_names, wordpiece
from test_question_answering import planted as planted_questions
from test_relation import planted as planted_relations

from luban.examples.tasks import Span, TaggedText
from luban.foundation.errors import ConfigError, DataError
from luban.inference.predictor import Predictor
from luban.inference.spans import best_path, decode, owner, read_texts, rules_of, transitions, unit_groups, window_ranges
from luban.metrics.tagging import spans_of_tags
from luban.models.heads import Head
from luban.models.huggingface import load_model, save_model
from luban.objectives import windowed
from luban.parallel.engine import TorchEngine
from luban.tokenizer.alignment import align_spans, tag_names
from luban.training.passes import make_passes
from luban.training.regularization import RegularizationConfig


def planted(count: int, seed: int = 0, longest: int = 20) -> list[dict]:
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        person, place = some_names(random)
        text, spans = planted_text(random, [(person, "person"), (place, "place")], int(random.integers(3, longest)))
        rows.append({"text": text, "spans": [{"start": start, "end": end, "label": label} for start, end, label in spans]})
    return rows


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    objective, loaders, request = open_task(tmp_path_factory.mktemp("tagging"), planted(240), name="tagging", length=16, examples=24)
    return objective, loaders, request, learn(objective, loaders, model_for(objective, request), 45)


# ---- decoding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_viterbi_finds_what_trying_all_paths_finds(scheme: str, length: int):
    tags = tag_names(["a", "b"], scheme)
    legal = [path for path in itertools.product(range(len(tags)), repeat=length) if is_legal([tags[number] for number in path], scheme)]
    random = np.random.default_rng(length)
    for _ in range(20):
        values = random.normal(size=(length, len(tags)))
        wanted = max(legal, key=lambda path: sum(values[place, tag] for place, tag in enumerate(path)))
        assert best_path(values, *transitions(tags)) == list(wanted)


def is_legal(tags: list[str], scheme: str) -> bool:
    """By the definition: what the strict reading makes of the tags writes the same tags."""
    written = ["O"] * len(tags)
    for start, end, label in spans_of_tags(tags, scheme, strict=scheme == "BIOES"):
        for place in range(start, end):
            written[place] = f"I-{label}"
        written[start] = f"B-{label}"
        if scheme == "BIOES":
            written[end - 1] = f"S-{label}" if end - start == 1 else f"E-{label}"
    return written == tags


def test_equal_paths_are_chosen_by_the_order_of_the_tags():
    assert best_path(np.zeros((3, 5)), *transitions(tag_names(["a", "b"]))) == [0, 0, 0]
    assert best_path(np.zeros((0, 5)), *transitions(tag_names(["a", "b"]))) == []


def test_a_head_that_others_trained_may_begin_a_span_with_inside():
    head = Head("token", "tagging", ("O", "B-x", "I-x", "NOUN"))
    reading = read_texts(wordpiece(), ["anna saw paris"], [None], {})[0]
    values = np.log(np.array([[0.1, 0.1, 0.7, 0.1], [0.1, 0.1, 0.1, 0.7], [0.7, 0.1, 0.1, 0.1]]))
    found = decode(values, head.labels, reading.units, "anna saw paris", rules_of(head, head.labels))
    assert [(span["text"], span["label"]) for span in found] == [("anna", "x"), ("saw", "NOUN")]


# ---- windows and units -------------------------------------------------------------------------------------------------


def test_windows_cover_every_token_and_begin_at_words():
    random = np.random.default_rng(0)
    for _ in range(300):
        count, room = int(random.integers(0, 60)), int(random.integers(1, 20))
        stride = int(random.integers(0, 12))
        bounds = [0, *sorted(random.choice(np.arange(1, count), int(random.integers(0, count // 2 + 1)), replace=False).tolist())] if count > 1 else []
        ranges = window_ranges(count, room, stride, bounds)
        assert ranges[0][0] == 0 and ranges[-1][1] == count and all(0 <= end - start <= room for start, end in ranges)
        for (start, end), (after, _) in itertools.pairwise(ranges):
            assert start < after <= end - min(stride, room - 1)
        for token in range(count):
            inside = [number for number, (start, end) in enumerate(ranges) if start <= token < end]

            def sight(number: int, token: int = token, ranges=ranges) -> float:
                start, end = ranges[number]
                return min(token - start if number else np.inf, end - 1 - token if number < len(ranges) - 1 else np.inf)

            assert owner(ranges, token) == max(inside, key=lambda number: (sight(number), -number))


@pytest.mark.parametrize("subwords", ["first", "all"])
@pytest.mark.parametrize("tokenizer", [wordpiece, byte_tokenizer])
def test_units_hold_every_character_once_however_long_the_windows(subwords: str, tokenizer):
    texts = ["anna saw dmitri in 北京, xyz's 3.5 a", "张三去了上海", "", "   ", "é😀a", "ab\u3000c\n\nabc"]
    whole = read_texts(tokenizer(), texts, [None] * len(texts), {"subwords": subwords, "maximum_tokens": 500})
    cut = read_texts(tokenizer(), texts, [None] * len(texts), {"subwords": subwords, "maximum_tokens": 7, "stride": 2})
    for text, one, other in zip(texts, whole, cut, strict=True):
        covered = sorted(place for start, end in one.units.offsets for place in range(start, end) if not text[place].isspace())
        assert covered == [place for place, letter in enumerate(text) if not letter.isspace()]
        assert one.units.offsets == other.units.offsets and len(one.windows) == 1
        for reading in (one, other):
            assert len(reading.places) == len(reading.units.ids)
            for token, (window, place) in zip(reading.units.ids, reading.places, strict=True):
                assert reading.windows[window].ids[place] == token
            for window, shown in zip(reading.windows, reading.shown, strict=True):
                assert [window.ids[place] for _, place in shown] == [reading.units.ids[unit] for unit, _ in shown] and len(window.ids) <= 500
        assert all(len(window.ids) <= 7 for window in other.windows)


def test_words_are_units_and_no_token_crosses_their_bounds():
    reading = read_texts(byte_tokenizer(), ["abc"], [[(0, 1), (1, 3)]], {})[0]
    assert reading.units.offsets == [(0, 1), (1, 3)]
    assert read_texts(byte_tokenizer(), ["abc"], [None], {})[0].units.offsets == [(0, 3)]
    together = read_texts(wordpiece(), ["did n't"], [[(0, 3), (4, 7)]], {})[0]
    assert together.units.offsets == [(0, 3), (4, 7)]  # punctuation inside a given word parts it not


def test_tokens_of_one_character_are_one_unit():
    framed = byte_tokenizer().encode("北")
    assert len(framed) == 3
    assert unit_groups([(0, 1), (0, 1), (0, 1), (1, 2), (2, 2)], "北a ", True, None) == [[0, 1, 2], [3]]


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
def test_right_tags_give_the_spans_back(scheme: str):
    tags = tag_names(["person", "place"], scheme)
    for row in planted(40, 7):
        spans = [Span(**span) for span in row["spans"]]
        reading = read_texts(wordpiece(), [row["text"]], [None], {"maximum_tokens": 9, "stride": 2})[0]
        written = align_spans(reading.units, spans, scheme=scheme).tags
        values = np.full((len(written), len(tags)), -9.0)
        values[np.arange(len(written)), [tags.index(tag) for tag in written]] = 0.0
        found = decode(values, tags, reading.units, row["text"], transitions(tags))
        assert [(span["start"], span["end"], span["label"]) for span in found] == [(span.start, span.end, span.label) for span in spans]
        assert all(span["text"] == row["text"][span["start"] : span["end"]] and span["score"] == 1.0 for span in found)


# ---- loss --------------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_transformers(tmp_path):
    objective, loaders, request = open_task(tmp_path, planted(30, 3), name="tagging", length=32)
    model = model_for(objective, request).eval()
    save_model(model, tmp_path / "model")
    theirs = transformers.BertForTokenClassification.from_pretrained(tmp_path / "model")
    assert theirs.config.id2label[1] == "B-person"
    batch = loaders.train.step(0)
    labels = torch.where(batch.weights > 0, batch.targets, -100)
    wanted = theirs(input_ids=batch.inputs, attention_mask=(batch.segments >= 0).long(), token_type_ids=batch.types, labels=labels)
    found = objective.terms(model, batch)["loss"].sum / batch.count
    torch.testing.assert_close(found, wanted.loss, atol=1e-5, rtol=1e-5)
    objective.config = objective.config.model_copy(update={"label_smoothing": 0.2})
    wanted = torch.nn.CrossEntropyLoss(label_smoothing=0.2)(wanted.logits.transpose(1, 2), labels)
    torch.testing.assert_close(objective.terms(model, batch)["loss"].sum / batch.count, wanted, atol=1e-5, rtol=1e-5)
    assert len(objective.unit_weights(batch)) == batch.count == len(objective.outputs(model, batch))


def test_every_word_is_scored_once_whatever_the_windows(tmp_path):
    rows = planted(12, 5)
    for length in (8, 64):
        _, loaders, _ = open_task(tmp_path, rows, name="tagging", length=length, validation=rows[:2])
        scored = sum(float(unit[0].weights.sum()) for unit in loaders.train.units)
        assert scored == sum(len(row["text"].split()) for row in rows)


@pytest.mark.parametrize("name", ["tagging", "question_answering", "relation"])
def test_r_drop_compares_what_the_loss_is_made_of(tmp_path, name: str):
    rows = {"tagging": planted, "question_answering": planted_questions, "relation": planted_relations}[name](30)
    objective, loaders, request = open_task(tmp_path, rows, name=name, length=48, shape={"dropout": 0.3})
    model = model_for(objective, request).train()
    batch = loaders.train.step(0)
    torch.manual_seed(3)
    first, second = objective.outputs(model, batch), objective.outputs(model, batch)
    apart = objective.divergence(first, second)
    assert apart.shape == objective.unit_weights(batch).shape and (apart > 0).all() and (objective.divergence(first, first).abs() < 1e-5).all()
    engine = TorchEngine(model, None, objective, 4, torch.float32, make_passes(RegularizationConfig(r_drop=1.0), objective, model))
    means = engine.forward_backward(batch)
    assert means["divergence"] > 0 and all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    with pytest.raises(ConfigError, match="mixup"):
        make_passes(RegularizationConfig(mixup=0.2), objective, model)


# ---- learning ----------------------------------------------------------------------------------------------------------


def test_it_learns_and_a_directory_predicts_alone(learned, tmp_path):
    objective, loaders, request, model = learned
    scores = objective.score(model, request.tokenizer, loaders.held_out)
    assert next(iter(scores)) == "entity_micro_f1" and scores["entity_micro_f1"].value > 0.97
    assert {name for name in scores if "/" in name} == {"f1/person", "f1/place"}
    assert loaders.report["windows"] > loaders.report["examples"]
    save_model(model, tmp_path, pad_id=0)
    request.tokenizer.save(tmp_path)
    again = Predictor(load_model(tmp_path), request.tokenizer)
    items = [objective.item_of(example) for example in loaders.held_out[:5]]
    wanted = [places(said) for said in Predictor(model, request.tokenizer).predict(items)]
    assert again.task == "tagging" and [places(said) for said in again.predict(items)] == wanted and any(wanted)
    assert [places(said) for said in again.stream(iter(items), rows=2)] == wanted
    assert again.predict(["", "  "]) == [{"spans": []}, {"spans": []}]


def places(said: dict) -> list[tuple]:
    return [(span["start"], span["end"], span["label"], round(span["score"], 4)) for span in said["spans"]]


def test_a_book_is_read_whole(learned):
    _, _, request, model = learned
    rows = planted(1000, 11, 30)
    text = " ".join(row["text"] for row in rows)
    assert len(text) > 70_000
    wanted, place = set(), 0
    for row in rows:
        wanted |= {(place + span["start"], place + span["end"], span["label"]) for span in row["spans"]}
        place += len(row["text"]) + 1
    found = Predictor(model, request.tokenizer).predict([text], rows=256)[0]["spans"]
    said = {(span["start"], span["end"], span["label"]) for span in found}
    assert len(said & wanted) / len(wanted) > 0.95 and all(text[span["start"] : span["end"]] == span["text"] for span in found)


# ---- bad data ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_as_tags_is_counted(tmp_path):
    rows = [*planted(20), {"text": "anna saw paris", "spans": [{"start": 0, "end": 2, "label": "person"}, {"start": 0, "end": 8, "label": "place"}]}, {"text": "…", "spans": []}]
    held = [{"text": "anna saw lima", "spans": [{"start": 0, "end": 4, "label": "planet"}]}, {"text": "the house", "spans": []}]
    objective, loaders, request = open_task(tmp_path, rows, name="tagging", validation=held)
    assert objective.head.labels == ("O", "B-person", "I-person", "B-place", "I-place")
    noticed = loaders.report["noticed"]
    assert noticed["spans overlap others, and are not learned"] == 1
    assert noticed["words have a label that no training example has: no loss is taken on them"] == 1
    assert sum(float(batch.weights.sum()) for batch in loaders.validation) == 4  # all words but the planet
    scores = objective.score(model_for(objective, request), request.tokenizer, loaders.held_out)
    assert scores["entity_micro_recall"].value == 0.0


def test_a_span_inside_a_word_takes_the_word(tmp_path):
    rows = [*planted(10), {"text": "dmitri saw", "spans": [{"start": 0, "end": 3, "label": "person"}]}]
    _, loaders, _ = open_task(tmp_path, rows, name="tagging", validation=rows[:1])
    assert loaders.report["noticed"] == {"spans begin or end inside a word or token: all of it is labelled": 1}


def test_texts_without_any_span_are_refused(tmp_path):
    with pytest.raises(DataError, match="no span to learn"):
        open_task(tmp_path, [{"text": "the house", "spans": []}, {"text": "a house", "spans": []}], name="tagging", mapping={"text": "text", "spans": "spans"})


def test_an_empty_text_is_counted():
    from luban.objectives.config import TaggingConfig
    from luban.objectives.tagging import Tagging

    made = Tagging(TaggingConfig())
    made.refused, made.noticed, made.numbers = {}, {}, {"O": 0}
    made.head = Head("token", "tagging", ("O",), settings={})
    assert made.rows_of([TaggedText("", []), TaggedText(" \n", [])], wordpiece()) == []
    assert made.refused == {"a text without a word": 2}


def test_every_reason_has_its_chinese():
    folder = Path(windowed.__file__).parent
    chinese = json.loads((folder / "zh.json").read_text(encoding="utf-8"))
    said = []
    for file in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("refuse", "notice"):
                said += [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
    assert len(said) > 10 and [reason for reason in said if reason not in chinese] == []
