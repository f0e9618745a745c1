"""A training that was killed and started again ends with the same bits: every objective, every optimizer, everything that moves with the weights."""

from __future__ import annotations

import pytest
import torch
from resume_lab import OF_BERT, OF_CHAT, OF_PAIRS, OF_SPANS, ON_TEXT, case, remains, train
from safetensors.torch import load_file

from luban.training import stage

OBJECTIVES = (*ON_TEXT, *OF_PAIRS, *OF_SPANS, *OF_BERT, *OF_CHAT)
QUICK = ("causal", "grpo")  # the others are in the slow set
DRAWS = "import random\nimport numpy\ndef shakes(run):\n    next(run.model.parameters()).data.flatten()[0] += random.random() + numpy.random.rand() + numpy.random.randn()\n"
WITH: dict[str, tuple[str, dict]] = {
    "adamw_8bit": ("causal", {"optimizer": {"name": "adamw_8bit", "learning_rate": 5e-3}}),
    "adafactor": ("causal", {"optimizer": {"name": "adafactor", "learning_rate": 5e-3, "momentum": 0.9, "relative_step": True}}),
    "lion": ("causal", {"optimizer": {"name": "lion", "learning_rate": 1e-3}}),
    "muon": ("causal", {"optimizer": {"name": "muon"}}),
    "sgd": ("causal", {"optimizer": {"name": "sgd", "learning_rate": 1e-2}}),
    "layerwise": ("causal", {"engine": "layerwise", "micro_batch_rows": 4, "optimizer": {"name": "adafactor", "learning_rate": 5e-3}}),
    "bfloat16 weights": ("causal", {"weights": "bfloat16", "optimizer": {"name": "sgd", "learning_rate": 1e-2}}),
    "layerwise bfloat16": ("causal", {"engine": "layerwise", "weights": "bfloat16", "optimizer": {"name": "lion", "learning_rate": 1e-3}}),
    "micro-batches": ("causal", {"micro_batch_rows": 1, "precision": "bfloat16"}),
    "exponential average": ("classification", {"regularization": {"average": "exponential", "average_decay": 0.9, "r_drop": 1.0, "dropout": 0.2}}),
    "average of validations": ("classification", {"regularization": {"average": "validations", "mixup": 0.5, "layer_decay": 0.8, "l1": 1e-5}}),
    "curriculum": ("classification", {"regularization": {"curriculum": 0.7, "neftune": 2.0, "unfreeze_every": "2 steps"}}),
    "fgm": ("classification", {"regularization": {"adversarial": {"method": "fgm"}, "dropout": 0.1}}),
    "freelb": ("classification", {"regularization": {"adversarial": {"method": "freelb", "steps": 2}, "dropout": 0.1}}),
    "smart": ("classification", {"regularization": {"adversarial": {"method": "smart", "proximal": 1.0, "momentum": 0.9}, "dropout": 0.1}}),
    "the best of many": ("classification", {"validation": {"every": "1 steps", "share": 0.3, "restore_best": True}}),
    "lora": ("classification", {"adapter": {"method": "lora", "dropout": 0.2}}),
    "adalora": ("classification", {"adapter": {"method": "adalora", "rank": 2, "initial_rank": 4, "dropout": 0.1}}),
    "nf4": ("instruction", {"adapter": "lora", "quantization": "nf4"}),
    "samples": ("causal", {"samples": {"prompts": ["the king"], "every": "2 steps", "sampling": {"maximum_tokens": 4}}}),
}


def compare(folder, fields, monkeypatch):
    """An undisturbed training, and one that is killed four times."""
    whole = remains(train(folder, "whole/model", fields))
    for step in (1, 5):  # before the first checkpoint, and between the first and the last
        with pytest.raises(Exception, match="killed"):
            train(folder, "parts/model", fields, dies_at=step)
    for last in ("_generation", "write_model_card"):  # when all is trained and nothing is saved, and when all is saved and the artifact has no name yet
        with monkeypatch.context() as patch:
            patch.setattr(stage, last, killed)
            with pytest.raises(Exception, match="killed"):
                train(folder, "parts/model", fields)
    parts = remains(train(folder, "parts/model", fields))
    for name, value in whole.items():
        assert parts[name] == value, name


def killed(*_):
    raise SystemError("killed")


@pytest.mark.parametrize("objective", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OBJECTIVES])
def test_every_objective(tmp_path, monkeypatch, objective):
    compare(tmp_path, case(tmp_path, objective), monkeypatch)


@pytest.mark.parametrize("what", [name if name in ("layerwise bfloat16", "adalora") else pytest.param(name, marks=pytest.mark.slow) for name in WITH])
def test_whatever_moves_with_the_weights(tmp_path, monkeypatch, what):
    objective, fields = WITH[what]
    compare(tmp_path, {**case(tmp_path, objective), **fields}, monkeypatch)


def test_a_run_that_stopped_early_stays_stopped(tmp_path, monkeypatch):
    """Killed between its last checkpoint and its model, it does not train on; and other micro-batches than before are taken."""
    fields = {**case(tmp_path, "classification"), "length": "40 steps", "validation": {"every": "2 steps", "share": 0.2, "patience": 2, "minimum_gain": 10.0}}
    whole = remains(train(tmp_path, "whole/model", fields))
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_generation", killed)
        with pytest.raises(Exception, match="killed"):
            train(tmp_path, "parts/model", fields)
    seen = []
    monkeypatch.setattr(stage, "_report", lambda training, work, choices, report=stage._report: (seen.append(choices), report(training, work, choices)))
    parts = remains(train(tmp_path, "parts/model", {**fields, "micro_batch_rows": 1}))
    assert whole.pop("metrics")["steps"] == parts.pop("metrics")["steps"] == 4  # the last scores are taken in other micro-batches, and differ in their last digits
    assert parts == whole and seen[0]["micro_batch_rows"] == 1


@pytest.mark.slow
def test_without_strict_determinism_a_killed_run_ends_among_undisturbed_ones(tmp_path):
    """Five runs that sum in other orders (threads, micro-batches) differ in their last digits; one that was killed and went on in yet another order is none that stands out."""
    fields = {**case(tmp_path, "causal"), "determinism": "auto", "length": "12 steps"}
    orders = [{"threads": threads, "micro_batch_rows": rows} for threads, rows in ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2))]
    whole = [weights(train(tmp_path, f"whole-{number}", {**fields, **order})) for number, order in enumerate(orders)]
    for step, order in ((4, orders[1]), (8, orders[4])):
        with pytest.raises(Exception, match="killed"):
            train(tmp_path, "parts", {**fields, **order}, dies_at=step)
    parts = weights(train(tmp_path, "parts", {**fields, **orders[3]}))
    apart = [float((one - (sum(whole) - one) / 4).norm()) for one in whole]
    assert min(apart) > 0 and float((parts - sum(whole) / 5).norm()) < 2 * max(apart)


def weights(artifact):
    return torch.cat([value.double().flatten() for _, value in sorted(load_file(artifact.path / "model.safetensors").items())])
