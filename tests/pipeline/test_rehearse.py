"""`luban check --rehearse`: a training at its full size on ranks that are not there, and what is foreseen of one on devices that are."""

from __future__ import annotations

import json
import re

import pytest
import torch
from click.testing import CliRunner
from torch._subclasses.fake_tensor import FakeTensorMode

from luban.cli.main import cli
from luban.foundation.config import Source, build
from luban.foundation.errors import LubanError
from luban.models.presets import preset
from luban.parallel.imagined import ImaginedRanks
from luban.parallel.layouts import Replicated
from luban.pipeline import foresight
from luban.pipeline.foresight import foresee
from luban.pipeline.recipe import make_recipe
from luban.pipeline.rehearse import check_rehearsal
from luban.planning.devices import cluster
from luban.training.config import TrainConfig
from luban.training.full_size import check_rehearsable
from luban.training.held import Everywhere, Held
from luban.training.layout import choose_layout

RECIPE = """luban: 1
cluster: 4xA100-80GB
stages:
  corpus: {kind: curate, sources: "package:luban/recipes/quickstart/data/poems.jsonl.gz#60"}
  tokenizer: {kind: train_tokenizer, corpus: corpus, vocabulary_size: 600}
  tokens: {kind: encode, corpus: corpus, tokenizer: tokenizer}
  base: {kind: train, data: tokens, shape: {layers: 4, hidden_size: 512, heads: 8}, sequence_length: 128, batch_tokens: 2048, micro_batch_rows: 2, length: 2 steps, layout: {shard: full}, precision: bfloat16}
"""


@pytest.mark.long
def test_a_training_is_rehearsed_on_four_ranks_that_are_not_there(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = CliRunner().invoke(cli, ["--language", "en", "check", str(tmp_path / "recipe.yaml"), "--rehearse"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "rank 0 of 4 (shards: 4, layout.shard: full)" in done.output and "2 micro-batches of 2 rows" in done.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
@pytest.mark.parametrize(("shard", "layout"), [("none", "replicas=auto"), ("none", "tensor=2"), ("none", "context=2"), ("full", "tensor=2")])
def test_other_layouts_are_rehearsed_too(tmp_path, shard, layout):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = CliRunner().invoke(cli, ["--language", "en", "check", str(tmp_path / "recipe.yaml"), f"base.layout.shard={shard}", f"base.layout.{layout}", "--rehearse"], catch_exceptions=False)
    assert done.exit_code == 0 and f"rank {int(layout == 'context=2')} of 4" in done.output, done.output  # the last of a context group sees the most


@pytest.mark.long
def test_the_masks_of_long_rows_are_in_the_arithmetic(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("#60", ""))
    long = ["base.sequence_length=8192", "base.batch_tokens=32768", "base.micro_batch_rows=1", "base.shape.maximum_positions=8192"]
    for layout in ("shard=full", "context=4"):
        done = CliRunner().invoke(cli, ["--language", "en", "check", str(tmp_path / "recipe.yaml"), *long, f"base.layout.{layout}", "--rehearse"], catch_exceptions=False)
        assert done.exit_code == 0 and abs(float(re.search(r"arithmetic says .*, ([+-][\d.]+)%", done.output)[1])) < 5, done.output


@pytest.mark.long
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_what_is_kept_of_blocks_in_bfloat16_shards_is_in_the_arithmetic(tmp_path, mode):
    """Offloaded or not, which on a processor is one memory; what was cast of weights does not outlive them."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for layout in ("{shard: full}", "{shard: full, offload: {weights: cpu, optimizer: cpu}}"):
        done = CliRunner().invoke(cli, ["--language", "en", "check", str(tmp_path / "recipe.yaml"), f"base.layout={layout}", f"base.recompute={mode}", "--rehearse"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert abs(float(re.search(r"arithmetic says .*, ([+-]\d+\.\d)%", done.output)[1])) < 3, done.output


@pytest.mark.long
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zero_bubble"])
def test_a_pipeline_is_rehearsed_at_both_of_its_ends(tmp_path, schedule):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = CliRunner().invoke(cli, ["--language", "en", "check", str(tmp_path / "recipe.yaml"), "base.layout.shard=none", "base.layout.pipeline=2", f"base.layout.schedule={schedule}", "--rehearse"], catch_exceptions=False)
    assert done.exit_code == 0 and "rank 0 of 4 (pipeline: 2, replicas: 2" in done.output and "rank 2 of 4" in done.output, done.output


@pytest.mark.long
@pytest.mark.parametrize("layout", ["shard=none", "expert=2", "expert=4", "pipeline=2"])
def test_mixtures_and_their_experts_are_rehearsed(tmp_path, layout):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("shape: {", "shape: {architecture: mixtral, experts: 8, experts_per_token: 2, "))
    done = CliRunner().invoke(cli, ["--language", "en", "check", str(tmp_path / "recipe.yaml"), f"base.layout.{layout}", "--rehearse"], catch_exceptions=False)
    assert done.exit_code == 0 and "rank 0 of 4" in done.output, done.output


@pytest.mark.long
@pytest.mark.parametrize("layout", ["shard=full", "tensor=2", "pipeline=2"])
def test_encoder_decoders_and_what_draws_numbers_are_rehearsed(tmp_path, layout):
    """T5 with dropout, whose target is shorter than its source; of a pipeline its micro-batches are padded to one shape."""
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("data: tokens", "data: tokens, objective: span_corruption").replace("shape: {layers: 4", "shape: {architecture: t5, layers: 2"))
    done = CliRunner().invoke(cli, ["--language", "en", "check", str(tmp_path / "recipe.yaml"), "base.layout.shard=none", f"base.layout.{layout}", "--rehearse"], catch_exceptions=False)
    assert done.exit_code == 0 and "rank 0 of 4" in done.output, done.output


@pytest.mark.long
@pytest.mark.parametrize("name", ["entities", "few-shot", "preferences", "translation"])
def test_shipped_recipes_are_rehearsed(tmp_path, monkeypatch, name):
    """Tasks with heads and masks, a training on what a stage behind another training makes, one with a reference, one whose stages are implied."""
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(cli, ["new", name], catch_exceptions=False).exit_code == 0
    done = CliRunner().invoke(cli, ["--language", "en", "check", f"{name}/recipe.yaml", "--cluster", "2xRTX3090", "--rehearse"], catch_exceptions=False)
    assert done.exit_code == 0 and "rank 0 of 2" in done.output, done.output


def test_what_goes_by_values_is_taken_to_hold_everywhere():
    with FakeTensorMode() as mode, Everywhere():
        scores = mode.from_tensor(torch.zeros(2, 3, 5)).requires_grad_()
        picked = scores[mode.from_tensor(torch.zeros(2, 3, dtype=torch.bool))]
        picked.sum().backward()
        assert picked.shape == (6, 5) and scores.grad.shape == scores.shape
        assert mode.from_tensor(torch.zeros(2, 3)).nonzero().shape == (6, 2)


@pytest.mark.long
def test_what_a_training_would_make_is_stood_in_for(tmp_path):
    """Also for a stage between two trainings, which reads the first one's tokenizer; the first may be refused."""
    plain = {
        "corpus": {"kind": "curate", "sources": "package:luban/recipes/quickstart/data/poems.jsonl.gz#5"},
        "base": {"kind": "train", "data": "corpus", "shape": {"layers": 1, "hidden_size": 32, "heads": 2}, "length": "1 steps", "engine": "layerwise", "gradient_clip": 0},
        "more": {"kind": "train", "model": "base", "data": "corpus", "length": "1 steps"},
    }
    recipe = make_recipe({"stages": plain}, tmp_path, "r", Source("r"), tmp_path / "out")
    ticks = list(check_rehearsal(recipe, "1xcpu"))
    assert "engine: layerwise cannot be rehearsed" in ticks[0].text and "more: rehearsed as rank 0 of 1" in ticks[1].text
    assert [tick.passed for tick in ticks] == [False, True, True, True, True]


@pytest.mark.parametrize(("fields", "words"), [({"engine": "layerwise", "gradient_clip": 0.0}, "engine: layerwise"), ({"engine": "deepspeed"}, "engine: deepspeed"), ({"adapter": "prompt"}, "adapter.method: prompt"), ({"objective": {"name": "distillation"}}, "objective: distillation")])
def test_what_waits_for_other_ranks_is_refused_by_name(fields, words):
    with pytest.raises(LubanError, match=f"{words} cannot be rehearsed"):
        check_rehearsable(build(TrainConfig, {"data": "text", **fields}))


@pytest.mark.long
def test_a_prefix_is_rehearsed(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("shard: full", "shard: none"))
    done = CliRunner().invoke(cli, ["--language", "en", "check", str(tmp_path / "recipe.yaml"), "base.adapter=prefix", "--rehearse"], catch_exceptions=False)
    assert done.exit_code == 0 and "rank 0 of 4" in done.output, done.output


def test_every_storage_counts_once_and_until_it_is_gone():
    held = Held()
    weights = torch.zeros(1000)
    with held:
        assert held.count([weights, weights.view(10, 100)]) == 4000
        held.moment = "sum"
        more = weights + 1
        less = more[:10]  # the same storage
        assert held.total == 8000
        del more, less
        assert held.total == 4000
        weights.untyped_storage().resize_(0)
        held.count([])
    assert held.total == 0 and held.peak == 8000 and held.at == "sum"


# ---- what is foreseen ----------------------------------------------------------------------------------------------


def config_of(name: str, **fields) -> TrainConfig:
    plain = {"data": "text", "sequence_length": 2048, "batch_tokens": 262144, "precision": "bfloat16", **fields}
    return build(TrainConfig, plain).updated(shape=preset(name).model_dump())


@pytest.fixture
def eight(monkeypatch):
    monkeypatch.setattr(foresight, "devices", lambda count, local: cluster("8xA100-80GB"))


def test_small_models_are_held_by_each_and_large_ones_cut(eight):
    small, large = foresee(config_of("gpt2", sequence_length=1024)), foresee(config_of("llama-2-7b"))
    assert small["layout"] == {"shard": "none", "replicas": 8} and small["fits"]
    assert large["layout"]["shard"] != "none" and large["fits"] and large["bytes"] * (1 + large["share"]) <= large["room"]
    assert large["micro_batch_rows"] in (1, 2, 4, 8) and small["micro_batch_rows"] == 16


def test_what_the_config_says_stands(eight):
    assert foresee(config_of("llama-2-7b", layout={"shard": "gradients"}))["layout"]["shard"] == "gradients"
    assert foresee(config_of("llama-2-7b", micro_batch_rows=1))["micro_batch_rows"] == 1
    assert foresee(config_of("llama-2-7b", layout={"replicas": 2}))["layout"]["replicas"] == 2
    whole = foresee(config_of("llama-2-7b", layout={"shard": "none"}))
    assert whole["layout"] == {"shard": "none", "replicas": 8} and not whole["fits"]
    assert foresee(config_of("lstm-small", sequence_length=128)) == {}  # the planner does not know it


def test_a_layout_that_is_left_open_is_the_foreseen_one():
    from luban.models.families import build_model
    from luban.objectives.causal import Causal

    config = build(TrainConfig, {"data": "text"}).updated(shape=preset("gpt2").model_dump(), sequence_length=64)
    with torch.device("meta"):
        model = build_model(preset("tiny").updated(vocabulary_size=50))
    chosen = choose_layout(config, model, Causal(), ImaginedRanks(2), {"shard": "none", "replicas": 2})
    assert type(chosen) is Replicated
    ruled_out = config.updated(weights="bfloat16")
    assert type(choose_layout(ruled_out, model, Causal(), ImaginedRanks(2), {"shard": "full", "replicas": 1})) is Replicated


def test_choices_say_what_was_foreseen(tmp_path, monkeypatch):
    from luban.foundation.artifacts import Work
    from luban.training.stage import _choices

    config = config_of("gpt2", sequence_length=64, batch_tokens=1024, precision="float32", threads=1)
    asked = []

    def foresight_of() -> dict:
        asked.append(1)
        return {"layout": {"shard": "full", "replicas": 1}, "micro_batch_rows": 2, "bytes": 1, "share": 0.05, "room": 2, "fits": True}

    work = Work(tmp_path, {}, foresee=foresight_of)
    (tmp_path / "training").mkdir()
    alone = _choices(config, work, torch.device("cpu"), False, ImaginedRanks(1))
    assert not asked and alone["layout"] is None and alone["micro_batch_rows"] == 32  # one process on a processor: as ever
    (tmp_path / "training" / "choices.json").unlink()
    four = _choices(config, work, torch.device("cpu"), False, ImaginedRanks(4))
    assert four["layout"] == {"shard": "full", "replicas": 1} and len(asked) == 1
    assert json.loads((tmp_path / "training" / "choices.json").read_text())["layout"] == four["layout"]
    again = _choices(config, work, torch.device("cpu"), False, ImaginedRanks(4))
    assert again["layout"] == four["layout"] and len(asked) == 1  # a run that goes on takes what was chosen
    assert _choices(config, work, torch.device("cpu"), False, ImaginedRanks(1))["layout"] is None
