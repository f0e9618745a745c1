"""Several processes under torchrun say what one process says: the same losses, norms, weights and validations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from resume_lab import FIXED, case
from torchrun_lab import EXACT, chosen, differs, files_of, follow

import luban
from luban.foundation.environment import Launch
from luban.foundation.errors import ConfigError
from luban.models.huggingface import load_model
from luban.parallel.layouts import Layout, Replicated
from luban.parallel.ranks import Ranks
from luban.tokens.batch import Batch

# ---- in two processes -------------------------------------------------------------------------------------------------


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
def test_sums_of_replicas_set_out_while_the_backward_pass_runs(tmp_path):
    """In buckets of a few numbers; of a mixture each rank uses some experts, which keeps the buckets behind theirs waiting on that rank."""
    found = follow(tmp_path, 2, [], [], early=["llama", "mixtral", "t5"])["early"]
    assert all(apart < EXACT and (early == buckets if name != "mixtral" else early <= buckets) and buckets > 5 for name, (apart, early, buckets) in found.items()), found
