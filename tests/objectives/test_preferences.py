"""Preferences: losses in closed form, micro-batches, references that are kept, resumed runs, scores and prediction."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from group_lab import assert_same_gradients, gradients, tiny_model, train, write_rows
from preference_lab import WORDS, chat_tokenizer, moved, objective_of, opened, pairs, policy, singles, start

import luban
from luban.examples.preferences import paired, unpaired
from luban.examples.reading import read_examples
from luban.foundation.errors import DataError, LubanError
from luban.inference.predictor import Predictor
from luban.objectives import losses as chunked
from luban.objectives.losses import token_nats
from luban.objectives.preferences import Side, answered
from luban.objectives.reference import likelihoods
from luban.planning.dial import learning_rates
from luban.training.checkpoints import Checkpointer

PAIRED = [("dpo", {}), ("dpo", {"loss": "ipo", "beta": 0.5}), ("dpo", {"loss": "hinge", "sft_weight": 0.3}), ("dpo", {"label_smoothing": 0.2, "length_normalized": True}), ("orpo", {}), ("orpo", {"learn_prompt": True}), ("simpo", {"sft_weight": 0.1})]


def side(sums, lengths, reference=None):
    return Side(torch.tensor(sums), torch.tensor(lengths), None if reference is None else torch.tensor(reference))


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


# ------------------------------------------------------------------------------------------------------- the losses


def test_losses_of_one_pair_in_closed_form():
    chosen, rejected = side([-6.0], [3], [-7.0]), side([-5.0], [2], [-4.5])  # gains 1 and -0.5
    loss, better, worse = objective_of("dpo", beta=0.4).compare(chosen, rejected)
    assert loss.item() == pytest.approx(-math.log(sigmoid(0.4 * 1.5))) and (better.item(), worse.item()) == pytest.approx((0.4, -0.2))
    assert objective_of("dpo", beta=0.4, label_smoothing=0.1).compare(chosen, rejected)[0].item() == pytest.approx(-0.9 * math.log(sigmoid(0.6)) - 0.1 * math.log(sigmoid(-0.6)))
    assert objective_of("dpo", beta=0.4, loss="hinge").compare(chosen, rejected)[0].item() == pytest.approx(0.4)
    assert objective_of("dpo", beta=0.4, loss="ipo").compare(chosen, rejected)[0].item() == pytest.approx((1 / 3 + 0.25 - 1.25) ** 2)
    assert objective_of("dpo", beta=2, length_normalized=True).compare(chosen, rejected)[0].item() == pytest.approx(-math.log(sigmoid(2 * (1 / 3 + 0.25))))
    assert objective_of("simpo", beta=2, gamma=1).compare(chosen, rejected)[0].item() == pytest.approx(-math.log(sigmoid(2 * (-2 + 2.5) - 1)))
    odds = [math.exp(value) / (1 - math.exp(value)) for value in (-2.0, -2.5)]
    assert objective_of("orpo", beta=0.3).compare(chosen, rejected)[0].item() == pytest.approx(-0.3 * math.log(sigmoid(math.log(odds[0] / odds[1]))))


@pytest.mark.parametrize("value", [-1e-9, 0.0, -40.0, -1e-3])
def test_odds_stay_finite(value):
    given = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    loss, *_ = objective_of("orpo").compare(Side(given, torch.ones(1), None), side([-1.0], [1]))
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(given.grad).all()


@pytest.mark.parametrize(("name", "settings"), PAIRED)
def test_micro_batches_change_nothing(tmp_path, name, settings):
    model = policy()
    objective, made = opened(tmp_path, name, pairs(8), model, **settings)
    batch = made.train.step(0)
    whole, first = gradients(objective, moved(model), batch, 64)
    parts, second = gradients(objective, model, batch, 2)
    assert_same_gradients(first, second)
    assert {key: pytest.approx(value, rel=1e-9, abs=1e-12) for key, value in whole.items()} == parts
    assert whole["rewards/margin"] == pytest.approx(whole["rewards/chosen"] - whole["rewards/rejected"])


def test_the_divergence_of_kto_is_the_whole_step_s(tmp_path):
    model = policy()
    objective, made = opened(tmp_path, "kto", singles(), model, desirable_weight=1.5)
    moved(model)
    batch = objective.prepare(made.train.step(0), model)
    raw = made.train.step(0)
    z = (likelihoods(model, raw) - raw.extra["reference"])[1::2].mean().clamp(min=0)
    assert torch.equal(batch.extra["divergence"], z.expand(8)) and batch.group == 1 and len(batch.inputs) == 8
    whole, first = gradients(objective, model, batch, 64)
    parts, second = gradients(objective, model, batch, 1)
    assert_same_gradients(first, second)
    assert {key: pytest.approx(value, rel=1e-9, abs=1e-12) for key, value in whole.items()} == parts
    gain, good = (likelihoods(model, raw) - raw.extra["reference"])[::2], raw.extra["label"][::2]
    by_hand = torch.where(good, 1.5 * (1 - torch.sigmoid(0.1 * (gain - z))), objective.bad_weight * (1 - torch.sigmoid(0.1 * (z - gain))))
    assert whole["loss"] == pytest.approx(by_hand.mean().item(), rel=1e-9)
    assert whole["rewards/chosen"] == pytest.approx(0.1 * gain[good].mean().item()) and whole["rewards/margin"] == pytest.approx(whole["rewards/chosen"] - whole["rewards/rejected"])


def test_a_mismatched_answer_belongs_to_another_prompt(tmp_path):
    _, made = opened(tmp_path, "kto", singles(12), policy())
    decode = chat_tokenizer().decode
    for own, other in made.train.units:
        prompt = decode(list(own.ids[own.weights == 0]))
        assert prompt.split("assistant")[0] == decode(list(other.ids[other.weights == 0])).split("assistant")[0]
        assert decode(list(own.targets[own.weights > 0])) != decode(list(other.targets[other.weights > 0]))


def test_chunks_of_logits_give_the_same(monkeypatch, tmp_path):
    model = policy()
    objective, made = opened(tmp_path, "orpo", pairs(4), model)
    batch = made.train.step(0)
    whole, first = gradients(objective, model, batch, 64)
    monkeypatch.setattr(chunked, "LARGEST_LOGITS", 5 * model.shape.vocabulary_size)
    parts, second = gradients(objective, model, batch, 64)
    assert_same_gradients(first, second)
    scored = batch.weights > 0
    logits = model.logits(model(batch.inputs, **batch.context()))
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.targets, reduction="none") * scored
    torch.testing.assert_close(token_nats(model, batch, scored), expected, rtol=1e-10, atol=1e-12)
    assert whole == pytest.approx(parts)


# ---------------------------------------------------------------------------------------------- rows, cuts, references


def test_rows_hold_the_prompt_and_score_the_answer_and_its_end(tmp_path):
    objective, made = opened(tmp_path, "dpo", pairs(4))
    row = made.train.units[0][0]
    tokenizer = chat_tokenizer()
    assert tokenizer.decode(list(row.targets[row.weights > 0]), skip_special=False).endswith("<|im_end|>")
    assert tokenizer.decode(list(row.targets[row.weights > 0])).startswith("good")
    assert row.targets[row.weights > 0][-1] in tokenizer.stop_ids


def test_a_tokenizer_without_template_joins_plain_texts():
    from text_lab import tokenizer_of_style

    plain = tokenizer_of_style("plain")
    example = read_examples([{"prompt": "Once", "chosen": "upon", "rejected": "x"}], "preference").examples[0]
    ids, weights = answered(plain, example, example.chosen)
    assert ids == [*plain.encode("Once"), *plain.encode("upon"), plain.end_of_text_id] and sum(weights) == len(plain.encode("upon")) + 1


def test_what_is_cut_or_refused_is_counted(tmp_path, capsys):
    rows = [*pairs(6), {"prompt": "king " * 80, "chosen": "a", "rejected": "b"}, {"prompt": "short", "chosen": "love " * 90, "rejected": "rose " * 90}]
    objective, made = opened(tmp_path, "simpo", rows)
    assert sum(made.report["refused"].values()) == 1 and objective.cut == 1 + 2
    assert "cut at their end" in " ".join("".join(capsys.readouterr()).split())
    assert made.report["mean_chosen_tokens"] > 0


def test_reference_values_are_kept_by_weights_and_rows(tmp_path, monkeypatch):
    from luban.objectives import reference

    calls = []
    monkeypatch.setattr(reference, "likelihoods", lambda *args: calls.append(1) or likelihoods(*args))
    model = policy()
    _, first = opened(tmp_path, "dpo", pairs(8), model)
    asked = len(calls)
    _, again = opened(tmp_path, "dpo", pairs(8), model)
    assert asked and len(calls) == asked  # read, not computed
    same = [[row.extra["reference"] for row in unit] for unit in first.train.units]
    assert same == [[row.extra["reference"] for row in unit] for unit in again.train.units]
    assert torch.equal(first.validation[0].extra["reference"], again.validation[0].extra["reference"])
    opened(tmp_path, "dpo", pairs(8, seed=1), model)
    assert len(calls) > asked
    asked = len(calls)
    opened(tmp_path, "dpo", pairs(8, seed=1), moved(model))
    assert len(calls) > asked
    (tmp_path / "training" / "reference.safetensors").write_bytes(b"damaged")
    _, mended = opened(tmp_path, "dpo", pairs(8, seed=1), model)
    raw = mended.train.step(0)
    torch.testing.assert_close(likelihoods(model, raw), raw.extra["reference"], rtol=1e-9, atol=1e-9)


def test_rewards_begin_at_zero(tmp_path):
    model = policy()
    objective, made = opened(tmp_path, "dpo", pairs(8), model)
    means, _ = gradients(objective, model, made.train.step(0), 64)
    assert means["loss"] == pytest.approx(math.log(2), abs=1e-9) and abs(means["rewards/margin"]) < 1e-9
    scored = objective.score(model, chat_tokenizer(), made.held_out)
    assert list(scored) == ["preference_accuracy", "preference_margin"] and abs(scored["preference_margin"].value) < 1e-9


def test_single_answers_become_pairs_and_pairs_single_answers():
    rows = [{"prompt": "a", "completion": text, "label": label} for text, label in (("x", True), ("y", False), ("z", True), ("y", False), ("w", True))]
    found, left = paired(read_examples(rows, "preference").examples)
    assert [(one.chosen[0]["content"], one.rejected[0]["content"]) for one in found] == [("x", "y"), ("z", "y")] and left == 1
    assert [one.label for one in unpaired(found)] == [True, False, True, False]


def test_kto_needs_both_kinds(tmp_path):
    rows = [{**row, "label": True} for row in singles(6)]
    with pytest.raises(DataError):
        opened(tmp_path, "kto", rows)


@pytest.mark.parametrize("name", ["dpo", "kto", "orpo", "simpo"])
def test_rates_fall_with_the_width(name):
    big, small = (learning_rates("adamw", width, name, True)["learning_rate"] for width in (4096, 192))
    assert big == pytest.approx(5e-6 if name == "orpo" else 5e-7) and big < small <= (2e-3 if name == "orpo" else 5e-4)


# ------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("name", ["dpo", "kto", "orpo"])  # simpo below, in an evaluation
def test_a_run_learns_which_answers_are_better(tmp_path, name):
    data = write_rows(tmp_path / "pairs.jsonl", pairs(40))
    made = train(tmp_path, start(tmp_path / "start"), data, {"name": name}, length="8 steps", sequence_length=64, optimizer={"learning_rate": 4e-3}, validation={"every": "8 steps", "share": 0.2})
    before, after = made.metrics["before"], made.metrics["after"]
    assert made.metrics["best_metric"] == "preference_accuracy" and after["preference_accuracy"] > 0.9
    assert after["preference_margin"] > before["preference_margin"] and after["loss"] < before["loss"]
    log = [json.loads(line) for line in (made.path / "training" / "log.jsonl").read_text().splitlines()]
    assert {"rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy", "length/chosen", "length/rejected"} <= log[1].keys()
    assert (made.path / "training" / "reference.safetensors").exists() == (name in ("dpo", "kto"))


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_resumed_run_has_the_same_bits(tmp_path, monkeypatch, name):
    data, begin = write_rows(tmp_path / "pairs.jsonl", pairs(24)), start(tmp_path / "start")
    settings = {"length": "4 steps", "sequence_length": 64, "checkpoint": {"every": "2 steps"}, "validation": {"every": "4 steps", "share": 0.2}, "determinism": "strict"}
    whole = train(tmp_path / "whole", begin, data, {"name": name}, **settings)
    kept = Checkpointer.after_step

    def stopping(self, run):
        kept(self, run)
        if run.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "after_step", stopping)
        with pytest.raises((KeyboardInterrupt, LubanError)):
            train(tmp_path / "parts", begin, data, {"name": name}, **settings)
    from luban.objectives import reference

    monkeypatch.setattr(reference, "likelihoods", lambda *_: pytest.fail("reference values are computed again"))
    parts = train(tmp_path / "parts", begin, data, {"name": name}, **settings)
    assert (whole.path / "model.safetensors").read_bytes() == (parts.path / "model.safetensors").read_bytes()


def test_another_model_as_reference(tmp_path):
    data, begin, other = write_rows(tmp_path / "pairs.jsonl", pairs(16)), start(tmp_path / "start"), tmp_path / "other"
    from luban.models.huggingface import save_model

    save_model(moved(tiny_model("qwen3", None)), other)
    chat_tokenizer().save(other)
    made = train(tmp_path, begin, data, {"name": "dpo", "reference": str(other)}, length="1 steps", sequence_length=64)
    assert abs(made.metrics["before"]["rewards/chosen"]) > 1e-3


# --------------------------------------------------------------------------------------------------- reward models


@pytest.mark.parametrize("architecture", ["qwen3", "bert"])
def test_a_reward_model_in_closed_form_and_as_a_directory(tmp_path, architecture):
    folder = tmp_path / "start"
    if architecture == "bert":
        from group_lab import start_directory

        start_directory(folder, "bert")
    else:
        start(folder)
    data = write_rows(tmp_path / "pairs.jsonl", pairs(32))
    made = train(tmp_path, folder, data, {"name": "reward", "center_coefficient": 0.01}, length="16 steps", sequence_length=64, optimizer={"learning_rate": 5e-3}, validation={"every": "16 steps", "share": 0.2})
    assert made.metrics["after"]["preference_accuracy"] > 0.9
    rows = [{"prompt": "Speak of king", "response": "good king"}, {"messages": [{"role": "user", "content": "Speak of king"}, {"role": "assistant", "content": "bad king"}]}]
    good, bad = luban.predict(made.path, rows)
    assert good["score"] > bad["score"]
    of_file = luban.predict(made.path, data)
    assert all(len(one["scores"]) == 2 for one in of_file) and np.mean([one["scores"][0] > one["scores"][1] for one in of_file]) > 0.9
    chats = write_rows(tmp_path / "chats.jsonl", rows[1:])
    assert luban.predict(made.path, chats)[0]["score"] == pytest.approx(bad["score"], abs=1e-5)
    with pytest.raises(DataError):
        luban.predict(made.path, [{"messages": [{"role": "user", "content": "only asked"}]}])


def test_the_reward_loss_has_a_margin_and_a_center(tmp_path):
    objective, made = opened(tmp_path, "reward", pairs(8), center_coefficient=0.5)
    model = tiny_model("qwen3", objective.head).double()
    batch = made.train.step(0)
    means, first = gradients(objective, model, batch, 64)
    outputs = objective.outputs(model, batch)
    better, worse, margin = outputs[:, 0], outputs[:, 1], batch.extra["margin"][::2].double()
    assert means["loss"] == pytest.approx(-torch.sigmoid(better - worse - margin).log().mean().item())
    assert means["center"] == pytest.approx(((better + worse) ** 2).mean().item())
    assert margin.max() > 0
    assert_same_gradients(first, gradients(objective, model, batch, 2)[1])
    flat, loaded = opened(tmp_path, "reward", pairs(8), margin=False)
    assert not loaded.train.step(0).extra["margin"].any()


# --------------------------------------------------------------------------------------------------------- evaluate


def test_language_models_are_compared_on_preferences(tmp_path):
    data, begin = write_rows(tmp_path / "pairs.jsonl", pairs(30)), start(tmp_path / "start")
    recipe = {
        "name": "small", "seed": 3,
        "stages": {
            "tuned": {"kind": "train", "objective": "simpo", "data": str(data), "model": str(begin), "sequence_length": 64, "batch_examples": 8, "length": "8 steps", "optimizer": {"learning_rate": 4e-3}, "threads": 1, "track": {"tensorboard": False}},
            "report": {"kind": "evaluate", "models": [str(begin), "tuned"], "data": str(data), "task": "preference"},
        },
    }  # fmt: skip
    report = luban.run(recipe, out=tmp_path / "run")[-1]
    assert report.metrics["tuned_preference_accuracy"] > max(0.9, report.metrics["start_preference_accuracy"])
    assert "longer_preference_accuracy" in report.metrics
    items = [{"prompt": f"Speak of {word}", "chosen": "good king", "rejected": "bad king"} for word in WORDS]
    said = objective_of("dpo").predictions(Predictor.load(report.path.parent / "tuned"), read_examples(items, "preference").examples)
    assert all(one["scores"][0] > one["scores"][1] for one in said)


def test_counts_are_known_before_the_forward_pass(tmp_path):
    for name, settings in PAIRED:
        objective, made = opened(tmp_path, name, pairs(6), policy(), **settings)
        batch = made.train.step(0)
        known = objective.counts(batch)
        assert known["loss"] == 8 if len(batch.inputs) == 16 else known["loss"] == len(batch.inputs) / 2
        if "sft" in known:
            assert known["sft"] == float(objective.imitated(batch).sum()) > 0
    assert replace(batch).group == 2
