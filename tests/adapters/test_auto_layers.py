"""Models that run through transformers: their transposed layers are adapted as GPT-2's own are, and stacked experts are refused by name."""

from __future__ import annotations

import os

import pytest
import torch
from adapter_tools import said, shake
from peft import IA3Config, PeftModel, get_peft_model
from peft import LoraConfig as PeftLora
from test_lora import Words, theirs
from transformers import AutoModelForCausalLM, OlmoeConfig, OlmoeForCausalLM, OpenAIGPTConfig, OpenAIGPTLMHeadModel

import luban
from luban.adapters.attached import attach
from luban.adapters.config import NAMES, LoraConfig
from luban.adapters.files import open_model, save_adapter
from luban.foundation.config import build
from luban.foundation.errors import ConfigError
from luban.models.huggingface import load_model
from luban.models.quantization_config import QuantizationConfig
from luban.models.quantized_model import load_quantized, quantized_layers


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setattr("luban.adapters.merge.Tokenizer", type("Known", (), {"load": staticmethod(lambda folder: Words())}))
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def first_gpt(tmp_path_factory):
    """openai-gpt: every matrix of its blocks is a Conv1D of transformers."""
    folder = tmp_path_factory.mktemp("openai")
    torch.manual_seed(0)
    OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=61, n_positions=32, n_embd=24, n_layer=2, n_head=4)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("settings", [{"method": "lora", "rank": 3}, {"method": "dora", "rank": 2}, {"method": "ia3", "targets": ["c_attn", "mlp.c_proj"], "feed_forward": ["mlp.c_proj"]}])
def test_an_adapter_on_transposed_layers_is_pefts(settings, first_gpt, tmp_path):
    model = load_model(first_gpt)
    attach(model, build(NAMES[settings["method"]], settings), seed=7)
    shake(model, [name for name, value in model.named_parameters() if value.requires_grad])
    expected = said(model.eval())
    save_adapter(model, tmp_path / "adapter", first_gpt, Words())
    torch.testing.assert_close(said(open_model(tmp_path / "adapter")), expected)
    theirs_worn = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(first_gpt), tmp_path / "adapter")
    torch.testing.assert_close(theirs(theirs_worn), expected, atol=2e-5, rtol=1e-4)
    merged = luban.merge(tmp_path / "adapter", out=tmp_path / "merged").path
    torch.testing.assert_close(theirs(AutoModelForCausalLM.from_pretrained(merged)), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("config", [PeftLora(r=3, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True), IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True)])
def test_pefts_adapter_on_transposed_layers_is_ours(config, first_gpt, tmp_path):
    config.task_type = "CAUSAL_LM"
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(first_gpt), config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(said(open_model(tmp_path)), theirs(model), atol=2e-5, rtol=1e-4)


def test_transposed_layers_are_quantised_and_come_back(first_gpt, tmp_path):
    model = load_quantized(first_gpt, QuantizationConfig(format="int8"))
    assert len(quantized_layers(model)) == 8
    attach(model, LoraConfig(rank=2), seed=7)
    shake(model, [name for name, value in model.named_parameters() if value.requires_grad])
    expected = said(model.eval())
    save_adapter(model, tmp_path / "adapter", first_gpt, Words(), QuantizationConfig(format="int8"))
    merged = luban.merge(tmp_path / "adapter", out=tmp_path / "merged").path
    torch.testing.assert_close(said(load_model(merged)), expected, atol=1e-4, rtol=1e-4)


def test_stacked_experts_are_named(tmp_path):
    OlmoeForCausalLM(OlmoeConfig(vocab_size=61, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, num_experts=3, num_experts_per_tok=2, max_position_embeddings=32)).save_pretrained(tmp_path)
    for target in ("gate_up_proj", "experts", "mlp.experts.down_proj"):
        with pytest.raises(ConfigError, match="matrices of 3 experts in one tensor"):
            attach(load_model(tmp_path), LoraConfig(targets=[target]), seed=0)
    model = load_model(tmp_path)
    attach(model, LoraConfig(rank=2, also_train=["down_proj"]), seed=0)  # what the error advises
    assert model.get_parameter("model.layers.1.mlp.experts.down_proj").requires_grad
