"""Shards that wait in the host's memory (torch's engine): the same training, on a device too; what cannot be had is refused by name; the planner counts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from resume_lab import FIXED, case
from torchrun_lab import EXACT, HERE, chosen, differs, follow

import luban
from luban.foundation.config import build
from luban.foundation.errors import ConfigError
from luban.models.presets import preset
from luban.planning.devices import cluster
from luban.planning.job import Job, Layout
from luban.planning.margins import Margin
from luban.planning.search import OFFLOADED, advice, memory_of, other_needs, refused
from luban.planning.speed import speed
from luban.training.config import TrainConfig
from luban.training.engines import check_engine

ALL = {"weights": "cpu", "optimizer": "cpu"}


def test_offloaded_shards_train_as_one_process_does(tmp_path):
    """Each way to shard, in float64; a whole training by the real stage; checkpoints go from offloaded shards to others and back, bit by bit."""
    fields = {**FIXED, **case(tmp_path, "causal"), "micro_batch_rows": 1, "gradient_clip": 0.5}
    luban.train(**fields, out=tmp_path / "one")
    runs = [{**fields, "layout": {"shard": "full", "offload": ALL}, "recompute": "selective", "out": tmp_path / "two"}]
    cases = ["llama:adamw:full,offload:2", "llama:muon:states,offload:2", "bert:sgd:gradients,offload:2", "t5:lion:full,offload:2", "llama:adamw:context2,full,offload:2"]
    found = follow(tmp_path, 2, cases, runs, journeys=[["llama", ["full,offload", "none", "gradients,offload", "full"]]])
    assert {name: values for name, values in found["cases"].items() if max(values) > EXACT} == {}
    assert found["journeys"] == [[]] and found["runs"] == [""]
    assert differs(tmp_path / "one", tmp_path / "two") == []


@pytest.mark.long
def test_adapters_and_quantised_bases_are_offloaded_too(tmp_path):
    fields = {**FIXED, **case(tmp_path, "causal"), "micro_batch_rows": 1, "gradient_clip": 0.5}
    luban.train(**fields, out=tmp_path / "base")
    fields = {name: value for name, value in fields.items() if name not in ("shape", "tokenizer")} | {"model": str(tmp_path / "base"), "adapter": {"method": "lora"}}
    kinds, runs = {"lora": {}, "nf4": {"quantization": {"format": "nf4"}}}, []
    for name, more in kinds.items():
        luban.train(**fields, **more, out=tmp_path / name)
        runs.append({**fields, **more, "layout": {"shard": "full", "offload": ALL}, "out": tmp_path / f"{name}-offloaded"})
    assert follow(tmp_path, 2, [], runs)["runs"] == ["", ""]
    assert [differs(tmp_path / name, tmp_path / f"{name}-offloaded") for name in kinds] == [[], []]


@pytest.mark.parametrize(("model", "optimizer", "shard", "more"), [("llama", "adamw", "full", ""), ("llama", "muon", "states", "context"), ("t5", "lion", "gradients", ""), ("bert", "sgd", "full", "tensor")])
def test_on_an_accelerator_shards_and_what_follows_them_wait_on_the_host(model, optimizer, shard, more):
    """There is none here: torch stands in one whose tensors have a device and no values, and mixes no devices."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE), str(Path(__file__).parents[2] / "src")])}
    done = subprocess.run([sys.executable, str(HERE / "offload_program.py"), model, optimizer, shard, more], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name for name, places in found.items() if places == ["paper:0"]} == {"runs on", "norm", "put together"}
    assert {name for name, places in found.items() if places == ["cpu"]} == {"gradients", "weights", "states", "snapshot", "read again"}


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"shard": "full", "offload": {"optimizer": "cpu"}}, "layout.offload.weights: none"), ({"shard": "full", "offload": {"weights": "cpu"}}, "layout.offload.optimizer: none"),
        ({"shard": "full", "offload": {"weights": "cpu", "optimizer": "nvme"}}, "layout.offload.optimizer: nvme"), ({"offload": ALL}, "layout.offload with layout.shard: auto"), ({"shard": "none", "offload": ALL}, "layout.shard: none"),
    ],
)  # fmt: skip
def test_torch_offloads_shards_with_all_that_follows_them_or_nothing(layout, said):
    with pytest.raises(ConfigError, match=said):
        check_engine(build(TrainConfig, {"data": "x", "layout": layout}), 8)


def test_an_offloaded_layout_says_what_it_does_not_go_with():
    asked = {"shard": "full", "offload": ALL}
    for model, count, fields, said in (
        ("llama", 1, {}, "layout.offload in one process"), ("llama", 2, {"layout": {**asked, "replicas": 2}}, "layout.offload.weights: cpu"), ("llama", 4, {"layout": {**asked, "pipeline": 2}}, "layout.pipeline: 2"),
        ("qwen3_moe", 2, {"layout": {**asked, "expert": 2}}, "layout.expert: 2"), ("llama", 2, {"precision": "float16"}, "precision: float16"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            chosen(model, count, **{"layout": asked, **fields})


# ---- the planner -------------------------------------------------------------------------------------------------------


def test_the_planner_has_offloaded_shards_on_the_host_and_their_copies_in_the_step():
    job, there = Job(preset("llama-2-7b"), 2048, 64, 1, 1e9, precision="bfloat16", recompute="full", device="gpu"), cluster("4xRTX4090")
    layout, away = Layout(shards=4, shard="full"), replace(job, offload=True)
    held, left = memory_of(job, layout), memory_of(away, layout)
    assert not left.parts.get("optimizer") and left.parts["gradients"] < held.parts["gradients"] / 10  # of the block whose sum is under way
    assert held.parts["optimizer"] == pytest.approx(8 * 6738415616 / 4, rel=1e-3)
    assert left.total < held.total / 3
    assert other_needs(away, layout)["offloaded"] == pytest.approx(16 * 6738415616 / 4, rel=1e-3)
    assert speed(away, layout, there).step > speed(job, layout, there).step
    assert memory_of(replace(away, device="cpu"), layout).parts == memory_of(replace(job, device="cpu"), layout).parts  # where there is one memory
    for other in (Layout(), Layout(replicas=4), Layout(pipeline=2, shards=2, shard="full")):
        assert "layout.offload" in refused(away, other)


def test_where_nothing_fits_offloading_is_offered_first():
    job, there = Job(preset("llama-2-7b"), 2048, 64, 1, 1e9, precision="bfloat16", device="gpu"), cluster("4xRTX4090")
    change, found = advice(job, there, Margin(0.15, 0.35))[0]
    assert change == OFFLOADED and found.memory.total < there.device.memory
