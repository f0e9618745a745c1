"""Adapters under torchrun: cut with what they stand beside, the same adapter is saved, and goes on elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from preference_lab import chat_tokenizer
from rank_lab import SHAPES
from resume_lab import FIXED, case, stored
from safetensors.torch import load_file
from torchrun_lab import CLOSE, differs, follow, same_figures

import luban
from luban.foundation.config import build
from luban.models.families import build_model, family_of

# What an adapter is, the base that it stands on, and the objective whose model wears it.
WORN: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("instruction", {}),
    "rslora": ("instruction", {"adapter": {"method": "rslora", "rank": 3, "b_rate": 4.0}}),
    "pissa": ("instruction", {"adapter": {"method": "pissa"}}),
    "ia3": ("instruction", {"adapter": {"method": "ia3", "targets": ["k_proj", "down_proj", "o_proj", "gate_proj"], "feed_forward": ["down_proj", "gate_proj"]}}),
    "bitfit": ("instruction", {"adapter": {"method": "bitfit", "add": True}}),
    "houlsby": ("instruction", {"adapter": {"method": "houlsby"}}),
    "vera": ("instruction", {"adapter": {"method": "vera"}}),
    "int8": ("instruction", {"quantization": {"format": "int8"}}),
    "dora_on_nf4": ("instruction", {"adapter": {"method": "dora"}, "quantization": {"format": "nf4", "group_size": 16}}),
    "narrow": ("instruction", {"weights": "bfloat16"}),
    "narrow_t5": ("translation", {"weights": "bfloat16", "adapter": {"method": "ia3"}}),
    "norms": ("classification", {"adapter": {"method": "bitfit"}}),
}


def as_one(folder: Path, trainings: dict[str, tuple[str, dict[str, Any]]], layouts: list[dict[str, Any]], ranks: int) -> None:
    """Each training in one process, and under each layout: the same figures, and the same adapter is saved."""
    runs = []
    for name, (objective, more) in trainings.items():
        (folder / name).mkdir()
        plain = {**FIXED, **case(folder / name, objective), "adapter": {"method": "lora"}, **more, "regularization": {"dropout": 0.0}, "micro_batch_rows": 1}
        luban.train(**plain, out=folder / name / "one")
        runs += [{**plain, "layout": layout, "out": folder / name / str(number)} for number, layout in enumerate(layouts)]
    assert follow(folder, ranks, [], runs)["runs"] == [""] * len(runs)
    for run in runs:
        assert differs(run["out"].parent / "one", run["out"]) == [], run["out"]
        saved = [load_file(made / "adapter_model.safetensors") for made in (run["out"], run["out"].parent / "one")]
        torch.testing.assert_close(*saved, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_adapters_are_cut_with_the_matrices_that_they_stand_beside(tmp_path):
    """Over a tensor group whose ranks hold parts of the sequence: an adapter of each kind, on bases of each kind."""
    as_one(tmp_path, {name: WORN[name] for name in ("rslora", "ia3", "bitfit", "houlsby", "vera", "dora_on_nf4", "narrow")}, [{"tensor": 2}], 2)


@pytest.mark.long
def test_adapters_are_cut_with_matrices_in_all_groups(tmp_path):
    for number, (layouts, ranks) in enumerate((([{"tensor": 2}, {"tensor": 2, "sequence": False}], 2), ([{"tensor": 2, "shard": "full"}, {"tensor": 2, "context": 2}], 4))):
        (tmp_path / str(number)).mkdir()
        as_one(tmp_path / str(number), WORN, layouts, ranks)


@pytest.mark.long
def test_adapters_stand_beside_experts_that_are_shared_out_or_cut(tmp_path):
    """Packed, narrow and plain experts; what wears an adapter is attention, a shared expert, or the mixture itself."""
    tokenizer = chat_tokenizer()
    for name in ("qwen2_moe", "mixtral"):
        fields = {"architecture": name, "hidden_size": 32, "heads": 4, "feed_forward_size": 64, "vocabulary_size": tokenizer.vocabulary_size, "maximum_positions": 64, **SHAPES[name]}
        shape = family_of(name).shape
        stored(tmp_path / name, tokenizer, build_model(build(shape, {key: value for key, value in fields.items() if key == "architecture" or key in shape.model_fields}).resolved()).initialize(3))
    mixture, plain = ({"model": str(tmp_path / name)} for name in ("qwen2_moe", "mixtral"))
    trainings = {
        "lora": mixture, "houlsby": mixture | {"adapter": {"method": "houlsby"}}, "vera": plain | {"adapter": {"method": "vera"}}, "dora": plain | {"adapter": {"method": "dora"}},
        "narrow": mixture | {"weights": "bfloat16"}, "nf4": plain | {"quantization": {"format": "nf4", "group_size": 16}},
    }  # fmt: skip
    for number, (layouts, ranks) in enumerate((([{"tensor": 2}, {"expert": 2}, {"expert": 2, "shard": "full"}], 2), ([{"tensor": 2, "expert": 2}, {"expert": 2, "context": 2}, {"expert": 2, "pipeline": 2}], 4))):
        (tmp_path / f"ranks-{number}").mkdir()
        known = {name: ("instruction", more) for name, more in trainings.items() if not (name == "vera" and number)}  # all of its layers share a matrix
        as_one(tmp_path / f"ranks-{number}", known, layouts, ranks)


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
def test_what_a_tensor_or_expert_group_cannot_cut_is_refused_with_its_place(tmp_path):
    tokenizer = chat_tokenizer()
    shape = family_of("mixtral").shape
    fields = {"architecture": "mixtral", "layers": 1, "hidden_size": 32, "heads": 4, "feed_forward_size": 64, "vocabulary_size": tokenizer.vocabulary_size, "maximum_positions": 64, "experts": 4, "experts_per_token": 2}
    stored(tmp_path / "mixture", tokenizer, build_model(build(shape, fields).resolved()).initialize(3))
    plain = {**FIXED, **case(tmp_path, "instruction"), "sequence_length": 40}
    experts = {**plain, "model": str(tmp_path / "mixture"), "adapter": {"method": "lora", "targets": ["w1"]}}
    runs = [{**plain, "adapter": adapter, "layout": {"tensor": 2}} for adapter in ({"method": "adalora"}, {"method": "prefix", "tokens": 4})] + [{**experts, "layout": layout} for layout in ({"tensor": 2}, {"expert": 2})]
    said = follow(tmp_path, 2, [], [{**run, "out": tmp_path / f"run-{number}"} for number, run in enumerate(runs)])["runs"]
    wanted = ["adapter.method: adalora (model.layers.0.self_attn.q_proj) cannot", "adapter.method: prefix (Decoder) cannot", "adapter.method: lora (model.layers.0.block_sparse_moe.experts.0.w1) cannot", "adapter.targets: model.layers.0.block_sparse_moe.experts.0.w1 cannot"]
    assert all(message in error for message, error in zip(wanted, said, strict=True)), said
