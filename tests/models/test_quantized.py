"""Quantised linear layers against numpy's brute force, float products and the paper's closed form; quantised models of every family."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy.stats import norm
from torch import nn
from torch.utils.checkpoint import checkpoint

from luban.foundation.config import build
from luban.foundation.errors import ConfigError, DataError
from luban.models import quantized
from luban.models.families import build_model
from luban.models.gpt2 import Conv1D
from luban.models.huggingface import load_model, save_model
from luban.models.presets import preset
from luban.models.quantization_config import QuantizationConfig
from luban.models.quantized import QuantizedLinear
from luban.models.quantized_model import dequantize_model, load_quantized, quantize_model, quantized_layers, random_quantized
from luban.models.quantized_values import NF4

FORMATS = [{"format": "nf4"}, {"format": "int4"}, {"format": "int4", "symmetric": True}, {"format": "int8"}, {"format": "int8", "group_size": 32}]


def config_of(**given):
    return build(QuantizationConfig, given)


def layer_of(outputs=24, inputs=192, bias=True, seed=0, **given):
    torch.manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        linear.weight.normal_()
    return linear, QuantizedLinear.from_linear(linear, config_of(**given))


# ---- the formats ---------------------------------------------------------------------------------------------------------------


def test_levels_of_nf4_are_the_papers_quantiles():
    # Appendix E and section 3: 8 quantiles for the negative half, 9 for the positive, zero in both, the ends cut off at an offset, scaled to [-1, 1].
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    negative = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    levels = np.sort(np.concatenate([negative, [0.0], positive])) / positive.max()
    assert np.abs(levels - np.array(NF4)).max() < 1e-6


def brute_force(weight, given, group):
    """Each weight to the nearest of all values that its group can hold, in float64, looked at one by one."""
    found = np.zeros_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            part = weight[row, start : start + group].astype(np.float64)
            most = np.abs(part).max()
            if given["format"] == "nf4":
                levels = most * np.array(NF4)
            elif given["format"] == "int8":
                levels = most / 127 * np.arange(-127, 128)
            elif given.get("symmetric"):
                levels = most / 7.5 * np.arange(-8, 8)
            else:
                low, high = min(part.min(), 0.0), max(part.max(), 0.0)
                step = (high - low) / 15
                levels = step * (np.arange(16) - np.round(-low / step))
            found[row, start : start + group] = levels[np.abs(part[:, None] - levels).argmin(1)]
    return found


@pytest.mark.parametrize("given", FORMATS)
@pytest.mark.parametrize("inputs", [192, 100, 33])
def test_each_weight_is_the_nearest_value_that_its_group_can_hold(given, inputs):
    linear, layer = layer_of(9, inputs, double_quantization=False, **given)
    weight = linear.weight.detach().numpy()
    group = given.get("group_size") or (inputs if given["format"] == "int8" else 64)
    off, least = (np.abs(held - weight) for held in (layer.dequantized().numpy(), brute_force(weight, given, group)))
    assert np.abs(off - least).max() < 1e-5  # distances, as two values may be equally near


@pytest.mark.parametrize(
    "given, bound, bits",
    [
        ({"format": "nf4"}, 0.0925, 4.15),
        ({"format": "int4"}, 0.0920, 4.27),
        ({"format": "int4", "symmetric": True}, 0.1040, 4.15),
        ({"format": "int4", "group_size": 32}, 0.0815, 4.52),
        ({"format": "int8"}, 0.0090, 8.01),
    ],
)
def test_error_and_size_on_gaussian_weights(given, bound, bits):
    linear, layer = layer_of(256, 4096, bias=False, **given)
    error = (layer.dequantized() - linear.weight).norm() / linear.weight.norm()
    assert 0.9 * bound < error < bound
    assert 8 * sum(tensor.numel() * tensor.itemsize for tensor in layer.state_dict().values()) / linear.weight.numel() < bits


@pytest.mark.parametrize("format", ["nf4", "int4"])
def test_double_quantisation_costs_next_to_nothing_even_beside_outliers(format):
    torch.manual_seed(0)
    weight = torch.randn(16, 64 * 300)  # 300 scales a row: two blocks of scales
    for outlier in (10.0, 1000.0, 1e30):
        weight[:, 5] = outlier
        once, twice = (QuantizedLinear.from_weight(weight, None, config_of(format=format, double_quantization=double)) for double in (False, True))
        kept = slice(64, None)  # all but the outlier's own group
        if outlier < 1e30:
            errors = [float((layer.dequantized() - weight)[:, kept].norm() / weight[:, kept].norm()) for layer in (once, twice)]
            assert errors[1] < 1.01 * errors[0]
        assert (twice.dequantized()[:, 5] / outlier - 1).abs().max() < (0.2 if outlier == 10.0 and format == "int4" else 0.04)
        assert twice.scale_codes.dtype == torch.int8 and twice.scale_ranges.shape == (16, 2, 2)


@pytest.mark.parametrize("given", FORMATS)
def test_zeros_stay_zero_and_one_output_is_enough(given):
    weight = torch.zeros(1, 130)
    layer = QuantizedLinear.from_weight(weight, None, config_of(**given))
    assert torch.equal(layer.dequantized(), weight)
    weight[0, 64:] = torch.linspace(0.5, 2.0, 66)  # a group of zeros beside others; one-sided
    weight[0, 70] = 0.0
    held = QuantizedLinear.from_weight(weight, None, config_of(**given)).dequantized()
    assert bool((held[weight == 0] == 0).all()) and float((held - weight).abs().max()) < 0.3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("given", FORMATS)
def test_what_is_no_number_is_refused_by_name(bad, given):
    linear = nn.Linear(70, 3)
    with torch.no_grad():
        linear.weight[1, 69] = bad
    with pytest.raises(DataError, match="blocks.0.up.weight"):
        QuantizedLinear.from_linear(linear, config_of(**given), "blocks.0.up.weight")


@pytest.mark.parametrize("given", FORMATS)
def test_the_codes_of_a_shard_are_the_shard_of_the_codes(given):
    linear, layer = layer_of(10, 200, **given)
    for rows in (slice(0, 3), slice(3, 10)):
        shard = QuantizedLinear.from_weight(linear.weight[rows], None, config_of(**given))
        for name, tensor in shard.state_dict().items():
            assert torch.equal(tensor, layer.state_dict()[name][rows]), name


# ---- the product ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", FORMATS)
@pytest.mark.parametrize("outputs, inputs", [(24, 192), (1, 100), (70, 33)])
def test_product_and_gradient_are_those_of_the_dequantised_weight(given, outputs, inputs, monkeypatch):
    monkeypatch.setattr(quantized, "CHUNK_BYTES", 7 * 4 * inputs)  # several chunks, the last one shorter
    _, layer = layer_of(outputs, inputs, **given)
    layer.bias.requires_grad_(True)
    states = torch.randn(2, 5, inputs, requires_grad=True)
    made = layer(states)
    wanted = F.linear(states, weight := layer.dequantized(), layer.bias)
    assert made.shape == (2, 5, outputs) and (made - wanted).abs().max() < 1e-5 * wanted.abs().max()
    flow = torch.randn_like(made)
    for mine, true in zip(torch.autograd.grad(made, (states, layer.bias), flow), torch.autograd.grad(wanted, (states, layer.bias), flow), strict=True):
        assert (mine - true).abs().max() < 1e-5 * true.abs().max()
    assert not weight.requires_grad and not any(layer.get_parameter(name).requires_grad for name in layer.held)


def test_gradients_of_gradients():
    _, layer = layer_of(6, 40)
    states = torch.randn(3, 40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, states) and torch.autograd.gradgradcheck(layer, states)


@pytest.mark.parametrize("given", FORMATS)
@pytest.mark.parametrize("tokens", [1, 40])
def test_bfloat16_states(given, tokens):
    _, layer = layer_of(64, 256, **given)
    states = torch.randn(tokens, 256).bfloat16().requires_grad_()
    made = layer(states)
    wanted = F.linear(states.float(), layer.dequantized(), layer.bias)
    assert made.dtype == torch.bfloat16 and (made - wanted).abs().max() < 0.02 * wanted.abs().max()
    made.sum().backward()
    true = layer.dequantized().sum(0)
    assert states.grad.dtype == torch.bfloat16 and (states.grad - true).abs().max() < 0.02 * true.abs().max()
    wide = QuantizedLinear.from_linear(layer.to_linear(), config_of(compute_dtype="float32", **given))
    assert wide(states).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(states.float()).dtype == torch.bfloat16


def test_nothing_but_the_codes_is_kept_for_the_backward_pass():
    _, layer = layer_of(64, 64)
    kept = []
    states = torch.randn(4, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        plain = layer(states)
        again = checkpoint(layer, states, use_reentrant=False)
    assert all(tensor.shape == states.shape for tensor in kept)  # the checkpoint's own input
    assert torch.equal(*(torch.autograd.grad(made.square().sum(), states)[0] for made in (plain, again)))


def test_the_float_weight_exists_in_bounded_chunks_only(monkeypatch):
    made = []
    monkeypatch.setattr(quantized, "CHUNK_BYTES", 2**12)
    monkeypatch.setattr(quantized, "dequantise", lambda tensors, layout, true=quantized.dequantise: made.append(true(tensors, layout)) or made[-1])
    _, layer = layer_of(100, 200)
    layer(torch.randn(3, 200, requires_grad=True)).sum().backward()
    assert sum(len(part) for part in made) == 2 * 100 and max(4 * part.numel() for part in made) <= 2**12


def test_no_tokens_make_no_outputs():
    _, layer = layer_of()
    states = torch.zeros(0, 192, requires_grad=True)
    layer(states).sum().backward()
    assert layer(states).shape == (0, 24) and states.grad.shape == (0, 192)


# ---- state -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", FORMATS)
def test_state_survives_safetensors_and_casts(given, tmp_path):
    _, layer = layer_of(24, 320, **given)
    before = layer.dequantized()
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    _, other = layer_of(24, 320, seed=1, **given)
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(other.dequantized(), before) and torch.equal(other.bias, layer.bias)
    layer.to(torch.bfloat16).half().to("meta").to_empty(device="cpu").load_state_dict(other.state_dict())
    assert torch.equal(layer.dequantized(), before) and layer.bias.dtype == torch.float16
    assert torch.equal(copy.deepcopy(other).bfloat16().dequantized(), before)


def test_plain_layers_come_back():
    for kind in (nn.Linear, Conv1D):
        plain = kind(96, 32)
        nn.init.normal_(plain.weight)
        layer = QuantizedLinear.from_linear(plain, config_of(format="int8"))
        back, states = layer.to_linear(), torch.randn(3, 96)
        assert type(back) is kind and back.weight.shape == plain.weight.shape
        assert (back.weight - plain.weight).abs().max() < 0.02 and (back(states) - layer(states)).abs().max() < 1e-4


def test_backend_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: None)
    quantized._bitsandbytes.cache_clear()
    with pytest.raises(ConfigError, match="bitsandbytes"):
        layer_of(backend="bitsandbytes")[1](torch.zeros(1, 192))
    quantized._bitsandbytes.cache_clear()


@pytest.mark.parametrize("double", [False, True])
def test_bitsandbytes_reads_the_same_codes(double):
    from bitsandbytes import functional

    torch.manual_seed(0)
    plain, states = nn.Linear(256, 96), torch.randn(5, 256, requires_grad=True)
    own, other = (QuantizedLinear.from_linear(plain, config_of(format="nf4", group_size=64, double_quantization=double, backend=backend)) for backend in ("own", "bitsandbytes"))
    assert torch.equal(own.dequantized(), other.dequantized()) and torch.equal(own(states), other(states))
    assert torch.equal(*(torch.autograd.grad(layer(states).square().sum(), states)[0] for layer in (own, other)))
    if not double:  # bitsandbytes' own second quantisation is of another kind
        codes, _ = functional.quantize_4bit(plain.weight.detach(), blocksize=64, quant_type="nf4")
        assert torch.equal(codes.flatten(), own.codes.flatten())


def test_group_sizes_are_checked():
    with pytest.raises(ConfigError, match="group_size"):
        config_of(group_size=24)
    with pytest.raises(ConfigError, match="format"):
        config_of(load_in_4bit=True)


# ---- models ----------------------------------------------------------------------------------------------------------------------

GPT2 = {"layers": 2, "hidden_size": 32, "heads": 2, "maximum_positions": 64}
NAMES = {"tiny": {"layers": 2}, "gpt2": GPT2, "bert-tiny": {}, "t5-tiny": {}, "bart-tiny": {}, "transformer-tiny": {}, "moe-tiny": {"layers": 2, "experts": 3}}


def shape_of(name):
    return preset(name).updated(**NAMES[name]).updated(vocabulary_size=60) if NAMES[name] else preset(name).updated(vocabulary_size=60)


def outputs_of(model, tokens):
    with torch.no_grad():
        return model(tokens, source=tokens) if model.shape.kind == "encoder_decoder" else model(tokens)


@pytest.mark.parametrize("name", NAMES)
def test_every_family(name, tmp_path):
    shape = shape_of(name)
    config = config_of(format="int8")
    model = build_model(shape).initialize(3).eval()
    tokens = torch.randint(5, 60, (2, 9))
    wanted = outputs_of(model, tokens)
    save_model(model, tmp_path / "float")
    made = quantize_model(copy.deepcopy(model), config)
    layers = quantized_layers(made)
    inside = {id(part) for block in made.blocks() for part in block.modules()}
    left = {name for name, part in made.named_modules() if isinstance(part, nn.Linear | Conv1D) and id(part) in inside}
    assert layers and all(part.endswith(".gate") for part in left)
    assert torch.equal(made.embedding.weight, model.embedding.weight)
    assert (outputs_of(made, tokens) - wanted).abs().max() < 0.1 * wanted.abs().max()
    for other in (load_quantized(tmp_path / "float", config), random_quantized(shape, config, 3)):
        state = other.state_dict()
        assert list(state) == list(made.state_dict()) and all(torch.equal(state[key], value) for key, value in made.state_dict().items())
        assert not other.training and not any(part.is_meta for part in other.parameters())
    quantised = outputs_of(made, tokens)
    save_model(dequantize_model(made), tmp_path / "merged")
    assert not quantized_layers(made)
    assert (outputs_of(load_model(tmp_path / "merged"), tokens) - quantised).abs().max() < 1e-5


def test_what_is_skipped_stays():
    model = build_model(shape_of("tiny")).initialize(0)
    quantize_model(model, config_of(skip=["layers.0."]), skip=["down_proj"])
    assert all("layers.1." in name and "down_proj" not in name for name in quantized_layers(model)) and len(quantized_layers(model)) == 6
    with pytest.raises(ConfigError, match="dwn_proj"):
        quantize_model(build_model(shape_of("tiny")), config_of(skip=["dwn_proj"]))
    with pytest.raises(ConfigError, match="every linear layer"):
        quantize_model(build_model(shape_of("tiny")), config_of(skip=["layers"]))
    with pytest.raises(ConfigError, match="luban-lstm"):
        quantize_model(build_model(preset("lstm-small").updated(vocabulary_size=10, layers=1, hidden_size=8, cell_size=8)), config_of())


def test_damage_in_a_directory_is_named(tmp_path):
    model = build_model(shape_of("tiny")).initialize(0)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    save_model(model, tmp_path)
    with pytest.raises(DataError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        load_quantized(tmp_path, config_of())
    text = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**text, "intermediate_size": 40}))
    with pytest.raises(DataError, match="config.json makes it"):
        load_quantized(tmp_path, config_of())


def test_a_model_of_transformers():
    from luban.models.auto import AutoModelAdapter
    from luban.models.auto_shape import AutoShapeConfig, from_json

    settings = {
        "model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": 50, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 40, "word_embed_proj_dim": 32,
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelAdapter(build(AutoShapeConfig, from_json(settings, ""))).eval()
    tokens = torch.randint(5, 50, (2, 7))
    wanted = outputs_of(model, tokens)
    quantize_model(model, config_of(format="int8"))
    assert len(quantized_layers(model)) == 6 and (outputs_of(model, tokens) - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_a_step_learns_on_a_quantised_base():
    model = random_quantized(shape_of("tiny"), config_of(), 0)
    model.requires_grad_(False)
    model.recompute = True
    model.model.norm.weight.requires_grad_(True)
    model.model.layers[0].input_layernorm.weight.requires_grad_(True)
    tokens = torch.randint(0, 60, (2, 12))
    losses = []
    for _ in range(3):
        loss = F.cross_entropy(model.logits(model(tokens[:, :-1])).flatten(0, 1), tokens[:, 1:].flatten())
        losses.append(loss.item())
        loss.backward()
        with torch.no_grad():
            for weight in (model.model.norm.weight, model.model.layers[0].input_layernorm.weight):
                weight -= 0.5 * weight.grad
                weight.grad = None
    assert losses[2] < losses[1] < losses[0]
