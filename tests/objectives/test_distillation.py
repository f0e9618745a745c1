"""Distillation: closed forms of its loss and gradient, several teachers, labels in another order, and what is refused."""

from __future__ import annotations

import math
import random

import pytest
import torch
from pair_lab import request_for, reversed_words, write_pairs
from text_lab import shape_of, tokenizer_of_style

import luban
from luban.foundation.errors import ConfigError
from luban.models.families import build_model
from luban.models.heads import Head
from luban.models.huggingface import load_model, save_model
from luban.objectives.base import load_objective
from luban.objectives.config import DistillationConfig


def labelled(folder, labels=("a", "b", "c"), number=24, name="data.csv"):
    rng = random.Random(1)
    words = ["the", "king", "my", "lord", "sword"]
    rows = [f"{' '.join(rng.choices(words, k=4))} {number},{labels[number % len(labels)]}" for number in range(number)]
    path = folder / name
    path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return path


def saved(folder, head, seed, architecture="bert", style="bert", **shape):
    """A model directory with random weights, larger than usual so that its outputs differ."""
    tokenizer = tokenizer_of_style(style)
    model = build_model(shape_of(architecture, tokenizer, initializer_deviation=0.3, **shape)).initialize(seed)
    model = model.with_head(head, seed) if head else model
    save_model(model, folder, end_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    tokenizer.save(folder)
    return folder


def opened(tmp_path, teachers, data, architecture="bert", style="bert", **config):
    objective = load_objective(DistillationConfig(name="distillation", **config))
    request = request_for(tmp_path, data, architecture, tokenizer_of_style(style), teachers=teachers, dropout=0.0 if style != "plain" else None)
    loaders = objective.loaders(request)
    student = build_model(request.shape).initialize(7)
    student = (student.with_head(objective.head, 7) if objective.head else student).eval()
    return objective, student, next(loaders.train.pass_once())


def head_of(*labels, problem="single_label", task="classification"):
    return Head("sequence", task, labels, problem)


def logits(model, batch):
    return model.scores(model(batch.inputs, **batch.context()), batch.inputs, batch.segments, batch.extra)


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.5), (4.0, 0.25), (2.0, 1.0), (2.0, 0.0)])
def test_the_loss_is_the_closed_form(tmp_path, temperature, weight):
    teacher = saved(tmp_path / "teacher", head_of("a", "b", "c"), 1)
    objective, student, batch = opened(tmp_path, [teacher], labelled(tmp_path), temperature=temperature, weight=weight)
    terms, counts = objective.terms(student, batch), objective.counts(batch)
    given, said = logits(load_model(teacher), batch), logits(student, batch)
    one, two = (given / temperature).softmax(-1), (said / temperature).softmax(-1)
    divergence = (one * (one / two).log()).sum(-1).mean().item()
    hard = -said.log_softmax(-1).gather(1, batch.extra["labels"][:, None]).mean().item()
    total = sum(term.weight * term.sum.item() / counts[name] for name, term in terms.items())
    assert total == pytest.approx(weight * temperature**2 * divergence + (1 - weight) * hard, rel=1e-4)
    assert terms["loss"].sum.item() / counts["loss"] == pytest.approx(hard, rel=1e-5)  # what is logged is the data's own loss


def test_the_gradient_is_the_difference_of_probabilities_and_reaches_no_teacher(tmp_path):
    teacher = saved(tmp_path / "teacher", head_of("a", "b", "c"), 1)
    objective, student, batch = opened(tmp_path, [teacher], labelled(tmp_path), temperature=3.0, weight=1.0)
    outputs = objective.outputs(student, batch).detach().requires_grad_()
    objective.terms_of(outputs, student, batch)["distillation"].sum.backward()
    with torch.no_grad():
        expected = 3.0 * ((outputs / 3).softmax(-1) - (logits(load_model(teacher), batch) / 3).softmax(-1))
    torch.testing.assert_close(outputs.grad, expected, atol=1e-5, rtol=1e-4)
    assert all(parameter.grad is None for model in objective.teachers for parameter in model.parameters())


def test_teachers_are_averaged_as_probabilities_and_their_labels_put_in_order(tmp_path):
    one, two = saved(tmp_path / "one", head_of("a", "b", "c"), 1), saved(tmp_path / "two", head_of("c", "extra", "a", "b"), 2)
    objective, student, batch = opened(tmp_path, [one, two], labelled(tmp_path), temperature=2.0)
    outputs = objective.outputs(student, batch)
    first, second = logits(load_model(one), batch) / 2, logits(load_model(two), batch)[:, [2, 3, 0]] / 2
    expected = (first.softmax(-1) + second.softmax(-1)) / 2
    torch.testing.assert_close(objective.taught(outputs, student, batch).softmax(-1), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_yes_and_no_and_numbers_have_their_own_divergence(tmp_path, problem):
    path = tmp_path / "data.jsonl"
    labels = {"multi_label": ['["a"]', '["a", "b"]', "[]"], "regression": ["1.5", "-2", "0.25"]}[problem]
    path.write_text("".join(f'{{"text": "king {number}", "label": {labels[number % 3]}}}\n' for number in range(24)), encoding="utf-8")
    names = ("a", "b") if problem == "multi_label" else ("value",)
    teachers = [saved(tmp_path / str(seed), head_of(*names, problem=problem, task=problem), seed) for seed in (1, 2)]
    objective, student, batch = opened(tmp_path, teachers, path, of=problem, temperature=2.0, weight=1.0)
    found = objective.terms(student, batch)["distillation"].sum.item()
    given, said = [logits(load_model(folder), batch) for folder in teachers], logits(student, batch)
    if problem == "regression":
        expected = ((given[0] + given[1]) / 2 - said).square().sum()
    else:
        one, two = ((given[0] / 2).sigmoid() + (given[1] / 2).sigmoid()) / 2, (said / 2).sigmoid()
        expected = 4 * (one * (one / two).log() + (1 - one) * ((1 - one) / (1 - two)).log()).sum()
    assert found == pytest.approx(expected.item(), rel=1e-3)


def test_a_language_model_teaches_every_scored_token(tmp_path):
    data = write_pairs(tmp_path, reversed_words(20))
    teacher = saved(tmp_path / "teacher", None, 1, "llama", "plain")
    objective, student, batch = opened(tmp_path, [teacher], data, "llama", "plain", of="translation", temperature=1.0, weight=1.0)
    found = objective.terms(student, batch)["distillation"].sum.item()
    scored = batch.weights > 0
    given, said = (model.logits(model(batch.inputs, **batch.context()))[scored].log_softmax(-1) for model in (load_model(teacher), student))
    assert found == pytest.approx((given.exp() * (given - said)).sum().item(), rel=1e-4)
    assert objective.counts(batch)["distillation"] == scored.sum().item()
    same, copied, batch = opened(tmp_path, [teacher], data, "llama", "plain", of="translation", weight=1.0)
    assert same.terms(load_model(teacher, head=same.head), batch)["distillation"].sum.item() == pytest.approx(0, abs=1e-3)


def test_teachers_that_cannot_teach_are_refused(tmp_path):
    data = labelled(tmp_path)
    with pytest.raises(ConfigError, match="no teacher"):
        opened(tmp_path, [], data)
    with pytest.raises(ConfigError, match="does not know the label"):
        opened(tmp_path, [saved(tmp_path / "fewer", head_of("a", "b"), 1)], data)
    with pytest.raises(ConfigError, match="tokenizer"):
        opened(tmp_path, [saved(tmp_path / "other", head_of("a", "b", "c"), 1, "roberta", "roberta")], data)
    with pytest.raises(ConfigError, match="not trained for"):
        opened(tmp_path, [saved(tmp_path / "masked", None, 1)], data)
    with pytest.raises(ConfigError, match="no objective"):
        load_objective(DistillationConfig(name="distillation", of="distillation"))


def test_a_recipe_distils_an_ensemble_of_stages(tmp_path):
    """The student has a shape of its own and takes its tokenizer from the teachers."""
    data = labelled(tmp_path, number=60)
    shape = {"architecture": "bert", "layers": 1, "hidden_size": 32, "heads": 2, "feed_forward_size": 64, "maximum_positions": 32}
    tokenizer_of_style("bert").save(tmp_path / "tokenizer")
    common = {"kind": "train", "data": str(data), "length": "4 steps", "batch_examples": 8, "threads": 1, "track": {"tensorboard": False}, "optimizer": {"learning_rate": 1e-3}}
    teacher = {**common, "objective": "classification", "shape": {**shape, "layers": 2}, "tokenizer": str(tmp_path / "tokenizer")}
    stages = {
        "one": teacher, "two": {**teacher, "length": "5 steps"},
        "student": {**common, "objective": {"name": "distillation", "of": "classification", "teacher": ["one", "two"], "settings": {"label_smoothing": 0.1}}, "shape": shape},
    }  # fmt: skip
    student = luban.run({"name": "distil", "seed": 1, "stages": stages}, out=tmp_path / "run")[-1]
    assert set(student.manifest["inputs"]["objective.teacher"][0]) >= {"fingerprint"}
    assert math.isfinite(student.metrics["after"]["distillation"]) and "accuracy" in student.metrics["after"]
    said = luban.predict(student.path, ["the king"])[0]
    assert said["label"] in "abc" and load_model(student.path).head.task == "classification"
