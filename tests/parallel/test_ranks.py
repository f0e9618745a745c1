"""Several processes under torchrun say what one process says: the same losses, norms, weights and validations; stopped, killed and continued in any number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rank_lab import make
from resume_lab import FIXED, case
from safetensors.torch import load_file
from tiny import tiny_recipe

import luban
from luban.foundation.environment import Launch
from luban.foundation.errors import ConfigError
from luban.models.huggingface import load_model
from luban.parallel.layouts import Layout, Replicated
from luban.parallel.ranks import Ranks
from luban.tokens.batch import Batch
from luban.training.config import TrainConfig
from luban.training.layout import choose_layout
from luban.training.log import deterministic

HERE = Path(__file__).parent
EXACT = 1e-9  # in float64
CLOSE = 2e-4  # in float32, of figures as a share of them


def torchrun(count: int, *arguments: Any, restarts: int = 0, **settings: Any) -> subprocess.Popen:
    """Real torchrun with so many ranks of this machine, one thread each."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]), "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "--max-restarts", str(restarts), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8", **settings)


def follow(folder: Path, count: int, cases: list[str], runs: list[dict[str, Any]], **rest: Any) -> dict[str, Any]:
    """What came of a plan (rank_program.py)."""
    plan = {"cases": cases, "runs": runs, **rest, "found": str(folder / "found.json")}
    (folder / "plan.json").write_text(json.dumps(plan, default=str))
    _, said = torchrun(count, HERE / "rank_program.py", folder / "plan.json").communicate(timeout=600)
    assert (folder / "found.json").exists(), said[-4000:]
    return json.loads((folder / "found.json").read_text())


def luban_run(count: int, folder: Path, *overrides: str, **settings: Any) -> subprocess.Popen:
    return torchrun(count, "-m", "luban", "--language", "en", "run", "recipe.yaml", *overrides, cwd=folder, **settings)


def same_figures(first: Path, second: Path, close: float) -> None:
    """The losses and gradient norms that two trainings have logged, step by step, and no step more."""
    rows = [{entry["step"]: entry for entry in deterministic(folder / "training" / "log.jsonl") if "loss" in entry} for folder in (first, second)]
    assert rows[0].keys() == rows[1].keys()
    for step, entry in rows[0].items():
        assert rows[1][step]["loss"] == pytest.approx(entry["loss"], rel=close)
        assert rows[1][step]["gradient_norm"] == pytest.approx(entry["gradient_norm"], rel=close)


def differs(one: Path, other: Path) -> list[str]:
    """The figures of two logs that are not the same but for the order of sums."""
    first, second = (list(deterministic(folder / "training" / "log.jsonl")) for folder in (one, other))
    found = []
    for entry, also in zip(first, second, strict=True):
        known, others = (flat.get("validation", flat) for flat in (entry, also))
        assert known.keys() == others.keys()
        for name, value in known.items():
            if isinstance(value, float):
                if abs(value - others[name]) > CLOSE * max(1e-2, abs(value)):
                    found.append(f"step {entry['step']}: {name} {value} {others[name]}")
            elif value != others[name]:
                found.append(f"step {entry['step']}: {name} {value} {others[name]}")
    return found


# ---- in two processes -------------------------------------------------------------------------------------------------


def files_of(artifact: Path) -> set[str]:
    """What a training left; each process may leave the stacks of its own threads."""
    return {file.name for file in (artifact / "training").iterdir() if not file.name.startswith("stacks")}


def test_two_ranks_say_what_one_process_says(tmp_path):
    """Replicas and shards; steps of five rows, one row (so that a rank has none) and four, cut into micro-batches; clipped; a whole training with validation and checkpoints."""
    fields = {**FIXED, **case(tmp_path, "causal"), "micro_batch_rows": 1, "gradient_clip": 0.5, "samples": {"prompts": ["the"], "sampling": {"maximum_tokens": 4, "temperature": 0}}}
    luban.train(**fields, out=tmp_path / "one")
    cases = ["llama:adamw:none:2", "llama:muon:full:2", "t5:adamw:full:1", "bert/kinds:sgd:gradients:2", "bert/alike:adamw:none:2", "llama:adamw:states:1", "t5:muon:states:2"]
    found = follow(tmp_path, 2, cases, [{**fields, "layout": {"shard": shard}, "out": tmp_path / shard} for shard in ("none", "full", "states")], journeys=[["llama", ["states", "full", "none", "states"]]], scaled=["llama:adamw:full:2", "bert:sgd:gradients:2", "llama:muon:states:1"])
    assert {name: values for name, values in found["cases"].items() if max(values) > EXACT} == {}
    assert found["runs"] == ["", "", ""] and found["journeys"] == [[]]
    assert {name: values for name, values in found["scaled"].items() if max(values) > 2e-3} == {}  # in float16
    expected = dict(load_model(tmp_path / "one").named_parameters())
    for shard in ("none", "full", "states"):
        assert differs(tmp_path / "one", tmp_path / shard) == []
        made = dict(load_model(tmp_path / shard).named_parameters())
        torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-5)
        assert files_of(tmp_path / shard) == files_of(tmp_path / "one")


# ---- shares -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.lists(st.booleans(), min_size=0, max_size=12), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_every_scored_unit_is_learned_from_once_and_none_is_cut(count, scored, size, group, together):
    rows = len(scored) * group
    weights = torch.tensor(scored, dtype=torch.float32).repeat_interleave(group)[:, None] if rows else torch.zeros(0, 1)
    zeros = torch.zeros(rows, 3, dtype=torch.long)
    batch = Batch(zeros, zeros, weights, zeros, None, group=group)
    spans = []
    for rank in range(count):
        layout = Layout(Ranks(Launch(rank, count)))
        layout.together = together
        spans.append(layout.spans(batch, size * group))
    counted = [row for own in spans for first, last, counts in own if counts for row in range(first, last)]
    assert sorted(set(counted)) == sorted(counted)
    assert {row for row in range(rows) if scored[row // group]} <= set(counted)
    assert all(first % group == 0 and last % group == 0 and last - first <= size * group for own in spans for first, last, _ in own)
    if any(scored):
        assert all(spans)  # each has something to pass through the model
    if together:
        assert len({len(own) for own in spans}) == 1
    if count == 1:
        assert all(counts for _, _, counts in spans[0])


# ---- what is refused --------------------------------------------------------------------------------------------------


def chosen(model: str = "llama", count: int = 2, **fields: Any) -> Layout:
    made, objective, _ = make(model)
    config = TrainConfig.model_validate({"data": "x", **fields})
    return choose_layout(config, made, objective, Ranks(Launch(0, count)))


def test_what_several_processes_cannot_do_is_refused_by_name():
    full = {"layout": {"shard": "full"}}
    refused = {
        "engine: layerwise": {"engine": "layerwise"},
        "weights: bfloat16": {"weights": "bfloat16", **full},
        "objective: ": {"model": "bert/alike", "regularization": {"r_drop": 1.0}},
        "optimizer.name: adafactor": {"optimizer": {"name": "adafactor"}, **full},
        "optimizer.name: adamw_8bit": {"optimizer": {"name": "adamw_8bit"}, **full},
        "precision: float16": {"precision": "float16", "layout": {"tensor": 2}},
        "regularization.average: exponential": {"regularization": {"average": "exponential"}, **full},
        "regularization.adversarial.method: fgm": {"regularization": {"adversarial": {"method": "fgm"}}, **full},
        "shape.architecture: luban-lstm": {"model": "luban-lstm", **full},
        "layout.replicas: 2 with 3": {"count": 3, "layout": {"shard": "full", "replicas": 2}},
        "layout.replicas: 1 with 2": {"layout": {"shard": "none", "replicas": 1}},
    }
    for said, fields in refused.items():
        with pytest.raises(ConfigError, match=said):
            chosen(**fields)
    assert type(chosen(count=1, engine="layerwise")) is Layout
    assert isinstance(chosen(), Replicated)
    assert isinstance(chosen(layout={"shard": "full", "replicas": 2}), Replicated)  # each shard would be all of it


# ---- the matrix -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_four_ranks_say_what_one_process_says(tmp_path):
    """Also groups of shards (twice), and more ranks than units."""
    cases = [
        "llama:adamw:none:2", "llama:adamw:full:2", "llama:muon:twice:1", "t5:lion:twice:2", "bert/kinds:adamw:twice:2", "bert/alike:adamw:none:2",
        "qwen3_moe:adamw:none:1", "qwen3_moe:adamw:full:1", "luban-lstm:adamw:none:2", "bert:sgd:gradients:3",
    ]  # fmt: skip
    found = follow(tmp_path, 4, cases, [], scaled=["llama:adamw:twice:2"])
    assert {name: values for name, values in found["cases"].items() if max(values) > EXACT} == {}
    assert max(found["scaled"]["llama:adamw:twice:2"]) < 2e-3


MATRIX: dict[str, dict[str, Any]] = {
    "classification": {},
    "tagging": {},
    "translation": {},
    "embedding": {},
    "dpo": {},
    "kto": {},
    "distillation": {},
    "instruction": {"adapter": {"method": "lora"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("names", [("classification", "tagging", "translation", "embedding"), ("dpo", "kto", "distillation", "instruction")], ids=("tasks", "preferences"))
def test_objectives_train_alike_in_two_processes(tmp_path, names):
    """With data, heads, metrics, early weights and adapters, by their real stages."""
    runs = []
    for name in names:
        (tmp_path / name).mkdir()
        fields = {**FIXED, **case(tmp_path / name, name), **MATRIX[name], "regularization": {"dropout": 0.0}, "micro_batch_rows": 1}
        luban.train(**fields, out=tmp_path / name / "one")
        runs += [{**fields, "layout": {"shard": shard}, "out": tmp_path / name / shard} for shard in ("none", "full")]
    found = follow(tmp_path, 2, [], runs)
    for fields, error in zip(runs, found["runs"], strict=True):
        if fields["layout"]["shard"] == "full" and fields["objective"]["name"] == "embedding":
            assert "objective: embedding cannot be trained by 2 processes with layout.shard: full" in error
            continue
        assert error == ""
        assert differs(fields["out"].parent / "one", fields["out"]) == [], fields["out"]


@pytest.mark.slow
@pytest.mark.compiler
def test_compiled_blocks_train_alike_in_shards_and_groups(tmp_path):
    fields = {**FIXED, **case(tmp_path, "causal"), "micro_batch_rows": 1, "layers": "torch", "attention": "torch"}
    luban.train(**fields, out=tmp_path / "one")
    runs = [{**fields, "compile": True, "layout": layout, "out": tmp_path / str(number)} for number, layout in enumerate(({"shard": "full"}, {"tensor": 2}, {"context": 2, "shard": "states"}))]
    compiled_alike(tmp_path / "one", runs, 2)


@pytest.mark.long
@pytest.mark.compiler
def test_compiled_blocks_train_alike_in_groups_of_four_and_with_experts(tmp_path):
    fields = {**FIXED, **case(tmp_path, "causal"), "micro_batch_rows": 1, "layers": "torch", "attention": "torch"}
    fields["shape"] = {**fields["shape"], "layers": 2}
    mixture = {**fields, "shape": {**fields["shape"], "architecture": "qwen3_moe", "experts": 4, "experts_per_token": 2, "expert_size": 16}}
    luban.train(**fields, out=tmp_path / "one")
    luban.train(**mixture, out=tmp_path / "mixture")
    four = [{"tensor": 2, "shard": "full"}, {"tensor": 2, "context": 2}, {"tensor": 2, "pipeline": 2}]
    compiled_alike(tmp_path / "one", [{**fields, "compile": True, "layout": layout, "out": tmp_path / f"four-{number}"} for number, layout in enumerate(four)], 4)
    two = [{"tensor": 2, "sequence": False}, {"expert": 2}, {"expert": 2, "shard": "full"}]
    compiled_alike(tmp_path / "mixture", [{**mixture, "compile": True, "layout": layout, "out": tmp_path / f"two-{number}"} for number, layout in enumerate(two)], 2)


def compiled_alike(one: Path, runs: list[dict[str, Any]], ranks: int) -> None:
    assert follow(one.parent, ranks, [], runs)["runs"] == [""] * len(runs)
    for run in runs:
        assert differs(one, run["out"]) == []
        assert json.loads((run["out"] / "training/choices.json").read_text())["compile"] is True


@pytest.mark.slow
def test_thin_products_are_cut_with_the_matrices_that_they_stand_beside(tmp_path):
    """LoRA and rsLoRA+ over a tensor group, also on packed matrices, whose ranks hold parts of the sequence or all of it: the adapter that is saved is one process's."""
    runs = []
    for name, more in (
        ("lora", {"adapter": {"method": "lora"}}), ("rslora", {"adapter": {"method": "rslora", "rank": 3, "b_rate": 4.0}}), ("int8", {"adapter": {"method": "lora"}, "quantization": {"format": "int8"}}),
        ("nf4", {"adapter": {"method": "lora"}, "quantization": {"format": "nf4", "group_size": 16}}),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        plain = {**FIXED, **case(tmp_path / name, "instruction"), **more, "regularization": {"dropout": 0.0}, "micro_batch_rows": 1}
        luban.train(**plain, out=tmp_path / name / "one")
        runs += [{**plain, "layout": {"tensor": 2, "sequence": sequence}, "out": tmp_path / name / f"two-{sequence}"} for sequence in (True, False)]
    assert follow(tmp_path, 2, [], runs)["runs"] == [""] * len(runs)
    for run in runs:
        assert differs(run["out"].parent / "one", run["out"]) == [], run["out"]
        saved = [load_file(folder / "adapter_model.safetensors") for folder in (run["out"], run["out"].parent / "one")]
        torch.testing.assert_close(*saved, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_adapters_stand_on_packed_and_narrow_bases_that_are_cut_into_shards(tmp_path):
    """Codes and their scales are gathered as they are; a context group holds them whole, or in shards over its ranks."""
    runs = []
    for name, base, layouts in (
        ("int8", {"quantization": {"format": "int8"}}, [{"shard": "full"}, {"context": 2}]),
        ("nf4", {"quantization": {"format": "nf4"}, "adapter": {"method": "dora"}}, [{"shard": "states"}, {"shard": "gradients"}, {"context": 2, "shard": "full"}]),
        ("narrow", {"weights": "bfloat16"}, [{"shard": "full"}]),
    ):
        (tmp_path / name).mkdir()
        plain = {**FIXED, **case(tmp_path / name, "instruction"), "adapter": {"method": "lora"}, **base, "regularization": {"dropout": 0.0}, "micro_batch_rows": 1}
        luban.train(**plain, out=tmp_path / name / "one")
        runs += [{**plain, "layout": layout, "out": tmp_path / name / str(number)} for number, layout in enumerate(layouts)]
    assert follow(tmp_path, 2, [], runs)["runs"] == [""] * len(runs)
    for run in runs:
        assert differs(run["out"].parent / "one", run["out"]) == [], run["out"]


@pytest.mark.slow
def test_an_adapter_in_shards_goes_on_in_one_process_and_back(tmp_path):
    """What a checkpoint holds of it is the adapter, whole, and nothing of its base."""
    plain = {**FIXED, **case(tmp_path, "instruction"), "adapter": {"method": "lora"}, "quantization": {"format": "nf4"}, "regularization": {"dropout": 0.0}, "micro_batch_rows": 1, "schedule": {"shape": "constant"}}
    luban.train(**plain, out=tmp_path / "one")
    assert follow(tmp_path, 2, [], [{**plain, "length": "2 steps", "layout": {"shard": "full"}, "out": tmp_path / "moved"}])["runs"] == [""]
    luban.train(**{**plain, "length": "4 steps"}, out=tmp_path / "moved")
    assert follow(tmp_path, 2, [], [{**plain, "layout": {"shard": "states"}, "out": tmp_path / "moved"}])["runs"] == [""]
    same_figures(tmp_path / "one", tmp_path / "moved", CLOSE)
    saved = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("moved", "one")]
    torch.testing.assert_close(*saved, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [{"method": "dora"}, {"method": "lora", "dropout": 0.1}])
def test_adapters_that_are_more_than_a_thin_product_are_refused_by_a_tensor_group(tmp_path, adapter):
    plain = {**FIXED, **case(tmp_path, "instruction"), "adapter": adapter, "layout": {"tensor": 2}, "out": tmp_path / "two"}
    (error,) = follow(tmp_path, 2, [], [plain])["runs"]
    assert f"adapter.method: {adapter['method']} cannot be trained by 2 processes" in error


# ---- a run's life -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a recipe whose tokens are made, and the training of one process in `one`."""
    folder = tmp_path_factory.mktemp("ranks")
    recipe = tiny_recipe(folder, batch_tokens=160, micro_batch_rows=1, schedule={"shape": "constant"}, validation={"every": "4 steps"}, checkpoint={"every": "1 steps", "keep": 9})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (folder / "own.py").write_text(OWN)
    luban.run(folder / "recipe.yaml", out=folder / "one")
    return folder


OWN = '''
import os, signal, time
from pathlib import Path
def dies(run):
    flag = Path(__file__).with_name("die")
    if flag.exists() and run.step == int(flag.read_text()):
        flag.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
def waits(run):
    time.sleep(0.2)
'''


def started(home: Path, name: str) -> str:
    """A folder of a run whose tokens are made, as the value of --out."""
    import shutil

    for stage in ("corpus", "tokenizer", "tokens"):
        shutil.copytree(home / "one" / stage, home / name / stage)
    return f"--out={name}"


def ended(process: subprocess.Popen, status: int = 0) -> str:
    _, said = process.communicate(timeout=300)
    assert (process.returncode == 0) == (status == 0), said[-4000:]
    return said


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes_and_another_layout(home):
    """One process, then two with shards, then four with replicas, then one: the same documents in the same order, and the same figures."""
    out = started(home, "grown")
    luban.run(home / "recipe.yaml", "base.length=3 steps", out=home / "grown")
    ended(luban_run(2, home, out, "base.length=6 steps", "base.layout.shard=full"))
    ended(luban_run(4, home, out, "base.length=9 steps"))
    luban.run(home / "recipe.yaml", out=home / "grown")
    same_figures(home / "one" / "base", home / "grown" / "base", CLOSE)


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_with_a_message_and_torchrun_starts_it_again(home):
    out = started(home, "killed")
    (home / "die").write_text("7")
    said = ended(luban_run(2, home, out, "base.callbacks=[own.py:dies]", "base.layout.shard=full"), 1)
    assert "rank 1 of 2: error: another process of this run ended without a word" in said
    assert said.count("error: ") == 1
    (home / "die").write_text("10")
    said = ended(luban_run(2, home, out, "base.callbacks=[own.py:dies]", "base.layout.shard=full", restarts=1))
    assert said.count("continuing at step") == 2
    assert differs(home / "one" / "base", home / "killed" / "base") == []


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_after_the_same_step(home):
    out = started(home, "stopped")
    process = luban_run(2, home, out, "base.callbacks=[own.py:waits]")
    log, deadline = home / "stopped" / "base.partial" / "training" / "log.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_text().count('"loss"') > 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    ranks = [int(found) for found in subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout.split()]
    os.kill(max(ranks), signal.SIGUSR1)
    said = ended(process, 75)
    assert "stopped by SIGUSR1 at step" in said
    luban.run(home / "recipe.yaml", "base.callbacks=[own.py:waits]", out=home / "stopped")
    assert differs(home / "one" / "base", home / "stopped" / "base") == []


@pytest.mark.slow
def test_an_error_of_any_rank_is_said_once_with_its_rank(home):
    out = started(home, "refused")
    said = ended(luban_run(2, home, out, "base.layout.replicas=3", "base.layout.shard=full"), 1)
    assert said.count("error: layout.replicas: 3 with 2 processes") == 1
    assert "Traceback" not in said.partition("torch.distributed")[0].partition("elastic")[0]
