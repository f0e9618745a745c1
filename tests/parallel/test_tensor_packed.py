"""Quantised layers cut for a tensor group: each part holds the numbers that the whole has there, and what cannot be cut is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_lab import make
from torch import nn

from luban.models.quantization_config import QuantizationConfig
from luban.models.quantized import QuantizedLinear
from luban.models.quantized_model import quantize_model
from luban.parallel.plans import PLANS
from luban.parallel.tensor_packed import cut_columns, cut_rows, misfit


def parts_of(layer: QuantizedLinear, parts: int, cut: Any) -> list[torch.Tensor]:
    """The weights of each rank's part, as it makes them of its codes."""
    found = []
    for rank in range(parts):
        own = QuantizedLinear(layer.config, layer.in_features, {name: getattr(layer, name).data for name in layer.held}, None)

        def leave(part: QuantizedLinear, name: str, mesh: Any, dim: int, rank: int = rank) -> None:
            setattr(part, name, nn.Parameter(getattr(part, name).chunk(mesh.size(), dim)[rank], requires_grad=False))

        cut(own, SimpleNamespace(size=lambda: parts), leave)
        found.append(own.dequantized())
    return found


@given(
    st.sampled_from(["nf4", "int4", "int8"]), st.sampled_from(["auto", 16, 32]), st.booleans(), st.sampled_from([2, 3, 4]), st.sampled_from([30, 32, 48, 64, 96, 128, 384]), st.integers(0, 9)
)  # fmt: skip
def test_each_rank_has_the_numbers_of_the_whole(format, group, double, parts, inputs, seed):
    config = QuantizationConfig(format=format, group_size=group, double_quantization=double)
    weight = torch.randn(12, inputs, generator=torch.Generator().manual_seed(seed))
    layer = QuantizedLinear.from_weight(weight, None, config)
    assert torch.equal(torch.cat(parts_of(layer, parts, cut_columns)), layer.dequantized())
    if config.divides(inputs, parts):
        assert torch.equal(torch.cat(parts_of(layer, parts, cut_rows), dim=1), layer.dequantized())


def test_blocks_of_scales_are_not_cut():
    """Of 16,384 inputs in groups of 64 all scales of a row are one block of 256; of 32,768 there are two; 20,480 begin a second."""
    config = QuantizationConfig()
    assert config.divides(16384, 2) and config.divides(16384, 8) and config.divides(32768, 2)
    assert not config.divides(20480, 2) and not config.divides(32768, 4)
    assert config.updated(double_quantization=False).divides(20480, 2)
    assert not config.divides(11008, 8) and config.divides(11008, 4)  # llama-2-7b's inner width


@pytest.mark.parametrize(("group", "named"), [(16, "model.layers.0.mlp.down_proj"), ("auto", "")])
def test_a_layer_that_cannot_be_cut_is_named(group, named):
    model = quantize_model(make("llama")[0].float(), QuantizationConfig(group_size=group))  # 48 inputs: three groups of 16, or one
    assert misfit(model, PLANS["llama"], 2) == named
