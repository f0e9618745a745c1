"""DeepSpeed turns the same loop: real ranks of it say what the torch engine says, its checkpoints are the torch engine's, and what it cannot do is refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rank_lab import make
from resume_lab import FIXED, case
from safetensors.torch import load_file
from tiny import tiny_recipe
from torchrun_lab import CLOSE, HERE, differs, ended, files_of, luban_run, same_figures, started, torchrun

import luban
from luban.foundation.config import build, fields_with_role
from luban.foundation.environment import Launch
from luban.foundation.errors import ConfigError, LubanError
from luban.models.huggingface import load_model
from luban.parallel.ranks import Ranks
from luban.parallel.zero import Zero
from luban.training.config import TrainConfig
from luban.training.deepspeed_json import deepspeed_settings, require_deepspeed
from luban.training.engines import check_engine
from luban.training.layout import choose_layout
from luban.training.log import deterministic

NEAR = 1e-5  # of ten steps in float32: losses and norms as a share of them, and weights
STEEP = 1e-3  # of those whose gradients are hundreds of times as large as their losses


def follow(folder: Path, count: int, **plan: Any) -> dict[str, Any]:
    """What came of a plan (zero_program.py), in so many processes."""
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text(json.dumps({**plan, "found": str(folder / "found.json")}, default=str))
    if count > 1:
        process = torchrun(count, HERE / "zero_program.py", folder / "plan.json")
    else:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
        process = subprocess.Popen([sys.executable, HERE / "zero_program.py", folder / "plan.json"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    _, said = process.communicate(timeout=600)
    assert (folder / "found.json").exists(), said[-4000:]
    return json.loads((folder / "found.json").read_text())


def far(found: dict[str, Any], near: float = NEAR) -> list[Any]:
    """What differs from the torch engine by more than ``near``, on any rank."""
    return [(name, apart) for of_rank in found["cases"] for name, apart in of_rank.items() if max(apart.values()) > near]


# ---- the same steps ---------------------------------------------------------------------------------------------------


@pytest.mark.deepspeed
def test_ten_steps_are_the_torch_engines(tmp_path):
    """Every stage in two processes: steps of uneven rows, accumulation, clipping, rates that fall; a validation and the model that is put together. A step that is refused leaves everything as it was."""
    kinds = ("none:2", "gradients:2", "full:2", "gradients:1:optimizer=cpu", "full:2:optimizer=cpu,weights=cpu")
    cases = [f"llama:adamw:{kind}" for kind in kinds]
    found = follow(tmp_path, 2, cases=cases, refused=cases, journeys=[["llama", ["torch", "full", "none", "gradients", "torch"]], ["qwen2", ["full", "torch"]]])
    assert far(found) == []
    assert found["refused"] == [{name: [] for name in cases}] * 2
    assert found["journeys"] == [[[], []]] * 2  # the same bits in every weight and every number of the optimizer


@pytest.mark.deepspeed
@pytest.mark.slow
def test_one_process_and_three_say_the_same(tmp_path):
    kinds = ("none:2", "gradients:2", "full:2", "full:2:optimizer=cpu")
    for count in (1, 3):  # three: matrices that do not divide by the ranks
        found = follow(tmp_path / str(count), count, cases=[f"qwen2:adamw:{kind}" for kind in kinds], refused=["qwen2:adamw:full:2"], journeys=[["llama", ["full", "torch", "none"]]])
        assert far(found) == []
        assert found["refused"] == [{"qwen2:adamw:full:2": []}] * count and found["journeys"] == [[[]]] * count


@pytest.mark.deepspeed
@pytest.mark.slow
def test_families_and_optimizers(tmp_path):
    cases = ["t5:adamw:full:2", "bert/kinds:sgd:gradients:2", "bert/kinds:lion:full:2", "qwen3_moe:adamw:full:1", "qwen3_moe:adamw:gradients:1", "gpt2:lion:none:2", "bart:adamw:full:1", "roberta:adamw:gradients:2", "luban-lstm:adamw:none:2"]
    found = follow(tmp_path, 2, cases=cases)
    assert far(found) == []
    found = follow(tmp_path, 2, cases=["bert/alike:adamw:none:2", "bert/alike:sgd:gradients:2"])  # all rows of a step compared
    assert far(found, STEEP) == []


# ---- real stages ------------------------------------------------------------------------------------------------------


@pytest.mark.deepspeed
def test_a_training_by_deepspeed_is_the_torch_engines(tmp_path):
    """Data, schedule, validation, samples, checkpoints and the Hugging Face directory are Luban's own; the settings are made of the recipe's and lie in the run's folder."""
    fields = {**FIXED, **case(tmp_path, "causal"), "micro_batch_rows": 1, "gradient_clip": 0.5, "samples": {"prompts": ["the"], "sampling": {"maximum_tokens": 4, "temperature": 0}}}
    luban.train(**fields, out=tmp_path / "one")
    runs = [{**fields, "engine": "deepspeed", "layout": {"shard": shard}, "out": tmp_path / shard} for shard in ("none", "gradients", "full")]
    assert follow(tmp_path, 2, runs=runs)["runs"] == ["", "", ""]
    expected = dict(load_model(tmp_path / "one").named_parameters())
    for stage, shard in enumerate(("none", "gradients", "full"), 1):
        assert differs(tmp_path / "one", tmp_path / shard) == []
        torch.testing.assert_close(dict(load_model(tmp_path / shard).named_parameters()), expected, rtol=1e-3, atol=1e-5)
        assert files_of(tmp_path / shard) == files_of(tmp_path / "one") | {"deepspeed.json"}
        settings = json.loads((tmp_path / shard / "training" / "deepspeed.json").read_text())
        assert settings["zero_optimization"]["stage"] == stage and settings["gradient_clipping"] == 0.5 and settings["train_micro_batch_size_per_gpu"] == 1


@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("name", ["classification", "instruction", "dpo", "distillation"])
def test_objectives_train_alike(tmp_path, name):
    """Task metrics, the best weights, references, teachers and an adapter."""
    more = {"adapter": {"method": "lora"}} if name == "instruction" else {}
    shards = ("none", "gradients") if more else ("none", "full")
    fields = {**FIXED, **case(tmp_path, name), **more, "regularization": {"dropout": 0.0}, "micro_batch_rows": 1}
    luban.train(**fields, out=tmp_path / "one")
    runs = [{**fields, "engine": "deepspeed", "layout": {"shard": shard}, "out": tmp_path / shard} for shard in shards]
    assert follow(tmp_path, 2, runs=runs)["runs"] == ["", ""]
    for shard in shards:
        assert differs(tmp_path / "one", tmp_path / shard) == []


@pytest.mark.deepspeed
@pytest.mark.libaio
@pytest.mark.slow
def test_states_and_weights_wait_on_disk(tmp_path):
    """The same losses, norms and weights, begun, stopped and gone on with; DeepSpeed leaves in memory what is below a mebibyte, so the model is not the tiniest."""
    compiled = subprocess.run([sys.executable, "-c", "from luban.parallel.zero import compile_async_io, load_deepspeed; load_deepspeed(); compile_async_io()"], capture_output=True, text=True)
    assert not compiled.returncode, compiled.stderr
    fields = {**FIXED, **case(tmp_path, "causal"), "micro_batch_rows": 1, "gradient_clip": 0.5}
    fields["shape"] |= {"hidden_size": 768, "heads": 4, "feed_forward_size": 2048}
    luban.train(**fields, out=tmp_path / "one")
    runs = []
    for name, places in {"states": {"optimizer": "nvme"}, "both": {"optimizer": "nvme", "weights": "nvme"}}.items():
        given = {**fields, "engine": "deepspeed", "layout": {"shard": "full", "offload": {**places, "folder": str(tmp_path / f"{name}-disk")}}, "out": tmp_path / name}
        runs += [{**given, "length": "4 steps"}, given]
    runs.append({**fields, "engine": "deepspeed", "layout": {"shard": "full", "offload": {"optimizer": "nvme"}}, "out": tmp_path / "beside"})
    assert follow(tmp_path, 2, runs=runs)["runs"] == [""] * len(runs)
    for name in ("states", "both", "beside"):
        assert differs(tmp_path / "one", tmp_path / name) == []
    swapped = {name: {file.name.rpartition("_")[2] for file in (tmp_path / f"{name}-disk").rglob("*.swp")} for name in ("states", "both")}
    assert swapped["states"] and "param.tensor.swp" in {file.split(".", 1)[0].split("_")[-1] + "." + file.split(".", 1)[1] for file in swapped["both"]}
    halves = [half for value in load_file(tmp_path / "both" / "model.safetensors").values() for half in value.flatten().chunk(2)]
    waiting = [torch.from_numpy(np.fromfile(file, np.float32)) for file in (tmp_path / "both-disk").rglob("*_param.tensor.swp")]
    assert len(waiting) >= 6 and all(any(torch.equal(half, held[: len(half)]) for half in halves) for held in waiting)  # what was trained, and not only what was begun with
    assert not (tmp_path / "beside" / "training" / "offload").exists()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a recipe whose tokens are made, and the training of the torch engine in `one`."""
    folder = tmp_path_factory.mktemp("zero")
    recipe = tiny_recipe(folder, batch_tokens=160, micro_batch_rows=1, schedule={"shape": "constant"}, validation={"every": "4 steps"}, checkpoint={"every": "1 steps", "keep": 12})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    luban.run(folder / "recipe.yaml", out=folder / "one")
    return folder


@pytest.mark.deepspeed
@pytest.mark.slow
def test_a_run_goes_from_engine_to_engine(home):
    """Begun by the torch engine, continued by ZeRO 3 in two processes, by ZeRO 1, and by the torch engine again: the engine is no part of what makes a run stale."""
    out = started(home, "grown")
    luban.run(home / "recipe.yaml", "base.length=3 steps", out=home / "grown")
    said = ended(luban_run(2, home, out, "base.length=6 steps", "base.engine=deepspeed", "base.layout.shard=full"))
    assert "continuing at step 3 of 6" in said and "ZeRO 3" in said and "deepspeed.json" in said
    assert "continuing at step 6 of 9" in ended(luban_run(2, home, out, "base.length=9 steps", "base.engine=deepspeed"))
    luban.run(home / "recipe.yaml", out=home / "grown")
    same_figures(home / "one" / "base", home / "grown" / "base", CLOSE)


@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "gradients", "full"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(home, shard):
    """By the same engine in as many processes: the last checkpoint, weights and the optimizer's state, and every figure of the log."""
    options = ("base.engine=deepspeed", f"base.layout.shard={shard}")
    whole, parted = started(home, f"whole-{shard}"), started(home, f"parted-{shard}")
    ended(luban_run(2, home, whole, *options))
    ended(luban_run(2, home, parted, *options, "base.length=5 steps"))
    assert "continuing at step 5 of 12" in ended(luban_run(2, home, parted, *options))
    one, other = (home / f"{name}-{shard}" / "base" for name in ("whole", "parted"))
    figures = [[entry for entry in deterministic(folder / "training" / "log.jsonl") if "gradient_norm" in entry] for folder in (one, other)]  # a run of five steps is validated after its last
    assert len(figures[0]) == 12 and figures[0] == figures[1]
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    ends = [folder / "training" / "checkpoints" / "step-00000012" for folder in (one, other)]
    for file in ends[0].glob("*.safetensors"):
        torch.testing.assert_close(load_file(file), load_file(ends[1] / file.name), rtol=0, atol=0)


# ---- what is refused --------------------------------------------------------------------------------------------------

REFUSED: dict[str, dict[str, Any]] = {
    "optimizer.name: muon": {"optimizer": {"name": "muon"}},
    "optimizer.name: adamw_8bit": {"optimizer": {"name": "adamw_8bit"}},
    "optimizer.state: disk": {"optimizer": {"state": "disk"}},
    "weights: bfloat16": {"weights": "bfloat16", "optimizer": {"name": "lion"}},
    "precision: float16": {"precision": "float16"},
    "compile: True": {"compile": True},
    "micro_batch_rows: fit": {"micro_batch_rows": "fit"},
    "guards.recheck_every: 2": {"guards": {"recheck_every": 2}},
    "regularization.r_drop: 1.0": {"regularization": {"r_drop": 1.0}},
    "regularization.adversarial.method: fgm": {"regularization": {"adversarial": {"method": "fgm"}}},
    "regularization.l1: 0.1": {"regularization": {"l1": 0.1}},
    "regularization.unfreeze_every": {"regularization": {"unfreeze_every": "2 steps"}},
    "adapter.method: adalora": {"adapter": {"method": "adalora"}},
    "layout.tensor: 2": {"layout": {"tensor": 2}},
    "layout.context: 2": {"layout": {"context": 2}},
    "layout.expert: 2": {"layout": {"expert": 2}},
    "layout.pipeline: 2": {"layout": {"pipeline": 2}},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_deepspeed_cannot_do_is_refused_by_name(said):
    config = build(TrainConfig, {"data": "x", "engine": "deepspeed", "gradient_clip": 1.0, **REFUSED[said]})
    with pytest.raises(ConfigError, match=f"engine: deepspeed cannot do {said}") as refused:
        check_engine(config, 8)
    assert refused.value.why and ("engine: torch" in refused.value.fix or refused.value.fix)


def test_deepspeed_offloads_what_zero_3_has_cut():
    config = build(TrainConfig, {"data": "x", "engine": "layerwise", "gradient_clip": 0.0, "layout": {"offload": {"optimizer": "cpu"}}})
    with pytest.raises(ConfigError, match="engine: layerwise cannot do layout.offload.optimizer: cpu"):
        check_engine(config, 8)
    for offload in ({"weights": "cpu"}, {"optimizer": "nvme"}):
        with pytest.raises(ConfigError, match="needs layout.shard: full"):
            check_engine(build(TrainConfig, {"data": "x", "engine": "deepspeed", "gradient_clip": 1.0, "layout": {"shard": "gradients", "offload": offload}}), 8)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(LubanError, match="the Python package deepspeed is not installed") as missing:
        check_engine(build(TrainConfig, {"data": "x", "engine": "deepspeed", "gradient_clip": 1.0}), 8)
    assert "in Luban's folder: pip install -e '.[deepspeed]'" in str(missing.value)
    with pytest.raises(LubanError):
        require_deepspeed()


def chosen(model: str = "llama", count: int = 2, **fields: Any) -> Any:
    made, objective, _ = make(model)
    return choose_layout(TrainConfig.model_validate({"data": "x", "engine": "deepspeed", **fields}), made, objective, Ranks(Launch(0, count)))


def test_the_stage_follows_from_what_is_cut():
    assert [chosen(layout={"shard": shard}).stage for shard in ("auto", "none", "states", "gradients", "full")] == [1, 1, 1, 2, 3]
    assert isinstance(chosen(count=1), Zero)
    refused = {
        "layout.replicas: 2": {"count": 4, "layout": {"shard": "full", "replicas": 2}},
        "regularization.average: exponential": {"regularization": {"average": "exponential"}, "layout": {"shard": "full"}},
        "shape.architecture: luban-lstm": {"model": "luban-lstm", "layout": {"shard": "gradients"}},
        "objective: ": {"model": "bert/alike", "layout": {"shard": "full"}},
        "regularization.freeze": {"regularization": {"freeze": ["embeddings"]}, "layout": {"shard": "full"}},
    }
    for said, fields in refused.items():
        with pytest.raises(ConfigError, match=said):
            chosen(**fields)


def test_settings_are_made_of_the_recipes(tmp_path):
    model, _, _ = make("llama")
    config = build(TrainConfig, {"data": "x", "engine": "deepspeed", "gradient_clip": 0.7, "layout": {"shard": "full", "offload": {"optimizer": "nvme", "weights": "cpu"}}})
    made = deepspeed_settings(config, model, Zero(Ranks(), 3, {"optimizer": "nvme"}), 4, tmp_path)
    zero = made["zero_optimization"]
    assert made["gradient_clipping"] == 0.7 and made["train_micro_batch_size_per_gpu"] == 4 and zero["stage"] == 3
    assert zero["offload_optimizer"] == {"device": "nvme", "pin_memory": False, "nvme_path": str(tmp_path / "offload")} and zero["offload_param"]["device"] == "cpu"
    assert zero["stage3_param_persistence_threshold"] == 33  # vectors of 32 stay whole, matrices do not


def test_the_engine_is_no_part_of_a_fingerprint_where_it_makes_the_same():
    kept = {engine: fields_with_role(build(TrainConfig, {"data": "x", "engine": engine}), "result")["engine"] for engine in ("torch", "layerwise", "deepspeed")}
    assert kept == {"torch": "torch", "layerwise": "layerwise", "deepspeed": "torch"}
