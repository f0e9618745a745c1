"""Multiple choice: the loss of transformers' ForMultipleChoice, likelihoods against transformers, uneven numbers of choices, and a training."""

from __future__ import annotations

import math

import pytest
import torch
from group_lab import SMALL, THINGS, assert_same_gradients, gradients, opened, start_directory, tiny_model, train, write_rows
from text_lab import tokenizer_of_style
from transformers import AutoModelForCausalLM, BertForMultipleChoice, RobertaForMultipleChoice

from luban.foundation.errors import ConfigError, DataError
from luban.inference.choices import frame_continuation, joint
from luban.inference.predictor import Predictor
from luban.models.heads import Head
from luban.models.huggingface import save_model
from luban.objectives.config import MultipleChoiceConfig
from luban.objectives.multiple_choice import MultipleChoice

ROWS = [
    {"question": f"which is the {thing} of number {n}", "choices": [f"a {THINGS[(place + n) % 10]}" for place in range(3)], "answer": place}
    for n, thing in enumerate(THINGS * 3)
    for place in range(3)
    if THINGS[(place + n) % 10] == thing
]
UNEVEN = [{**row, "choices": row["choices"] + ["nothing", "all of them"][: n % 3]} for n, row in enumerate(ROWS)]


@pytest.mark.parametrize("architecture, theirs", [("bert", BertForMultipleChoice), ("roberta", RobertaForMultipleChoice)])
def test_the_loss_is_that_of_transformers(tmp_path, architecture, theirs):
    objective = MultipleChoice(MultipleChoiceConfig())
    batch = opened(objective, write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path, architecture=architecture).train.step(0)
    model = tiny_model(architecture, objective.head).eval()
    save_model(model, tmp_path / "model", pad_id=tokenizer_of_style(architecture).pad_id)
    other = theirs.from_pretrained(tmp_path / "model").eval()
    shape = (-1, batch.group, batch.inputs.shape[1])
    given = {"input_ids": batch.inputs.view(shape), "attention_mask": (batch.segments >= 0).long().view(shape), "labels": batch.extra["answer"][:: batch.group]}
    if architecture == "bert":
        given["token_type_ids"] = batch.types.view(shape)
    with torch.no_grad():
        wanted = other(**given)
        torch.testing.assert_close(objective.terms(model, batch)["loss"].sum / 8, wanted.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(objective.outputs(model, batch), wanted.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture, settings", [("bert", {}), ("llama", {}), ("llama", {"scoring": "head"}), ("gpt2", {"length": "characters"})])
def test_micro_batches_and_empty_choices_change_nothing(tmp_path, architecture, settings):
    objective = MultipleChoice(MultipleChoiceConfig(**settings))
    batch = opened(objective, write_rows(tmp_path / "rows.jsonl", UNEVEN), tmp_path, architecture=architecture).train.step(0)
    assert batch.group == 5 and objective.counts(batch) == {"loss": 8}
    dropout = {"bert": {"dropout": 0.0, "attention_dropout": 0.0}, "gpt2": {"dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0}}.get(architecture, {})
    model = tiny_model(architecture, objective.head, **dropout).double().train()
    whole, wanted = gradients(objective, model, batch, 1000)
    for size in (1, 11):
        means, found = gradients(objective, model, batch, size)
        assert means["loss"] == pytest.approx(whole["loss"], abs=1e-12)
        assert_same_gradients(wanted, found)
    # Without the empty rows, question by question:
    total = 0.0
    for question in range(8):
        rows = [row for row in range(question * 5, question * 5 + 5) if (batch.segments[row] >= 0).any()]
        scores = objective.outputs(model, batch)[question, : len(rows)]
        total += float((-scores.log_softmax(0)[int(batch.extra["answer"][question * 5])]).detach())
    assert whole["loss"] == pytest.approx(total / 8)
    outputs = objective.outputs(model, batch)
    assert bool(objective.divergence(outputs, outputs * 0.5).isfinite().all()) and len(objective.unit_weights(batch)) == 8


@pytest.mark.parametrize("length", ["none", "tokens", "characters"])
def test_likelihoods_are_those_of_transformers(tmp_path, length):
    tokenizer = tokenizer_of_style("plain")
    model = tiny_model("llama", Head("language_model", "multiple_choice", settings={"maximum_tokens": 64, "length": length}), initializer_deviation=0.3).eval()
    save_model(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    prompt, choices = "the king shall", ["be", "have the sword of night", "春风"]
    said = Predictor.load(tmp_path / "model").predict([{"prompt": prompt, "choices": choices}])[0]
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    wanted = []
    for choice in choices:
        first = tokenizer.encode(prompt)
        ids = tokenizer.encode(prompt + ("" if choice == "春风" else " ") + choice)
        assert ids[: len(first)] == first
        with torch.no_grad():
            logs = other(torch.tensor([[tokenizer.end_of_text_id, *ids]])).logits[0].log_softmax(-1)
        total = sum(float(logs[place, ids[place]]) for place in range(len(first), len(ids)))
        wanted.append(total / {"none": 1, "tokens": len(ids) - len(first), "characters": len(choice)}[length])
    assert said["scores"] == pytest.approx(wanted, rel=1e-4) and said["choice"] == wanted.index(max(wanted))


def test_continuations_are_cut_where_it_hurts_least():
    tokenizer = tokenizer_of_style("plain")
    long = "the king and the queen " * 40
    ids, first, length = frame_continuation(tokenizer, long, "shall sing", {"maximum_tokens": 20})
    assert len(ids) == 20 and tokenizer.decode(ids[first:]).strip() == "shall sing" and length == 20 - first
    assert tokenizer.decode(ids[1:first]).endswith("the queen")
    ids, first, _ = frame_continuation(tokenizer, "a", long, {"maximum_tokens": 20})
    assert len(ids) == 20 and first <= 2
    ids, first, length = frame_continuation(tokenizer, "the king", "", {"maximum_tokens": 20})
    assert ids[first:] == [tokenizer.end_of_text_id] and length == 1
    assert frame_continuation(tokenizer, "", "king", {})[1] == 1
    assert [joint(*pair) for pair in (("a ", "b"), ("因为", "他"), ("a", "他"), ("", "b"), ("为什么？", "b"))] == [" ", "", "", "", ""]


def test_questions_without_an_answer_are_counted_and_bad_ones_refused(tmp_path):
    rows = [{**row, "answer": "" if n % 5 == 0 else row["answer"]} for n, row in enumerate(ROWS)]
    loaders = opened(MultipleChoice(MultipleChoiceConfig()), write_rows(tmp_path / "rows.jsonl", rows), tmp_path)
    assert sum(loaders.report["refused"].values()) == sum(n % 5 == 0 for n in range(len(ROWS)))
    with pytest.raises(ConfigError, match="bert gives no likelihood"):
        opened(MultipleChoice(MultipleChoiceConfig(scoring="likelihood")), tmp_path / "rows.jsonl", tmp_path)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_training_learns_to_choose(tmp_path, architecture):
    shape = {**SMALL, **({} if architecture == "bert" else {"key_value_heads": 2, "head_dim": 16})}
    start = start_directory(tmp_path / "start", architecture, **shape)
    artifact = train(
        tmp_path, start, write_rows(tmp_path / "rows.jsonl", ROWS), {"name": "multiple_choice"}, length="120 steps", validation_data=str(tmp_path / "rows.jsonl"), validation={"every": "120 steps"}
    )
    assert artifact.metrics["best_metric"] == "accuracy" and artifact.metrics["after"]["accuracy"] > 0.85
    predictor = Predictor.load(artifact.path)
    said = predictor.predict([{"prompt": ROWS[0]["question"], "choices": ROWS[0]["choices"]}])[0]
    assert said["choice"] == ROWS[0]["answer"] and len(said["scores"]) == 3 and math.isfinite(said["scores"][0])
    with pytest.raises(DataError, match="item 1: there is no choice"):
        predictor.predict([{"prompt": "a", "choices": []}])
