"""Merging: one adapter is exact, several follow the papers' own words by brute force, and a LoRA of the sum says what the sum says."""

from __future__ import annotations

import pytest
import torch
from adapter_tools import CLASSES, adapted, base, said, shake
from test_lora import Words

import luban
from luban.adapters.attached import attach
from luban.adapters.config import LoraConfig
from luban.adapters.files import open_model, save_adapter
from luban.adapters.merging import combined
from luban.foundation.errors import ConfigError, DataError
from luban.models.huggingface import load_model, save_model


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A base and two adapters of it."""
    for name, settings in (("first", {"method": "lora", "rank": 3}), ("second", "dora")):
        model = adapted("llama", tmp_path / "base", settings)
        if name == "second":
            shake(model, [other for other, value in model.named_parameters() if value.requires_grad], 0.1)
        save_adapter(model, tmp_path / name, tmp_path / "base", Words())
    monkeypatch.setattr("luban.adapters.merge.Tokenizer", type("Known", (), {"load": staticmethod(lambda folder: Words())}))
    return tmp_path


def weights(folder):
    return {name: value.detach() for name, value in open_model(folder).named_parameters()}




def merged_weights(folder):
    model = open_model(folder)
    model.adapter.merge(model)
    return {name: value.detach() for name, value in model.named_parameters()}


def test_one_adapter_becomes_its_model(two):
    expected = said(open_model(two / "second"))
    made = luban.merge(two / "second", out=two / "merged")
    torch.testing.assert_close(said(load_model(made.path)), expected, atol=1e-5, rtol=1e-5)


def test_several_are_added_by_weight(two):
    made = luban.merge(two / "first", two / "second", weights=[0.75, -0.5], out=two / "merged")
    plain, first, second, found = weights(two / "base"), merged_weights(two / "first"), merged_weights(two / "second"), weights(made.path)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value + 0.75 * (first[name] - value) - 0.5 * (second[name] - value), atol=1e-6, rtol=1e-5)


def test_tuned_models_merge_as_adapters_do(two):
    luban.merge(two / "first", out=two / "whole")
    made = luban.merge(two / "whole", two / "second", base=two / "base", out=two / "merged")
    expected = luban.merge(two / "first", two / "second", out=two / "adapters")
    for name, value in weights(expected.path).items():
        torch.testing.assert_close(weights(made.path)[name], value, atol=1e-6, rtol=1e-5)


def test_a_lora_of_the_sum_says_what_the_sum_says(tmp_path, monkeypatch):
    for seed, name in enumerate(("first", "second")):
        model = base("gpt2", tmp_path / "base")
        attach(model, LoraConfig(rank=2 + seed), seed=seed)
        shake(model, [other for other, value in model.named_parameters() if value.requires_grad], 0.1 * (seed + 1))
        save_adapter(model, tmp_path / name, tmp_path / "base", Words())
    monkeypatch.setattr("luban.adapters.merge.Tokenizer", type("Known", (), {"load": staticmethod(lambda folder: Words())}))
    whole = luban.merge(tmp_path / "first", tmp_path / "second", weights=[1.0, 1.0], out=tmp_path / "whole")
    thin = luban.merge(tmp_path / "first", tmp_path / "second", weights=[1.0, 1.0], into="adapter", out=tmp_path / "thin")
    model = open_model(thin.path)
    assert model.adapter.config.rank == 5
    torch.testing.assert_close(said(model), said(load_model(whole.path)), atol=1e-4, rtol=1e-4)


def together(parts, *how):
    return combined([lambda part=part: {"x": part.clone()} for part in parts], *how)["x"]


def test_ties_by_brute_force():
    parts, shares = [torch.randn(7, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3)], [0.5, 0.3, 0.2]
    found = together(parts, shares, "ties", 0.4, 0)
    trimmed = [part * (part.abs() >= part.abs().flatten().sort().values[-14]) for part in parts]  # 0.4 of 35
    for row in range(7):
        for column in range(5):
            values = [(float(part[row, column]), share) for part, share in zip(trimmed, shares, strict=True)]
            sign = sum(value * share for value, share in values)
            kept = [(value, share) for value, share in values if value * sign > 0]
            expected = sum(value * share for value, share in kept) / sum(share for _, share in kept) if kept else 0.0
            assert float(found[row, column]) == pytest.approx(expected, abs=1e-6)


def test_dare_keeps_the_expectation_and_is_the_same_for_a_seed():
    part = torch.ones(200, 200)
    found = together([part], [1.0], "dare", 0.25, 3)
    assert set(found.unique().tolist()) == {0.0, 4.0} and float(found.mean()) == pytest.approx(1.0, abs=0.03)
    assert torch.equal(found, together([part], [1.0], "dare", 0.25, 3))
    assert not torch.equal(found, together([part], [1.0], "dare", 0.25, 4))


@pytest.mark.parametrize(("fields", "words"), [({"weights": [1.0]}, "are given for"), ({"base": "elsewhere"}, "elsewhere")])
def test_what_cannot_be_merged_is_refused(two, fields, words):
    with pytest.raises((ConfigError, DataError), match=words):
        luban.merge(two / "first", two / "second", out=two / "merged", **fields)


def test_other_heads_and_other_bases_are_refused(two):
    model = adapted("llama", two / "base", "lora", CLASSES)
    save_adapter(model, two / "classifier", two / "base", Words())
    with pytest.raises(ConfigError, match="another head"):
        luban.merge(two / "first", two / "classifier", out=two / "merged")
    other = base("qwen3", two / "other")
    save_model(other, two / "other")
    with pytest.raises((ConfigError, DataError), match="not one of the base|base is not clear"):
        luban.merge(two / "first", two / "other", base=two / "base", out=two / "merged")


def test_a_negative_weight_takes_an_adapter_out_again(two):
    luban.merge(two / "first", out=two / "merged")
    made = luban.merge(two / "first", base=two / "merged", weights=[-1.0], out=two / "again")
    for name, value in weights(two / "base").items():
        torch.testing.assert_close(weights(made.path)[name], value, atol=1e-6, rtol=1e-5)
