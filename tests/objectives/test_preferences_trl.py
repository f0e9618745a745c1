"""Every loss on preferences against TRL's own trainers: the same weights, the same reference, the same tokens."""

from __future__ import annotations

import copy

import pytest
import torch
from group_lab import gradients, tiny_model
from preference_lab import chat_tokenizer, moved, opened, pairs, singles, trainer, trl_inputs

from luban.models.huggingface import save_model

CLOSE = {"rel": 2e-5, "abs": 2e-6}


def twin(model, folder, fused=()):
    """The model in transformers, its head as TRL patches it."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    tokenizer = chat_tokenizer()
    save_model(model, folder, end_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    loader = AutoModelForSequenceClassification if model.head else AutoModelForCausalLM
    made = loader.from_pretrained(folder, dtype=torch.float32)
    if fused:
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(made, outputs=fused)
    return made.train()


def both(folder, name, rows, **settings):
    """(objective, moved model, prepared batch, its transformers twin): the reference is the model before it was moved."""
    model = tiny_model("qwen3", None)
    objective, made = opened(folder, name, rows, model, **settings)
    batch = made.train.step(0)
    moved(model)
    return objective, model, batch, twin(model, folder / "twin", ("log_probs", "entropy", "mean_logits", "is_top1") if name in ("dpo", "kto") else ())


def assert_same(objective, model, batch, loss, theirs, total):
    """Loss and the gradient of every weight."""
    means, own = gradients(objective, model, batch, 4)
    assert total(means) == pytest.approx(loss.item(), **CLOSE)
    loss.backward()
    for parameter_name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(own[parameter_name], parameter.grad, rtol=1e-3, atol=2e-6)
    return means


@pytest.mark.slow  # importing TRL takes some seconds
@pytest.mark.parametrize(
    ("settings", "loss_type"),
    [({}, "sigmoid"), ({"beta": 0.5, "loss": "ipo"}, "ipo"), ({"loss": "hinge", "beta": 0.3}, "hinge"), ({"length_normalized": True, "beta": 2.0}, "sigmoid_norm"), ({"sft_weight": 0.25}, "sigmoid+sft")],
)
def test_dpo_is_trl_s(tmp_path, settings, loss_type):
    from trl import DPOTrainer

    objective, model, batch, theirs = both(tmp_path, "dpo", pairs(12), **settings)
    order = [*range(0, 16, 2), *range(1, 16, 2)]
    inputs = trl_inputs(batch, order) | {"ref_chosen_logps": batch.extra["reference"][::2], "ref_rejected_logps": batch.extra["reference"][1::2]}
    kinds = loss_type.split("+")
    asked = trainer(model=theirs, beta=objective.config.beta, label_smoothing=0.0, loss_types=kinds, loss_weights=[1.0, 0.25][: len(kinds)], f_divergence_type="reverse_kl", precompute_ref_logps=True)
    loss = DPOTrainer._compute_loss(asked, theirs, inputs, False)
    means = assert_same(objective, model, batch, loss, theirs, lambda found: found["loss"] + 0.25 * found.get("sft", 0.0))
    known = asked._metrics["train"]
    if loss_type == "sigmoid":
        for own, name in (("rewards/chosen", "rewards/chosen"), ("rewards/rejected", "rewards/rejected"), ("rewards/accuracy", "rewards/accuracies"), ("rewards/margin", "rewards/margins")):
            assert means[own] == pytest.approx(known[name][0], rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_kto_is_trl_s(tmp_path):
    from trl import KTOTrainer

    objective, model, batch, theirs = both(tmp_path, "kto", singles(), beta=0.4, desirable_weight=1.3, undesirable_weight=0.7)
    own, others = trl_inputs(batch, slice(0, None, 2)), trl_inputs(batch, slice(1, None, 2))
    inputs = own | {f"KL_{name}": value for name, value in others.items()} | {"label": batch.extra["label"][::2], "ref_logps": batch.extra["reference"][::2], "ref_KL_logps": batch.extra["reference"][1::2]}
    asked = trainer(model=theirs, beta=0.4, desirable_weight=1.3, undesirable_weight=0.7, loss_type="kto", calculate_KL=True, precompute_ref_logps=True)
    asked._compute_kl_logps = lambda *given: KTOTrainer._compute_kl_logps(asked, *given)
    loss = KTOTrainer._compute_loss(asked, theirs, copy.copy(inputs), False)
    prepared = objective.prepare(batch, model)
    means = assert_same(objective, model, prepared, loss, theirs, lambda found: found["loss"])
    known = asked._metrics["train"]
    assert means["divergence"] == pytest.approx(known["kl"][0], rel=1e-4, abs=1e-5)
    for name, name_there in (("rewards/chosen", "rewards/chosen"), ("rewards/rejected", "rewards/rejected"), ("rewards/margin", "rewards/margins")):
        assert means[name] == pytest.approx(known[name_there][0], rel=1e-4, abs=1e-6)


def parted_inputs(batch):
    """What ORPO's and CPO's trainers are given."""
    found = {}
    for place, name in ((0, "chosen"), (1, "rejected")):
        side = trl_inputs(batch, slice(place, None, 2))
        found |= {f"{name}_input_ids": side["input_ids"], f"{name}_attention_mask": side["attention_mask"], f"{name}_labels": side["input_ids"].masked_fill(side["completion_mask"] == 0, -100)}
    return found


@pytest.mark.slow
def test_orpo_is_trl_s(tmp_path):
    from trl.experimental.orpo import ORPOTrainer

    objective, model, batch, theirs = both(tmp_path, "orpo", pairs(12), beta=0.2, learn_prompt=True)
    asked = trainer(model=theirs, beta=0.2, padding_value=0, concatenated_inputs=ORPOTrainer.concatenated_inputs, get_batch_logps=ORPOTrainer.get_batch_logps)
    asked.concatenated_forward = lambda *given: ORPOTrainer.concatenated_forward(asked, *given)
    asked.odds_ratio_loss = lambda *given: ORPOTrainer.odds_ratio_loss(asked, *given)
    loss, known = ORPOTrainer.get_batch_loss_metrics(asked, theirs, parted_inputs(batch))
    means = assert_same(objective, model, batch, loss, theirs, lambda found: found["loss"] + found["sft"])
    assert means["rewards/margin"] == pytest.approx(known["rewards/margins"], rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"beta": 1.5, "gamma": 0.4, "label_smoothing": 0.1, "sft_weight": 0.2}])
def test_simpo_is_trl_s(tmp_path, settings):
    from trl.experimental.cpo import CPOTrainer

    objective, model, batch, theirs = both(tmp_path, "simpo", pairs(12), **settings)
    config = objective.config
    asked = trainer(
        model=theirs, beta=config.beta, simpo_gamma=config.gamma, alpha=0.0, loss_type="simpo", label_smoothing=config.label_smoothing, cpo_alpha=config.sft_weight, pad_token_id=0,
        concatenated_inputs=CPOTrainer.concatenated_inputs, get_batch_logps=CPOTrainer.get_batch_logps,
    )  # fmt: skip
    asked.concatenated_forward = lambda *given: CPOTrainer.concatenated_forward(asked, *given)
    asked.cpo_loss = lambda *given: CPOTrainer.cpo_loss(asked, *given)
    loss, known = CPOTrainer.get_batch_loss_metrics(asked, theirs, parted_inputs(batch))
    means = assert_same(objective, model, batch, loss, theirs, lambda found: found["loss"] + config.sft_weight * found.get("sft", 0.0))
    assert means["rewards/chosen"] == pytest.approx(known["rewards/chosen"], rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_smoothed_dpo_is_trl_s_without_a_reference(tmp_path):
    """TRL smooths the labels of DPO's loss in CPO's trainer only, which is DPO where the reference finds all answers equally likely."""
    from trl.experimental.cpo import CPOTrainer

    objective, model, batch, theirs = both(tmp_path, "dpo", pairs(12), label_smoothing=0.2, beta=0.3)
    batch.extra["reference"] = torch.zeros_like(batch.extra["reference"])
    theirs = twin(model, tmp_path / "plain")
    asked = trainer(
        model=theirs, beta=0.3, alpha=0.0, loss_type="sigmoid", label_smoothing=0.2, cpo_alpha=0, pad_token_id=0,
        concatenated_inputs=CPOTrainer.concatenated_inputs, get_batch_logps=CPOTrainer.get_batch_logps,
    )  # fmt: skip
    asked.concatenated_forward = lambda *given: CPOTrainer.concatenated_forward(asked, *given)
    asked.cpo_loss = lambda *given: CPOTrainer.cpo_loss(asked, *given)
    loss, _ = CPOTrainer.get_batch_loss_metrics(asked, theirs, parted_inputs(batch))
    assert_same(objective, model, batch, loss, theirs, lambda found: found["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("center", [0.0, 0.01])
def test_reward_is_trl_s(tmp_path, center):
    from types import SimpleNamespace

    from trl import RewardTrainer

    objective, made = opened(tmp_path, "reward", pairs(12), center_coefficient=center)
    model = tiny_model("qwen3", objective.head)
    batch = made.train.step(0)
    theirs = twin(model, tmp_path / "twin")
    order = [*range(0, 16, 2), *range(1, 16, 2)]
    there = (batch.segments >= 0).long()[order]
    inputs = {"input_ids": batch.inputs[order], "attention_mask": there, "margin": batch.extra["margin"][::2]}
    asked = trainer(model=theirs, args=SimpleNamespace(center_rewards_coefficient=center or None))
    whole = theirs.forward
    theirs.forward = lambda margin=None, **given: whole(**given)  # the margin is the loss's
    loss = RewardTrainer.compute_loss(asked, theirs, inputs)
    means = assert_same(objective, model, batch, loss, theirs, lambda found: found["loss"] + center * found.get("center", 0.0))
    assert means["rewards/margin"] == pytest.approx(asked._metrics["train"]["margin"][0], rel=1e-4, abs=1e-6)
