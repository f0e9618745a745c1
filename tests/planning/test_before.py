"""Adapters in the planner, against the modules that they stand for: learned prompts and prefixes, and layers that are named."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from luban.adapters.attached import attach
from luban.cli.main import cli
from luban.foundation.config import build
from luban.foundation.errors import ConfigError
from luban.models.families import build_model, family_of
from luban.models.presets import preset
from luban.planning.job import Job, Layout
from luban.planning.search import disk_bytes, memory_of, refused
from luban.planning.step import Step
from luban.training.config import TrainConfig


def tiny(architecture, **fields):
    usual = {"architecture": architecture, "layers": 3, "hidden_size": 128, "heads": 2, "vocabulary_size": 512, "maximum_positions": 128}
    return build(family_of(architecture).shape, {**usual, **fields}).resolved()


def learned_by(shape, settings):
    model = build_model(shape)
    config = build(TrainConfig, {"data": "none", "adapter": settings}).adapter
    attach(model, config, 0)
    return config, sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


BEFORE = [{"method": "prompt"}, {"method": "prefix"}, {"method": "prefix", "projection": True, "projection_width": 96}, {"method": "p_tuning"}, {"method": "p_tuning", "network": "lstm", "width": 48, "layers": 3}]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bart", "t5"])
@pytest.mark.parametrize("settings", BEFORE, ids=str)
def test_what_stands_before_the_texts_learns_as_much_as_its_module(architecture, settings):
    """And nothing else does: a plan of it has gradients, states and a model to write."""
    shape = tiny(architecture, **({"key_value_heads": 1} if architecture == "llama" else {}))
    config, learned = learned_by(shape, settings)
    job = Job(shape, 32, 4, 2, adapter=config, source_length=32 if shape.kind == "encoder_decoder" else 0)
    step = Step(job)
    assert sum(parameter.numbers for parameter in step.parameters if parameter.learns) == learned
    step.run()
    assert sum(parameter.gradient.size for parameter in step.parameters if parameter.gradient is not None) == 4 * learned == step.account.live["gradients"]
    assert step.account.at_peak["optimizer"] == 8 * learned and disk_bytes(job)["model"] > 0


NAMED = [("llama", ["self_attn.q_proj", "down_proj"]), ("llama", ["model.layers.1.mlp.up_proj"]), ("qwen2_moe", ["shared_expert.gate_proj"]), ("gpt2", ["attn.c_proj"]), ("gpt2", ["c_proj", "c_fc"])]
NAMED += [("bert", ["dense"]), ("bert", ["self.query", "intermediate.dense"]), ("bart", ["fc1", "out_proj"]), ("bart", ["encoder_attn.q_proj"]), ("t5", ["q", "wo"]), ("t5", ["EncDecAttention.v", "wi"])]


@pytest.mark.parametrize(("architecture", "targets"), NAMED, ids=str)
def test_layers_that_are_named_are_those_of_the_model(architecture, targets):
    mixture = {"experts": 4, "experts_per_token": 2, "shared_expert_size": 64} if "moe" in architecture else {}
    shape = tiny(architecture, **mixture)
    config, learned = learned_by(shape, {"method": "lora", "targets": targets})
    step = Step(Job(shape, 32, 4, 2, adapter=config, source_length=32 if shape.kind == "encoder_decoder" else 0))
    assert sum(parameter.numbers for parameter in step.parameters if parameter.learns) == learned


def test_targets_that_name_nothing_are_refused_with_what_there_is():
    command = ["plan", "gpt2", "objective=instruction", "adapter={method: lora, targets: [nope]}", "--cluster", "1xA100"]
    done = CliRunner().invoke(cli, command)
    assert isinstance(done.exception, ConfigError) and "'nope' names no linear layer" in str(done.exception) and "c_attn" in str(done.exception)
    config = build(TrainConfig, {"data": "none", "adapter": {"method": "lora", "targets": ["nope"]}}).adapter
    with pytest.raises(ConfigError, match="nothing learns"):
        Step(Job(preset("gpt2"), 32, 4, adapter=config))


def test_a_prompt_takes_places_of_its_own_and_is_named_where_there_are_none():
    done = CliRunner().invoke(cli, ["plan", "gpt2", "objective=instruction", "adapter=prompt", "sequence_length=1024", "--cluster", "1xA100"])
    assert isinstance(done.exception, ConfigError) and "adapter.tokens 20" in str(done.exception) and "maximum_positions 1024" in str(done.exception) and "1004" in done.exception.text()
    short = CliRunner().invoke(cli, ["plan", "gpt2", "objective=instruction", "adapter=prompt", "--cluster", "1xA100"])
    assert short.exit_code == 0 and "1004 tokens" in short.output


def test_a_state_on_disk_weighs_nothing_but_one_matrix_and_is_for_processors():
    job = Job(tiny("llama"), 32, 4, 4, engine="layerwise", weights="float32")
    here, there = (memory_of(one, Layout()) for one in (job, Job(tiny("llama"), 32, 4, 4, engine="layerwise", state="disk")))
    step = Step(job)
    assert here.parts["optimizer"] == step.account.live["optimizer"] == 8 * sum(parameter.numbers for parameter in step.parameters)
    assert there.parts["optimizer"] <= 8 * max(parameter.numbers for parameter in step.parameters)
    assert refused(Job(tiny("llama"), 32, 4, engine="layerwise", state="disk", device="gpu"), Layout()).startswith("optimizer.state: disk")
    done = CliRunner().invoke(cli, ["plan", "gpt2", "engine=layerwise", "optimizer={name: adamw, state: disk}", "--cluster", "1xA100"])
    assert isinstance(done.exception, ConfigError) and "a device would wait" in str(done.exception)
