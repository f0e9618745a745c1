"""The decoder against brute force: segments, windows, first values, resized vocabularies."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.foundation.errors import ConfigError
from luban.models.decoder import Decoder
from luban.models.masks import attention_mask
from luban.models.shape import ShapeConfig

PLAIN = {"vocabulary_size": 61, "layers": 2, "hidden_size": 32, "heads": 4, "key_value_heads": 2, "maximum_positions": 64}
SHAPES = [
    ShapeConfig(**PLAIN),
    ShapeConfig(**PLAIN, architecture="qwen2", tied_embeddings=False),
    ShapeConfig(**PLAIN, architecture="qwen3", head_dim=16),
    ShapeConfig(**PLAIN, architecture="mistral", sliding_window=3),
    ShapeConfig(**PLAIN, architecture="qwen3", sliding_window=3, layer_types=["full_attention", "sliding_attention"]),
]


def made(shape: ShapeConfig, dtype: torch.dtype = torch.float64) -> Decoder:
    return Decoder(shape.updated(initializer_deviation=0.3)).initialize(0).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.architecture}-{shape.sliding_window}")
def test_packed_is_the_same_as_each_document_alone(shape):
    """Outputs and gradients; positions restart in each document, and padding changes nothing."""
    model = made(shape)
    generator = torch.Generator().manual_seed(3)
    lengths = [5, 1, 7]
    documents = [torch.randint(0, 61, (1, length), generator=generator) for length in lengths]
    padding = 3
    row = torch.cat([*documents, torch.zeros(1, padding, dtype=torch.long)], dim=1)
    segments = torch.tensor([[0] * 5 + [1] + [2] * 7 + [-1] * padding], dtype=torch.int32)
    positions = torch.tensor([[*range(5), 0, *range(7), *([0] * padding)]])

    packed = model(row, positions=positions, segments=segments)[:, : sum(lengths)]
    packed.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    alone = torch.cat([model(document) for document in documents], dim=1)
    alone.square().sum().backward()

    torch.testing.assert_close(packed, alone, atol=1e-11, rtol=1e-9)
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, atol=1e-10, rtol=1e-8)


def test_without_segments_documents_do_see_each_other():
    """The test above can fail: the mask is what keeps documents apart."""
    model = made(SHAPES[0])
    row = torch.arange(12)[None]
    assert not torch.allclose(model(row)[:, 6:], model(row, segments=torch.tensor([[0] * 6 + [1] * 6]))[:, 6:])


@given(st.integers(1, 9), st.one_of(st.none(), st.integers(1, 10)), st.lists(st.integers(0, 2), min_size=9, max_size=9) | st.none())
@settings(max_examples=60, deadline=None)
def test_the_mask_is_what_its_rule_says(length, window, segments):
    given_segments = None if segments is None else torch.tensor([sorted(segments)[:length]])
    mask = attention_mask(length, given_segments, window, torch.device("cpu"))
    found = torch.ones(1, 1, length, length, dtype=torch.bool).tril() if mask is None else mask
    for query in range(length):
        for key in range(length):
            seen = key <= query and (window is None or query - key < window)
            seen = seen and (segments is None or bool(given_segments[0, query] == given_segments[0, key]))
            assert bool(found[0, 0, query, key]) == seen


def test_the_future_is_not_seen():
    model = made(SHAPES[2])
    row = torch.arange(10)[None]
    changed = row.clone()
    changed[0, 6:] += 20
    before, after = model(row), model(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6], after[:, 6])


def test_computing_layers_again_gives_the_same_gradients():
    model = made(SHAPES[2]).train()
    row = torch.arange(20)[None]
    model(row).square().sum().backward()
    kept = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    model.recompute = True
    model(row).square().sum().backward()
    for name, gradient in kept.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("initializer", ["normal", "depth_scaled", "zero_output"])
def test_first_values_have_the_stated_deviation(initializer):
    shape = ShapeConfig(
        vocabulary_size=400,
        layers=8,
        hidden_size=128,
        heads=4,
        maximum_positions=8,
        initializer=initializer,
        architecture="qwen2",
        tied_embeddings=False,
    )
    model = Decoder(shape).initialize(7)
    expected = {"normal": 0.02, "depth_scaled": 0.02 / math.sqrt(16), "zero_output": 0.0}[initializer]
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name:
            assert bool((parameter == 1).all())
        else:
            wanted = expected if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(wanted, rel=0.05), name
            assert abs(parameter.mean().item()) <= 5 * wanted / math.sqrt(parameter.numel())


def test_first_values_depend_on_seed_and_name_alone():
    shape = ShapeConfig(**PLAIN)
    values = Decoder(shape).initialize(1).state_dict()
    torch.manual_seed(99)
    again = Decoder(shape).initialize(1).state_dict()
    half = Decoder(shape).to(torch.bfloat16).initialize(1).state_dict()
    deeper = Decoder(shape.updated(layers=3, initializer="normal")).initialize(1).state_dict()
    other = Decoder(shape).initialize(2).state_dict()
    for name, value in values.items():
        assert torch.equal(value, again[name])
        assert torch.equal(value.to(torch.bfloat16), half[name])
        if "norm" not in name:
            assert not torch.equal(value, other[name])
    assert torch.equal(values["model.layers.1.mlp.up_proj.weight"], deeper["model.layers.1.mlp.up_proj.weight"])
    assert not torch.equal(values["model.layers.0.mlp.up_proj.weight"], values["model.layers.1.mlp.up_proj.weight"])


@pytest.mark.parametrize("tied", [True, False])
def test_a_grown_vocabulary_leaves_old_tokens_as_they_were(tied):
    model = Decoder(ShapeConfig(**PLAIN, tied_embeddings=tied)).initialize(0)
    row = torch.arange(9)[None]
    with torch.no_grad():
        before = model.logits(model(row))
        old = model.model.embed_tokens.weight.clone()
        model.resize_vocabulary(64, {61: [3, 5], 62: [7]})
        after = model.logits(model(row))
    assert after.shape[-1] == model.shape.vocabulary_size == 64
    torch.testing.assert_close(after[..., :61], before)
    torch.testing.assert_close(model.model.embed_tokens.weight[61:], torch.stack([(old[3] + old[5]) / 2, old[7], old.mean(dim=0)]))
    assert after[..., 63].max() < before.amax()
    assert dict(model.named_parameters()).keys() == dict(Decoder(model.shape).named_parameters()).keys()
    model.resize_vocabulary(40)
    torch.testing.assert_close(model.logits(model(row)), before[..., :40])


def test_autocast_and_half_precision_stay_close():
    model = made(SHAPES[2], torch.float32)
    row = torch.arange(30)[None]
    exact = model(row)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(row).float(), exact, atol=0.15, rtol=0.1)
    half = made(SHAPES[2], torch.bfloat16)
    assert half(row).dtype == torch.bfloat16
    torch.testing.assert_close(half(row).float(), exact, atol=0.15, rtol=0.1)


def test_a_shape_that_is_not_whole_is_refused():
    with pytest.raises(ConfigError, match="vocabulary_size"):
        Decoder(ShapeConfig(layers=2, hidden_size=32, heads=2, maximum_positions=8))
