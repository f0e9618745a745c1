"""AdaLoRA in a whole training: ranks end where they are needed, the report says so, and a run that was stopped continues to the same bits."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer as Core
from tokenizers import models, normalizers, pre_tokenizers, processors

import luban
from luban.adapters.adalora import AdaLora
from luban.adapters.files import open_model
from luban.foundation.artifacts import open_artifact
from luban.models.base import Model
from luban.models.bert_shape import BertShapeConfig
from luban.models.families import build_model
from luban.models.huggingface import save_model
from luban.tokenizer.tokenizer import Tokenizer

GOOD, BAD, FILL = ["good", "fine", "great", "好"], ["bad", "poor", "awful", "差"], ["the", "film", "was", "a", "very", "plot", "电", "影", "很", "and"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    tmp_path = tmp_path_factory.mktemp("adalora")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *FILL]
    core = Core(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.add_special_tokens(words[:5])
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    shape = BertShapeConfig(layers=2, hidden_size=32, heads=2, feed_forward_size=64, maximum_positions=32, vocabulary_size=40, initializer_deviation=0.2)
    save_model(build_model(shape).initialize(1), tmp_path / "base")
    Tokenizer(core, {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}).save(tmp_path / "base")
    draw, rows = random.Random(0), []
    for number in range(96):
        label, telling = ("pos", GOOD) if number % 2 else ("neg", BAD)
        said = draw.choices(FILL, k=draw.randint(2, 4))
        said.insert(draw.randint(0, len(said)), telling[number // 2 % 4])
        rows.append(json.dumps({"text": " ".join(said), "label": label}, ensure_ascii=False) + "\n")
    (tmp_path / "train.jsonl").write_text("".join(rows), encoding="utf-8")
    return tmp_path


def recipe(folder: Path, **train) -> dict:
    adapter = {"method": "adalora", "rank": 2, "initial_rank": 4, "every": 2}
    fields = {
        "kind": "train", "data": str(folder / "train.jsonl"), "model": str(folder / "base"), "objective": "classification", "adapter": adapter, "length": "30 steps", "sequence_length": 16, "batch_examples": 8,
        "optimizer": {"learning_rate": 2e-2}, "threads": 1, "determinism": "strict", "validation": {"every": "15 steps", "share": 0.2, "restore_best": False}, "checkpoint": {"every": "6 steps"}, "track": {"tensorboard": False},
    }  # fmt: skip
    return {"name": "ranks", "seed": 3, "stages": {"tuned": {**fields, **train}}}


@pytest.fixture(scope="module")
def made(folder) -> Path:
    luban.run(recipe(folder), out=folder / "whole")
    return folder / "whole" / "tuned"


def test_ranks_move_to_where_they_are_needed(made, capsys):
    found = open_artifact(made).metrics["adapter"]
    ranks = found["ranks"]
    assert len(ranks) == 12 and sum(ranks.values()) == found["ranks_in_all"] == 2 * 12
    assert len(set(ranks.values())) > 1, "every layer kept the same rank"
    model = open_model(made)
    assert model.adapter.report(model)["ranks"] == ranks
    model.adapter.show(model)
    said = capsys.readouterr().err
    assert "bert.encoder.layer" in said and "attention.self.query" in said
    tensors = load_file(made / "adapter_model.safetensors")
    assert {name.removesuffix(".lora_E").removeprefix("base_model.model."): len(value) for name, value in tensors.items() if name.endswith("lora_E")} == ranks
    log = [json.loads(line) for line in (made / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [entry for entry in log if "orthogonality" in entry]
    assert losses and losses[-1]["orthogonality"] < losses[0]["orthogonality"]


def test_a_killed_run_continues_to_the_same_bits(folder, made, monkeypatch):
    plain = AdaLora.after_gradients

    def dies(self, model: Model, step: int) -> None:
        plain(self, model, step)
        if step == 16:  # in the midst of the allocations; the last checkpoint is that of step 12
            raise SystemError("killed")

    monkeypatch.setattr(AdaLora, "after_gradients", dies)
    with pytest.raises(SystemError, match="killed"):
        luban.run(recipe(folder), out=folder / "parts")
    monkeypatch.setattr(AdaLora, "after_gradients", plain)
    luban.run(recipe(folder), out=folder / "parts")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folder / "parts" / "tuned" / name).read_bytes() == (made / name).read_bytes(), name
    steps = [json.loads(line)["step"] for line in (folder / "parts" / "tuned" / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines() if '"loss"' in line]
    assert 30 in steps


def test_an_adalora_that_was_read_learns_on_with_its_ranks(folder, made):
    first = open_model(made)
    luban.run(recipe(folder, model=str(made), adapter="none", length="6 steps"), out=folder / "more")
    second = open_model(folder / "more" / "tuned")
    assert second.adapter.report(second) == first.adapter.report(first)
    assert (folder / "more" / "tuned" / "adapter_model.safetensors").read_bytes() != (made / "adapter_model.safetensors").read_bytes()
