"""Stages of a pipeline: the same training as one process in the order of every schedule, beside replicas and groups; the same checkpoints; refusals that say what would do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_lab import make
from resume_lab import FIXED, case
from text_lab import SMALL
from torchrun_lab import EXACT, chosen, differs, files_of, follow

import luban
from luban.foundation.errors import ConfigError
from luban.models.huggingface import load_model
from luban.parallel.pipelined import even, sizes_of
from luban.parallel.stages import stages_of

SHAPE = {"layers": 4}  # of the tiny model that is trained by the real stage
SCHEDULES = {"1f1b": {}, "interleaved": {"schedule": "interleaved"}, "zero_bubble": {"schedule": "zero_bubble"}}


def fields(folder: Any, **more: Any) -> dict[str, Any]:
    made = {**FIXED, **case(folder, "causal"), "micro_batch_rows": 1, "gradient_clip": 0.5, **more}
    return {**made, "shape": {**made["shape"], **SHAPE}}


def layers(folder: Path) -> dict[str, float]:
    """The gradient norm of each layer, as the log has it."""
    lines = [json.loads(line) for line in (folder / "training" / "log.jsonl").read_text().splitlines()]
    return next(line["layers"] for line in lines if "layers" in line)


def test_two_ranks_of_a_pipeline_say_what_one_process_says(tmp_path):
    """Every schedule in float64, tied and untied tables of tokens; a whole training by the real stage with validation, samples and checkpoints, one of which one process goes on from; checkpoints that go from
    layout to layout."""
    cases = [
        "llama:adamw:pipeline2:2", "llama:muon:pipeline2,stages1,zero_bubble:1", "mistral:adamw:pipeline2,interleaved:1", "mistral:adamw:pipeline2,zero_bubble:2", "gpt2:adamw:pipeline2:2",
        "bert:adamw:pipeline2,stages1,zero_bubble:2", "bert/kinds:sgd:pipeline2:2", "qwen2_moe:adamw:pipeline2:2", "mixtral:muon:pipeline2,stages1,zero_bubble:1",
        "t5:adamw:pipeline2:2", "t5:muon:pipeline2,interleaved:2", "bart:adamw:pipeline2,interleaved:1", "bart/kinds:adamw:pipeline2:2", "mbart:sgd:pipeline2:1", "t5/kinds:adamw:pipeline2:2",
    ]  # fmt: skip
    plain = fields(tmp_path, samples={"every": "2 steps", "prompts": ["the"], "sampling": {"maximum_tokens": 4, "temperature": 0}})
    luban.train(**plain, out=tmp_path / "one")
    half = {**plain, "length": "4 steps", "layout": {"pipeline": 2, "schedule": "zero_bubble"}, "out": tmp_path / "half"}
    watched = {**plain, "length": "2 steps", "samples": {}, "guards": {"layers_every": 2}}
    luban.train(**watched, out=tmp_path / "one-watched")
    runs = [{**plain, "layout": {"pipeline": 2}, "recompute": "selective", "out": tmp_path / "two"}, half, {**watched, "layout": {"pipeline": 2}, "out": tmp_path / "two-watched"}]
    journeys = [["mistral", ["pipeline2", "none", "pipeline2,zero_bubble", "full", "pipeline2,interleaved"]], ["llama", ["pipeline2", "tensor2", "pipeline2,stages1,zero_bubble"]], ["mixtral", ["pipeline2", "replicas2,expert2", "pipeline2,interleaved"]], ["t5", ["pipeline2,interleaved", "tensor2", "pipeline2", "full"]]]
    found = follow(tmp_path, 2, cases, runs, journeys=journeys, draws=["mistral:pipeline2", "mistral:pipeline2,zero_bubble"])
    assert {name: values for name, values in found["cases"].items() if max(values) > EXACT} == {}
    assert found["runs"] == ["", "", ""]
    assert layers(tmp_path / "two-watched") == pytest.approx(layers(tmp_path / "one-watched"), rel=1e-3)  # those of all stages
    assert differs(tmp_path / "one", tmp_path / "two") == []
    torch.testing.assert_close(dict(load_model(tmp_path / "two").named_parameters()), dict(load_model(tmp_path / "one").named_parameters()), rtol=1e-3, atol=1e-5)
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    luban.train(**{**plain, "out": tmp_path / "half"})
    assert differs(tmp_path / "one", tmp_path / "half") == []
    assert found["journeys"] == [[], [], [], []]  # no tensor arrives with other bits
    assert [apart for _, apart in found["draws"].values()] == [0.0, 0.0]  # blocks that are computed again draw the same


@pytest.mark.long
def test_four_ranks_with_pipelines_say_what_one_process_says(tmp_path):
    cases = [
        "mistral:adamw:pipeline4:1", "llama:adamw:pipeline2,replicas2:2", "mistral:muon:pipeline2,replicas2,interleaved:1", "mistral:adamw:pipeline2,replicas2,zero_bubble:1", "llama:adamw:pipeline2,tensor2:1",
        "mistral:adamw:pipeline2,tensor2,zero_bubble:1", "mistral:adamw:pipeline2,tensor2,whole,interleaved:2", "bert:adamw:pipeline2,tensor2:2", "gpt2:adamw:pipeline2,context2:2",
        "mistral:adamw:pipeline2,context2,zero_bubble:1", "mistral:adamw:pipeline4,stages1,zero_bubble:1", "mistral:adamw:pipeline2,full:1",
        "mistral:muon:pipeline2,gradients,interleaved:2", "bert:adamw:pipeline2,full:1",
        "mixtral:adamw:pipeline2,context2,interleaved:1", "mixtral:adamw:pipeline2,replicas2,expert2:1", "mixtral:adamw:pipeline2,full,expert2:1", "qwen2_moe:adamw:pipeline2,tensor2:1", "mixtral:adamw:pipeline2,replicas2,zero_bubble:1",
        "t5:adamw:pipeline4:1", "t5:adamw:pipeline2,tensor2:2", "t5:muon:pipeline2,full:1", "t5:adamw:pipeline2,context2,interleaved:1", "bart:adamw:pipeline2,tensor2:1",
        "bart:adamw:pipeline2,context2:2", "mbart:adamw:pipeline2,replicas2,interleaved:1",
    ]  # fmt: skip
    found = follow(tmp_path, 4, cases, [], journeys=[["mistral", ["pipeline2,replicas2", "pipeline4", "tensor2,pipeline2", "full", "pipeline2,context2,zero_bubble", "pipeline2,full,interleaved"]]], draws=["mistral:pipeline2,tensor2"])
    assert {name: values for name, values in found["cases"].items() if max(values) > EXACT} == {}
    assert found["journeys"] == [[]]
    assert found["draws"]["mistral:pipeline2,tensor2"][1] == 0.0


ASKED: dict[str, dict[str, Any]] = {
    "instruction": {"adapter": {"method": "lora"}, "layout": {"pipeline": 2, "schedule": "zero_bubble"}},
    "dpo": {"adapter": {"method": "lora"}, "quantization": {"format": "int8"}, "layout": {"pipeline": 2}},
    "tagging": {"adapter": {"method": "lora"}, "weights": "bfloat16", "layout": {"pipeline": 2}},
    "causal": {"precision": "bfloat16", "layout": {"pipeline": 2, "schedule": "interleaved"}, "optimizer": {"name": "adafactor", "learning_rate": 5e-3}},
    "classification": {"layout": {"pipeline": 2}, "regularization": {"dropout": 0.0, "freeze": ["layers:1"]}, "validation": {**FIXED["validation"], "restore_best": True}},
}


@pytest.mark.long
def test_adapters_precision_and_tasks_train_alike_in_a_pipeline(tmp_path, monkeypatch):
    """By their real stages: LoRA with a zero-bubble schedule, on a quantised base, and on one in bfloat16; products in bfloat16; a first stage in which nothing learns, and the best weights restored."""
    monkeypatch.setitem(SMALL, "layers", 2)
    runs = []
    for name, more in ASKED.items():
        (tmp_path / name).mkdir()
        plain = {**(fields(tmp_path / name) if name == "causal" else {**FIXED, **case(tmp_path / name, name), "micro_batch_rows": 1}), "regularization": {"dropout": 0.0}, **more}
        luban.train(**{**plain, "layout": {}}, out=tmp_path / name / "one")
        runs.append({**plain, "out": tmp_path / name / "two"})
    assert follow(tmp_path, 2, [], runs)["runs"] == [""] * len(runs)
    for name in ASKED:
        assert differs(tmp_path / name / "one", tmp_path / name / "two") == [], name


@pytest.mark.long
@pytest.mark.compiler
def test_compiled_blocks_train_alike_in_a_pipeline(tmp_path):
    plain = {**fields(tmp_path), "length": "3 steps", "compile": True}
    luban.train(**{**plain, "compile": False}, out=tmp_path / "one")
    assert follow(tmp_path, 2, [], [{**plain, "layout": {"pipeline": 2}, "out": tmp_path / "two"}])["runs"] == [""]
    assert differs(tmp_path / "one", tmp_path / "two") == []


# ---- what is legal, and how layers are shared out ----------------------------------------------------------------------


@pytest.mark.parametrize(("blocks", "ranks", "each", "turning"), [(4, 2, 1, False), (7, 3, 2, False), (9, 4, 2, True), (5, 5, 1, False)])
def test_stages_hold_every_block_once_and_in_order(blocks, ranks, each, turning):
    stages = sorted((stage for rank in range(ranks) for stage in stages_of(blocks, ranks, each, rank, turning)), key=lambda stage: stage.number)
    assert [number for stage in stages for number in range(stage.start, stage.stop)] == list(range(blocks))
    assert all(stage.stop > stage.start for stage in stages)
    assert [stage.number for stage in stages] == list(range(ranks * each))
    if turning:  # a V: neighbours in number are the same rank or the next
        holders = {stage.number: rank for rank in range(ranks) for stage in stages_of(blocks, ranks, each, rank, turning)}
        assert all(abs(holders[number] - holders[number + 1]) <= 1 for number in range(2 * ranks - 1))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_micro_batches_in_one_shape_score_what_they_scored(name):
    """Without looking at the device for it, and of each row the same targets; rows that were added count nothing."""
    _, _, batches = make(name)
    parts = [batch.to("cpu") for batch in batches]
    for part, (made, counted) in zip(parts, even([(part, True) for part in parts]), strict=True):
        assert counted and made.known_scored is not None and sizes_of(made) == sizes_of(even([(part, True) for part in parts])[0][0])
        assert torch.equal(made.known_scored, made.weights.reshape(-1).nonzero().squeeze(1))
        assert torch.equal(made.targets.reshape(-1)[made.scored], part.targets.reshape(-1)[part.scored]) and made.count == part.count


def test_what_pipelines_cannot_do_is_refused_by_name():
    two = {"layout": {"pipeline": 2}}
    refused = {
        "layout.stages_per_rank: 2 with layout.schedule: 1f1b": {"layout": {"pipeline": 2, "stages_per_rank": 2}},
        "layout.stages_per_rank: 1 with layout.schedule: interleaved": {"layout": {"pipeline": 2, "schedule": "interleaved", "stages_per_rank": 1}},
        "layout.shard: states cannot be trained in a pipeline of 2": {"count": 4, "layout": {"pipeline": 2, "shard": "states"}},
        "layout.shard: full cannot be trained in a pipeline of 2": {"count": 4, "layout": {"pipeline": 2, "shard": "full", "schedule": "zero_bubble"}},
        "regularization.r_drop: 1.0": {"regularization": {"r_drop": 1.0}, "model": "bert/kinds", **two},
        "regularization.average: exponential": {"regularization": {"average": "exponential"}, **two},
        "guards.recheck_every: 3": {"guards": {"recheck_every": 3}, **two},
        "precision: float16": {"precision": "float16", **two},
        "weights: bfloat16": {"weights": "bfloat16", **two},
        "objective: ": {"model": "bert/alike", **two},
        "compile: True": {"compile": True, "layout": {"pipeline": 2, "schedule": "zero_bubble"}},
        "engine: layerwise": {"engine": "layerwise", **two},
        "layout.schedule: zero_bubble": {"model": "t5", "layout": {"pipeline": 2, "schedule": "zero_bubble"}},
    }
    for said, given in refused.items():
        with pytest.raises(ConfigError) as caught:
            chosen(**given)
        assert str(caught.value).startswith(said), caught.value
