"""Question answering: windows, the search for the best span, the threshold, the loss, learning."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from span_lab import byte_tokenizer, learn, model_for, open_task, planted_text, some_names, wordpiece

from luban.examples.tasks import Question
from luban.foundation.errors import DataError
from luban.inference.answers import Found, best_span, context_places, frame_question
from luban.inference.predictor import Predictor
from luban.metrics.reading import answer_f1
from luban.models.huggingface import load_model, save_model
from luban.objectives.question_answering import answer_places, best_threshold


def planted(count: int, seed: int = 0, longest: int = 12, unanswerable: float = 0.0) -> list[dict]:
    """Who is the person, where the place."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        person, place = some_names(random)
        text, spans = planted_text(random, [(person, "person"), (place, "place")], int(random.integers(3, longest)))
        asked = "person" if random.random() < 0.5 else "place"
        start, end, _ = next(span for span in spans if span[2] == asked)
        answers = [{"text": text[start:end], "answer_start": start}]
        if random.random() < unanswerable:
            text, answers = text.replace(text[start:end], "house"), []
        rows.append({"question": "who did" if asked == "person" else "where did", "context": text, "answers": answers, "id": str(number)})
    return rows


# ---- the search --------------------------------------------------------------------------------------------------------


def test_the_best_span_is_that_of_all_pairs():
    random = np.random.default_rng(0)
    for _ in range(300):
        size, longest = int(random.integers(1, 12)), int(random.integers(1, 6))
        starts, ends = random.normal(size=size), random.normal(size=size)
        valid = random.random(size) < 0.6
        pairs = [(i, j) for i in range(size) for j in range(i, min(size, i + longest)) if valid[i] and valid[j]]
        found = best_span(starts, ends, valid, longest)
        if not pairs:
            assert found is None
            continue
        wanted = max(pairs, key=lambda pair: starts[pair[0]] + ends[pair[1]])
        assert found == (*wanted, pytest.approx(starts[wanted[0]] + ends[wanted[1]]))
    assert best_span(np.zeros(4), np.zeros(4), np.array([False, True, True, True]), 3)[:2] == (1, 1)


@pytest.mark.parametrize("tokenizer", [wordpiece, byte_tokenizer])
def test_each_window_shows_the_whole_answer_or_none(tokenizer):
    random = np.random.default_rng(3)
    texts = [planted_text(random, [("anna", "a")], 60)[0], "张三去了上海。" * 9, "dmitri 😀 é " * 12]
    for context in texts:
        for question in ("who", ""):
            settings = {"maximum_tokens": 24, "stride": 6, "no_answer": "first"}
            windows = frame_question(tokenizer(), question, context, settings)
            covered = np.zeros(len(context), bool)
            for window in windows:
                for place in np.flatnonzero(context_places(window)):
                    covered[slice(*window.offsets[place])] = True
            assert all(covered[place] or letter.isspace() for place, letter in enumerate(context))
            for _ in range(30):
                start = int(random.integers(len(context)))
                end = int(random.integers(start + 1, len(context) + 1))
                if not context[start:end].strip():
                    continue
                stripped = (start + len(context[start:end]) - len(context[start:end].lstrip()), start + len(context[start:end].rstrip()))
                for window in windows:
                    first, last = answer_places(window, (start, end), settings)
                    left, right = window.visible[-1]
                    if left <= start and end <= right:
                        assert window.offsets[first][0] <= stripped[0] < window.offsets[first][1]
                        assert window.offsets[last][0] < stripped[1] <= window.offsets[last][1]
                    else:
                        assert (first, last) == (0, 0)


def test_the_threshold_is_the_best_of_all():
    random = np.random.default_rng(4)
    for _ in range(40):
        examples, found = [], []
        for _ in range(int(random.integers(2, 12))):
            right = random.random() < 0.5
            examples.append(Question("who", "anna saw paris", [("anna", 0)] if random.random() < 0.5 else []))
            found.append(Found(0, 4 if right else 8, -1.0, float(random.normal()) - 1.0))
        if not any(example.answers for example in examples) or all(example.answers for example in examples):
            assert best_threshold(found, examples) == 0.0
            continue

        def mean_f1(threshold: float, found=found, examples=examples) -> float:
            said = ["" if one.doubt > threshold else "anna saw paris"[one.start : one.end] for one in found]
            return sum(answer_f1(text, [words for words, _ in example.answers]) for text, example in zip(said, examples, strict=True))

        doubts = sorted(one.doubt for one in found)
        tried = [doubts[0] - 1, *((a + b) / 2 for a, b in zip(doubts, doubts[1:], strict=False)), doubts[-1] + 1]
        assert mean_f1(best_threshold(found, examples)) == pytest.approx(max(map(mean_f1, tried)))


# ---- loss --------------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_transformers(tmp_path):
    rows = [row | {"context": "the house " * 4 + row["context"] + " to" * (20 - len(row["context"].split()))} for row in planted(30, 3)]
    rows = [row | {"answers": [{"text": row["answers"][0]["text"], "answer_start": row["answers"][0]["answer_start"] + 40}]} for row in rows]
    objective, loaders, request = open_task(tmp_path, rows, name="question_answering", length=24)
    model = model_for(objective, request).eval()
    save_model(model, tmp_path / "model")
    theirs = transformers.BertForQuestionAnswering.from_pretrained(tmp_path / "model")
    batch = loaders.train.step(0)
    full = ((batch.segments >= 0).all(1)).nonzero().squeeze(1)  # transformers scores padding too: rows that have none
    assert len(full) > 3
    part = torch.cat([objective.outputs(model, batch)[full]])
    starts, ends = batch.extra["places"][full].T
    wanted = theirs(batch.inputs[full], token_type_ids=batch.types[full], start_positions=starts, end_positions=ends)
    nats = torch.nn.functional.cross_entropy(part.flatten(0, 1), batch.extra["places"][full].flatten())
    torch.testing.assert_close(nats, wanted.loss, atol=1e-5, rtol=1e-5)
    said = objective.terms(model, batch.rows(int(full[0]), int(full[0]) + 1))["loss"].sum
    alone = theirs(batch.inputs[full[:1]], token_type_ids=batch.types[full[:1]], start_positions=starts[:1], end_positions=ends[:1]).loss
    torch.testing.assert_close(said, alone, atol=1e-5, rtol=1e-5)


def test_padding_changes_no_loss(tmp_path):
    objective, loaders, request = open_task(tmp_path, planted(20, 3), name="question_answering", length=32)
    model = model_for(objective, request).eval()
    batch = loaders.train.step(0)
    alone = sum(float(objective.terms(model, batch.rows(row, row + 1, trim=True))["loss"].sum) for row in range(len(batch.inputs)))
    assert float(objective.terms(model, batch)["loss"].sum) == pytest.approx(alone, rel=1e-5)


# ---- learning ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    objective, loaders, request = open_task(tmp_path_factory.mktemp("qa"), planted(240, longest=36, unanswerable=0.3), name="question_answering", length=20, examples=48)
    return objective, loaders, request, learn(objective, loaders, model_for(objective, request), 400)


def test_it_learns_and_a_directory_predicts_alone(learned, tmp_path):
    objective, loaders, request, model = learned
    scores = objective.score(model, request.tokenizer, loaders.held_out)
    assert scores["exact_match"].value > 0.9 and scores["no_answer_accuracy"].value > 0.8
    assert model.head.settings["unanswerable"] and model.head.settings["threshold"] == objective.head.settings["threshold"]
    save_model(model, tmp_path)
    again = Predictor(load_model(tmp_path), request.tokenizer)
    assert again.head == model.head
    items = [objective.item_of(example) for example in loaders.held_out[:20]]
    found = again.predict(items)
    assert [one["answer"] for one in found] == [one["answer"] for one in Predictor(model, request.tokenizer).predict(items, rows=3)]
    for item, one in zip(items, found, strict=True):
        assert one["answer"] == ("" if one["start"] is None else item["context"][one["start"] : one["end"]]) and 0 <= one["score"] <= 1
        assert (one["no_answer_score"] > model.head.settings["threshold"]) == (one["answer"] == "")


def test_an_answer_is_found_anywhere_in_a_long_context(learned):
    _, _, request, model = learned
    filler = "the big house and a red house " * 14
    items = [{"question": "who did", "context": filler[:cut] + "anna " + filler[cut:]} for cut in range(0, len(filler), 30)]
    found = Predictor(model, request.tokenizer).predict(items)
    assert sum(one["answer"] == "anna" for one in found) > 0.8 * len(found)
    whole = Predictor(model, request.tokenizer).predict([{"question": "who did", "context": filler * 240 + "anna"}], rows=256)[0]
    assert len(filler) * 240 > 100_000 and (whole["start"], whole["end"]) in ((None, None), (len(filler) * 240, len(filler) * 240 + 4))


def test_odd_questions_have_an_answer_or_none(learned):
    _, _, request, model = learned
    predictor = Predictor(model, request.tokenizer)
    assert [one["answer"] for one in predictor.predict([{"question": "who", "context": ""}, {"question": "", "context": "  "}])] == ["", ""]
    json.dumps(predictor.predict([{"question": "", "context": ""}]), allow_nan=False)
    assert predictor.predict([{"question": "who " * 60, "context": "anna saw"}])[0]["answer"] in ("anna", "saw", "anna saw", "")
    with pytest.raises(DataError, match="item 2: 'context' is missing"):
        predictor.predict([{"question": "who", "context": "a"}, {"question": "who"}])


def test_where_every_question_has_an_answer_one_is_always_given(tmp_path):
    objective, loaders, request = open_task(tmp_path, planted(40, 2), name="question_answering", length=24)
    model = model_for(objective, request)
    assert not objective.head.settings["unanswerable"] and objective.head.settings["stride"] == 6
    found = Predictor(model, request.tokenizer).predict([objective.item_of(example) for example in loaders.held_out])
    assert all(one["answer"] for one in found)
    objective.score(model, request.tokenizer, loaders.held_out)
    assert model.head.settings["threshold"] == 0.0


def test_chinese_answers_are_characters(tmp_path):
    names = ["张三", "李四", "北京", "上海"]
    rows = [{"question": "谁去了", "context": f"{filler}的{names[i % 2]}去了{names[2 + i // 2 % 2]}", "answers": [{"text": names[i % 2], "answer_start": len(filler) + 1}], "id": str(i)} for i, filler in enumerate(["是", "在哪里", "人", "哪里的人在", "里", "的"] * 8)]
    objective, loaders, request = open_task(tmp_path, rows, name="question_answering", length=32, validation=rows[:12])
    model = learn(objective, loaders, model_for(objective, request), 60)
    scores = objective.score(model, request.tokenizer, loaders.held_out)
    assert scores["exact_match"].value > 0.9 and "cmrc2018" in scores["exact_match"].signature


def test_a_decoder_with_a_span_head_learns_too(tmp_path):
    from text_lab import tokenizer_of_style

    objective, loaders, request = open_task(tmp_path, planted(40), name="question_answering", length=64, tokenizer=tokenizer_of_style("plain"), architecture="gpt2")
    assert objective.head.settings["no_answer"] == "last"
    model = learn(objective, loaders, model_for(objective, request), 2)
    assert len(Predictor(model, request.tokenizer).predict([objective.item_of(example) for example in loaders.held_out])) == len(loaders.held_out)


# ---- bad data ----------------------------------------------------------------------------------------------------------


def test_answers_that_no_window_shows_are_counted(tmp_path):
    rows = [*planted(20), {"question": "who", "context": "the big " * 60, "answers": [{"text": ("the big " * 40).strip(), "answer_start": 0}], "id": "x"}]
    rows.append({"question": "who", "context": "dmitri saw", "answers": [{"text": "mi", "answer_start": 1}], "id": "y"})
    _, loaders, _ = open_task(tmp_path, rows, name="question_answering", length=24, validation=planted(3))
    noticed = loaders.report["noticed"]
    assert noticed["answers are longer than what two windows share, and no window shows the whole: they are learned as none"] == 1
    assert noticed["answers begin or end inside a token: all of it is learned"] == 1
