"""Closed forms against the model itself: counted on the meta device, by torch's own counter, by what autograd keeps."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from luban.foundation.errors import ConfigError
from luban.inference.cache import KeyValueCache
from luban.models.config_json import config_json
from luban.models.counts import activation_elements, flops_per_token, key_value_bytes, memory, parameters
from luban.models.decoder import Decoder
from luban.models.families import build_model
from luban.models.presets import PRESETS, describe, preset
from luban.models.shape import ShapeConfig

PLAIN = {"vocabulary_size": 101, "layers": 3, "hidden_size": 48, "heads": 4, "key_value_heads": 2, "maximum_positions": 64}
SHAPES = [
    ShapeConfig(**PLAIN),
    ShapeConfig(**PLAIN, attention_bias=True, feed_forward_bias=True, tied_embeddings=False),
    ShapeConfig(**PLAIN, architecture="qwen2"),
    ShapeConfig(**PLAIN, architecture="qwen3", head_dim=32, attention_bias=True),
    ShapeConfig(**PLAIN, architecture="qwen3", sliding_window=5, layer_types=["full_attention", "sliding_attention", "full_attention"]),
]
# Published totals, to the unit: what the hub shows for each model from the headers of its safetensors.
PUBLISHED = {
    "smollm2-135m": 134_515_008, "llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320, "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248, "qwen2.5-7b": 7_615_616_512, "qwen3-0.6b": 596_049_920, "qwen3-8b": 8_190_735_360,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704, "qwen1.5-moe-a2.7b": 14_315_784_192, "qwen3-30b-a3b": 30_532_122_624,
    "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200,
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_those_of_the_model(shape):
    with torch.device("meta"):
        model = Decoder(shape)
    found = parameters(shape)
    numel = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert found["total"] == sum(numel.values())
    assert found["embedding"] == numel["model.embed_tokens.weight"]
    assert found["output"] == numel.get("lm_head.weight", 0)
    assert found["attention"] == sum(n for name, n in numel.items() if "_proj" in name and "self_attn" in name)
    assert found["feed_forward"] == sum(n for name, n in numel.items() if "mlp" in name)
    assert found["norms"] == sum(n for name, n in numel.items() if "norm" in name)
    assert (
        found["matrices"]
        == sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)) + found["embedding"] * shape.tied_embeddings
    )


@pytest.mark.parametrize("name", PRESETS)
def test_presets_can_be_built_on_the_meta_device(name):
    shape = preset(name).resolved(vocabulary_size=4096)
    with torch.device("meta"):
        model = build_model(shape)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == parameters(shape)["total"] == PUBLISHED.get(name, total)
    text = dict(describe(shape))
    assert f"{total:,}" in text["parameters"]
    assert len(text) == (7 if shape.kind == "encoder" else 8)


@pytest.mark.parametrize("name", [name for name, said in PRESETS.items() if said.get("architecture") in ("gpt2", "bert", "roberta")])
def test_presets_have_the_parameters_of_transformers(name):
    """Its own model of that config.json, on the meta device."""
    shape = preset(name).resolved(vocabulary_size=4096)
    config = AutoConfig.for_model(**config_json(shape, "float32"))
    with torch.device("meta"):
        theirs = (AutoModelForCausalLM if shape.kind == "decoder" else AutoModelForMaskedLM).from_config(config)
    assert theirs.num_parameters() == parameters(shape)["total"]


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean llama-2-7b"):
        preset("llama2-7b")


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_operations_are_what_torch_counts(shape):
    """FlopCounterMode counts every matrix product, without discounting what the causal mask discards.

    Attention is written out: the counter does not know the processor's fused kernel.
    """
    rows, seq = 2, 24
    model = Decoder(shape).initialize(0)
    tokens = torch.randint(0, 101, (rows, seq))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            model.logits(model(tokens))
        with FlopCounterMode(display=False) as both:
            model.logits(model(tokens)).sum().backward()
    assert forward.get_total_flops() == pytest.approx(rows * seq * flops_per_token(shape, seq, backward=False), rel=1e-9)
    assert both.get_total_flops() == pytest.approx(rows * seq * flops_per_token(shape, seq), rel=1e-9)


@pytest.mark.parametrize("window", [None, 1, 3, 12, 40])
def test_operations_of_what_is_seen(window):
    shape = ShapeConfig(**PLAIN, architecture="mistral", sliding_window=window)
    length, width = 12, shape.heads * shape.head_dim
    seen = sum(1 for query in range(length) for key in range(query + 1) if window is None or query - key < window)
    expected = 6 * parameters(shape)["matrices"] + 12 * width * shape.layers * seen / length
    assert flops_per_token(shape, length, causal=True) == pytest.approx(expected)


@pytest.mark.parametrize("shape", SHAPES[:1] + SHAPES[2:4])
@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_what_autograd_keeps(shape, recompute):
    rows, seq = 2, 40
    model = Decoder(shape).initialize(0)
    model.recompute = recompute
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        states = model(torch.zeros(rows, seq, dtype=torch.long))
    found = sum(kept.values()) / 4 / (rows * seq)
    expected = (shape.layers + 2) * shape.hidden_size if recompute else activation_elements(shape)
    assert states.requires_grad
    assert found == pytest.approx(expected, rel=0.05)
    assert activation_elements(shape, recompute=True) < activation_elements(shape)


def test_cache_and_training_memory():
    shape = SHAPES[0]
    cache = KeyValueCache(Decoder(shape), 3, 40)
    assert key_value_bytes(shape, 3 * 40) == sum(block.nbytes for block in (*cache.keys, *cache.values))
    total = parameters(shape)["total"]
    parts = memory(shape, rows=2, sequence_length=16, dtype="bfloat16")
    assert parts["weights"] == parts["gradients"] == 4 * total and parts["optimizer"] == 8 * total
    assert parts["casts"] == 2 * parameters(shape)["matrices"]
    assert parts["total"] == sum(value for name, value in parts.items() if name != "total")
    model = Decoder(shape).initialize(0)
    optimizer = torch.optim.AdamW(model.parameters())
    model.logits(model(torch.zeros(1, 4, dtype=torch.long))).sum().backward()
    optimizer.step()
    states = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.dim())
    assert states == parts["optimizer"]


def test_counting_needs_no_torch():
    code = (
        "import sys; from luban.models.presets import describe, preset; describe(preset('llama-2-70b')); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def test_describing_in_chinese():
    from luban.foundation.messages import set_language

    set_language("zh")
    assert all(any("\u4e00" <= letter <= "\u9fff" for letter in label) for label, _ in describe(preset("llama-2-7b")))
