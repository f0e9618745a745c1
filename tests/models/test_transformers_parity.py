"""A directory written by either side opens in the other with the same logits and the same greedy text."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from luban.models.decoder import Decoder
from luban.models.huggingface import load_model, save_model
from luban.models.shape import ShapeConfig

SIZES = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 5e5,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
THEIRS = {
    "llama": LlamaConfig(**SIZES),
    "llama, grouped, tied, epsilon": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True, rms_norm_eps=1e-3),
    "llama, one key head, head_dim": LlamaConfig(**SIZES, num_key_value_heads=1, head_dim=24),
    "llama, biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama, linear": LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 2e4}),
    "llama, dynamic": LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 3.0, "rope_theta": 2e4}),
    "llama, llama3": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "llama, yarn": LlamaConfig(**SIZES, rope_parameters=YARN),
    "llama, yarn in detail": LlamaConfig(
        **SIZES, rope_parameters={**YARN, "beta_fast": 8.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.4, "truncate": False}
    ),
    "llama, yarn, own scale": LlamaConfig(**SIZES, rope_parameters={**YARN, "attention_factor": 1.3}),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen2, tied": Qwen2Config(**SIZES, num_key_value_heads=4, tie_word_embeddings=True),
    "qwen2, some layers slide": Qwen2Config(**SIZES, num_key_value_heads=2, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16),
    "qwen3, biases, tied": Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=32, attention_bias=True, tie_word_embeddings=True),
    "qwen3, chosen layers slide": Qwen3Config(
        **SIZES, num_key_value_heads=2, head_dim=16, use_sliding_window=True, sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mistral": MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=None),
    "mistral, sliding": MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=6),
}  # fmt: skip
PLAIN = {"vocabulary_size": 131, "layers": 3, "hidden_size": 48, "heads": 4, "feed_forward_size": 96, "maximum_positions": 64}
OURS = {
    "llama": PLAIN,
    "llama, grouped, biases, untied": {
        **PLAIN,
        "key_value_heads": 2,
        "attention_bias": True,
        "feed_forward_bias": True,
        "tied_embeddings": False,
    },
    "llama, head_dim": {**PLAIN, "key_value_heads": 2, "head_dim": 20},
    "llama, linear": {**PLAIN, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama, llama3": {**PLAIN, "rope_theta": 5e5, "rope_scaling": {key: value for key, value in LLAMA3.items() if key != "rope_theta"}},
    "llama, yarn": {**PLAIN, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "qwen2": {**PLAIN, "architecture": "qwen2", "key_value_heads": 2},
    "qwen2, sliding": {
        **PLAIN,
        "architecture": "qwen2",
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    },
    "qwen3": {**PLAIN, "architecture": "qwen3", "key_value_heads": 2, "head_dim": 32},
    "mistral, sliding": {**PLAIN, "architecture": "mistral", "key_value_heads": 2, "sliding_window": 7, "tied_embeddings": False},
}


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Random values everywhere, in biases and norms too, so that nothing can be forgotten unseen."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def tokens() -> torch.Tensor:
    return torch.randint(0, 131, (2, 40), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def compare(ours: Decoder, theirs: torch.nn.Module) -> None:
    mine, expected = ours.logits(ours(tokens())), theirs(tokens()).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)
    prompt = tokens()[:1, :9]
    greedy = theirs.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)[0].tolist()
    written = prompt[0].tolist()
    while len(written) < len(greedy):
        written.append(int(ours.logits(ours(torch.tensor([written])))[0, -1].argmax()))
    assert written == greedy


@pytest.mark.parametrize("name", THEIRS)
def test_a_directory_of_transformers_opens_in_luban(name, tmp_path):
    torch.manual_seed(0)
    theirs = shaken(AutoModelForCausalLM.from_config(THEIRS[name], attn_implementation="eager"))
    theirs.save_pretrained(tmp_path)
    compare(load_model(tmp_path), theirs)


@pytest.mark.parametrize("name", OURS)
def test_a_directory_of_luban_opens_in_transformers(name, tmp_path):
    ours = shaken(Decoder(ShapeConfig(**OURS[name])).initialize(3))
    save_model(ours, tmp_path, end_ids=[2, 3], begin_id=1)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert theirs.dtype == torch.float32
    assert theirs.config.eos_token_id == [2, 3] and theirs.config.bos_token_id == 1
    compare(ours, theirs.eval())


@pytest.mark.parametrize("name", OURS)
def test_saving_what_was_loaded_changes_nothing(name, tmp_path):
    ours = shaken(Decoder(ShapeConfig(**OURS[name])))
    save_model(ours, tmp_path / "first")
    again = load_model(tmp_path / "first")
    save_model(again, tmp_path / "second")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    torch.testing.assert_close(again(tokens()), ours(tokens()), atol=0, rtol=0)


def test_config_json_of_older_transformers_is_read(tmp_path):
    """Before version 5 the keys were rope_theta and rope_scaling (with ``type`` before 4.45), and the type torch_dtype."""
    theirs = shaken(AutoModelForCausalLM.from_config(THEIRS["llama, linear"], attn_implementation="eager"))
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    plain = json.loads(file.read_text())
    del plain["rope_parameters"], plain["dtype"]
    file.write_text(json.dumps(plain | {"rope_theta": 2e4, "rope_scaling": {"type": "linear", "factor": 3.0}, "torch_dtype": "float32"}))
    compare(load_model(tmp_path), theirs)


def test_config_json_of_luban_is_read_by_older_transformers_keys(tmp_path):
    """What transformers 4 looks at says the same as what transformers 5 looks at."""
    save_model(Decoder(ShapeConfig(**OURS["llama, llama3"])), tmp_path)
    plain = json.loads((tmp_path / "config.json").read_text())
    assert plain["rope_parameters"] == {"rope_theta": plain["rope_theta"], **plain["rope_scaling"]}
    assert plain["torch_dtype"] == plain["dtype"] == "float32"
