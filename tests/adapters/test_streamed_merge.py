"""The merge that reads, changes and writes a layer at a time says what whole models in memory say, and holds no more when there are more layers."""

from __future__ import annotations

import contextlib
import gc
import json
import os

import pytest
import torch
from adapter_families import made
from adapter_tools import CLASSES, shake
from peft import PeftModel
from test_lora import Words, opened
from torch.profiler import ProfilerActivity, profile

import luban
from luban.adapters.attached import attach
from luban.adapters.config import NAMES
from luban.adapters.files import open_model, save_adapter
from luban.adapters.merging import Merger, dropped
from luban.foundation.config import build
from luban.foundation.errors import ConfigError, LubanError
from luban.models.base import named_generator
from luban.models.families import build_model, family_of
from luban.models.huggingface import load_model, save_model
from luban.models.quantization_config import QuantizationConfig
from luban.models.quantized_model import dequantize_model, load_quantized

METHODS = {
    "lora": {"rank": 2}, "rslora": {"rank": 3}, "dora": {"rank": 2}, "pissa": {"rank": 2}, "adalora": {"rank": 2}, "vera": {"rank": 12}, "ia3": {}, "bitfit": {},
}  # fmt: skip
IN_PEFT = {"llama": ("lora", "rslora", "dora", "pissa", "adalora", "vera", "ia3"), "gpt2": ("lora",), "bert": ("ia3",), "t5": ("adalora",)}


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setattr("luban.adapters.merge.Tokenizer", type("Known", (), {"load": staticmethod(lambda folder: Words())}))
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def write_adapter(model, method, folder, base, seed=7, quantization=None, **settings):
    """A shaken adapter of ``model``."""
    attach(model, build(NAMES[method], {"method": method, **METHODS.get(method, {}), **settings}), seed=seed)
    shake(model, [name for name, value in model.named_parameters() if value.requires_grad], 0.1 + seed / 100)
    save_adapter(model.eval(), folder, base, Words(), quantization)


def values(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def in_memory(adapter, **given):
    model = open_model(adapter, **given)
    model.adapter.merge(model)
    return values(model)


def found(folder):
    return values(load_model(folder))


def same(first, second, bound=1e-6):
    assert set(first) == set(second)
    for name, value in second.items():
        torch.testing.assert_close(first[name], value, atol=bound, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    known: dict = {}

    def get(family):
        if family not in known:
            known[family] = tmp_path_factory.mktemp(family)
            save_model(made(family), known[family], dtype=torch.bfloat16, shard_bytes=20_000)
        return known[family]

    return get


FAMILIES = {"llama": METHODS, "gpt2": METHODS, "bert": METHODS, "t5": [method for method in METHODS if method != "bitfit"], "mixtral": ["lora"], "lstm": ["dora", "ia3"], "bart": ["lora"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_method_is_merged_as_in_memory_and_by_peft(family, base, tmp_path):
    for method in FAMILIES[family]:
        folder = base(family)
        write_adapter(load_model(folder, language_model=True), method, tmp_path / method, folder)
        merged = luban.merge(tmp_path / method, out=tmp_path / f"{method}-merged").path
        same(found(merged), in_memory(tmp_path / method))
        if method in IN_PEFT.get(family, ()):
            theirs = PeftModel.from_pretrained(opened(folder, family).float(), tmp_path / method).merge_and_unload().state_dict()
            for name, value in found(merged).items():
                torch.testing.assert_close(theirs[name].float(), value, atol=2e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize(("combine", "into"), [("linear", "model"), ("ties", "model"), ("dare_ties", "model"), ("linear", "adapter")])
def test_several_sources_are_combined_as_their_whole_changes_are(combine, into, base, tmp_path):
    """Against whole models in memory: a LoRA, a BitFit with a bias that the base lacks or an (IA)³, and a tuned model."""
    folder, second = base("llama"), "ia3" if into == "adapter" else "bitfit"
    model = load_model(folder)
    write_adapter(model, "dora", tmp_path / "one", folder, also_train=["embeddings"])
    write_adapter(load_model(folder), second, tmp_path / "two", folder, seed=9, **({"add": True} if second == "bitfit" else {}))
    tuned = load_model(folder)
    shake(tuned, list(values(tuned)), 0.1)
    save_model(tuned, tmp_path / "three")
    weights = [0.5, -0.75, 0.3]
    sources = [tmp_path / name for name in ("one", "two", "three")][: 2 if into == "adapter" else 3]
    given = {"combine": combine, "density": 0.3, "weights": weights[: len(sources)], "into": into, "base": folder, **({"rank": 24} if into == "adapter" else {})}
    made_by_layers = luban.merge(*sources, out=tmp_path / "merged", **given).path

    plain, parts = values(load_model(folder)), [in_memory(source) if source.name != "three" else values(tuned) for source in sources]
    for name in {name for part in parts for name in part}:
        before = plain.get(name, 0.0 * next(part[name] for part in parts if name in part))
        changes = [part.get(name, before) - before for part in parts]
        expected = before + combined_by_hand(changes, weights, combine, 0.3, name)
        got = in_memory(made_by_layers)[name] if into == "adapter" else found(made_by_layers)[name]
        torch.testing.assert_close(got, expected, atol=2e-5 if into == "adapter" else 2e-6, rtol=1e-5, msg=name)


def combined_by_hand(changes, weights, combine, density, name):
    if combine.startswith("dare"):
        changes = [dropped(change, density, named_generator(1, f"{name}:{number}")) for number, change in enumerate(changes)]
    if combine == "ties":
        kept = max(1, round(changes[0].numel() * density))
        changes = [change * (change.abs() >= change.abs().flatten().sort().values[-kept]) for change in changes]
    stack = torch.stack([change * weight for change, weight in zip(changes, weights, strict=False)])
    if not combine.endswith("ties"):
        return stack.sum(0)
    agree = (stack.sign() == stack.sum(0).sign()) & (stack != 0)
    shares = torch.stack([agree[number] * abs(weight) for number, weight in enumerate(weights)]).sum(0)
    return torch.where(shares > 0, (stack * agree).sum(0) / shares.clamp(min=1e-9) * sum(map(abs, weights)), 0.0)


def test_added_tokens_heads_and_quantised_bases(base, tmp_path):
    for family in ("llama", "bert", "bart"):
        folder = base(family)
        model = load_model(folder, language_model=True)
        model.resize_vocabulary(67)
        write_adapter(model, "lora", tmp_path / f"{family}-grown", folder, also_train=["embeddings"])
        merged = luban.merge(tmp_path / f"{family}-grown", out=tmp_path / f"{family}-merged", dtype="bfloat16").path
        expected = {name: value.bfloat16().float() for name, value in in_memory(tmp_path / f"{family}-grown").items()}
        same(found(merged), expected, 0)
        assert json.loads((merged / "config.json").read_text())["dtype"] == "bfloat16"

    folder, quantization = base("gpt2"), QuantizationConfig(format="nf4")
    model = load_quantized(folder, quantization)
    write_adapter(model, "dora", tmp_path / "quantised", folder, quantization=quantization)
    merged = found(luban.merge(tmp_path / "quantised", out=tmp_path / "from-quantised").path)
    same(merged, in_memory(tmp_path / "quantised", dequantized=True))
    name = "transformer.h.0.mlp.c_fc.bias"
    assert torch.equal(merged[name], values(dequantize_model(load_quantized(folder, quantization)))[name])

    folder = base("bert")
    for number in (0, 1):
        write_adapter(load_model(folder, head=CLASSES, seed=number), "lora", tmp_path / f"head-{number}", folder, seed=number)
    merged = luban.merge(tmp_path / "head-0", tmp_path / "head-1", weights=[3.0, 1.0], out=tmp_path / "two-heads").path
    assert load_model(merged).head.labels == CLASSES.labels
    first, second = in_memory(tmp_path / "head-0"), in_memory(tmp_path / "head-1")
    torch.testing.assert_close(found(merged)["classifier.weight"], 0.75 * first["classifier.weight"] + 0.25 * second["classifier.weight"])
    name = "bert.encoder.layer.1.output.dense.weight"
    plain = values(load_model(folder, head=CLASSES))[name]
    torch.testing.assert_close(found(merged)[name], plain + 3 * (first[name] - plain) + second[name] - plain, atol=1e-5, rtol=1e-5)


def test_a_model_of_transformers_is_merged_too(tmp_path):
    from transformers import OPTConfig, OPTForCausalLM

    theirs = OPTForCausalLM(OPTConfig(vocab_size=61, hidden_size=16, word_embed_proj_dim=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=2))
    theirs.save_pretrained(tmp_path / "base")
    for number, method in enumerate(("lora", "vera")):
        write_adapter(load_model(tmp_path / "base"), method, tmp_path / method, tmp_path / "base", seed=number, also_train=["norms"])
    plain, first, second = values(load_model(tmp_path / "base")), in_memory(tmp_path / "lora"), in_memory(tmp_path / "vera")
    merged = found(luban.merge(tmp_path / "lora", tmp_path / "vera", weights=[1.0, 0.5], out=tmp_path / "merged").path)
    for name, value in plain.items():
        torch.testing.assert_close(merged[name], value + (first[name] - value) + 0.5 * (second[name] - value), atol=2e-6, rtol=1e-5)


def test_what_cannot_be_merged_says_so_before_anything_is_written(base, tmp_path):
    for method, into, words in (("houlsby", "model", "cannot be merged"), ("prompt", "model", "cannot be merged"), ("bitfit", "adapter", "has no bias")):
        write_adapter(load_model(base("llama")), method, tmp_path / method, base("llama"), **({"add": True} if method == "bitfit" else {}))
        with pytest.raises(ConfigError, match=words):
            luban.merge(tmp_path / method, into=into, rank=1, out=tmp_path / "merged")
        assert not list(tmp_path.rglob("merged.partial/*.safetensors"))
    with pytest.raises(ConfigError, match="an adapter is written in float32"):
        luban.merge(tmp_path / "bitfit", into="adapter", dtype="bfloat16", out=tmp_path / "merged")


def test_adapters_of_other_templates_are_not_merged(base, tmp_path, monkeypatch):
    for name in ("first", "second"):
        write_adapter(load_model(base("llama")), "lora", tmp_path / name, base("llama"))
        (tmp_path / name / "tokenizer.json").touch()  # each its own
    known = type("Known", (), {"load": staticmethod(lambda folder: type("Own", (Words,), {"chat_template": f"template of {folder.name}"})())})
    monkeypatch.setattr("luban.adapters.merge.Tokenizer", known)
    with pytest.raises(ConfigError, match="second has another chat template"):
        luban.merge([tmp_path / "first", tmp_path / "second"], out=tmp_path / "merged")
    luban.merge(tmp_path / "second", out=tmp_path / "merged")


def test_a_merge_that_was_killed_begins_again(base, tmp_path, monkeypatch):
    write_adapter(load_model(base("llama")), "lora", tmp_path / "lora", base("llama"))
    expected = found(luban.merge(tmp_path / "lora", out=tmp_path / "whole").path)
    read = Merger.read

    def killed(self, name):
        if "layers.1" in name:
            raise KeyboardInterrupt
        return read(self, name)

    monkeypatch.setattr("luban.adapters.merge.SHARD_BYTES", 5000)
    monkeypatch.setattr(Merger, "read", killed)
    with contextlib.suppress(KeyboardInterrupt, SystemExit, LubanError):
        luban.merge(tmp_path / "lora", out=tmp_path / "merged")
    assert not (tmp_path / "merged").exists() and list((tmp_path / "merged.partial").glob("model-*.safetensors"))
    monkeypatch.undo()
    monkeypatch.setattr("luban.adapters.merge.Tokenizer", type("Known", (), {"load": staticmethod(lambda folder: Words())}))
    again = luban.merge(tmp_path / "lora", out=tmp_path / "merged").path
    assert [file.name for file in again.glob("model*")] == ["model.safetensors"]
    same(found(again), expected, 0)


def peak(run) -> int:
    """The most bytes that torch held at any moment, the mapped files among them."""
    gc.collect()  # what earlier tests left would be freed, and so subtracted, while this one counts
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def test_memory_does_not_grow_with_layers_nor_with_sources(tmp_path, monkeypatch):
    """A layer of these models is 180 KB in float32, its largest matrix 49 KB."""
    monkeypatch.setattr("luban.adapters.merge.SHARD_BYTES", 100_000)
    width = {"vocabulary_size": 60, "hidden_size": 64, "heads": 4, "feed_forward_size": 192, "maximum_positions": 64}
    found = {}
    for layers, sources in ((1, 4), (4, 2), (4, 4)):
        folder = tmp_path / f"{layers}"
        if not folder.exists():
            model = build_model(build(family_of("llama").shape, {"architecture": "llama", "layers": layers, **width})).initialize(3)
            save_model(model, folder, dtype=torch.bfloat16, shard_bytes=60_000)
            for number in range(4):
                write_adapter(load_model(folder), ("dora", "lora")[number % 2], tmp_path / f"{layers}-{number}", folder, seed=number, rank=1)
        given = [tmp_path / f"{layers}-{number}" for number in range(sources)]
        adapters = sum((one / "adapter_model.safetensors").stat().st_size for one in given)
        out = tmp_path / f"merged-{layers}-{sources}"
        found[layers, sources] = peak(lambda given=given, out=out: luban.merge(*given, out=out, combine="ties", density=0.5)) - adapters
    assert found[4, 4] == pytest.approx(found[1, 4], rel=0.1) and found[4, 4] == pytest.approx(found[4, 2], rel=0.1), found
