"""Learned prompts and prefixes in the planner, against the modules that they stand for."""

from __future__ import annotations

import pytest

from luban.adapters.attached import attach
from luban.foundation.config import build
from luban.models.families import build_model, family_of
from luban.planning.job import Job
from luban.planning.search import disk_bytes
from luban.planning.step import Step
from luban.training.config import TrainConfig

BEFORE = [{"method": "prompt"}, {"method": "prefix"}, {"method": "prefix", "projection": True, "projection_width": 96}, {"method": "p_tuning"}, {"method": "p_tuning", "network": "lstm", "width": 48, "layers": 3}]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bart", "t5"])
@pytest.mark.parametrize("settings", BEFORE, ids=str)
def test_what_stands_before_the_texts_learns_as_much_as_its_module(architecture, settings):
    """And nothing else does: a plan of it has gradients, states and a model to write."""
    usual = {"architecture": architecture, "layers": 3, "hidden_size": 128, "heads": 2, "vocabulary_size": 512, "maximum_positions": 128}
    shape = build(family_of(architecture).shape, {**usual, **({"key_value_heads": 1} if architecture == "llama" else {})}).resolved()
    model = build_model(shape)
    config = build(TrainConfig, {"data": "none", "adapter": settings}).adapter
    attach(model, config, 0)
    job = Job(shape, 32, 4, 2, adapter=config, source_length=32 if shape.kind == "encoder_decoder" else 0)
    step = Step(job)
    learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert sum(parameter.numbers for parameter in step.parameters if parameter.learns) == learned
    step.run()
    assert sum(parameter.gradient.size for parameter in step.parameters if parameter.gradient is not None) == 4 * learned == step.account.live["gradients"]
    assert step.account.at_peak["optimizer"] == 8 * learned and disk_bytes(job)["model"] > 0
