"""Rotary positions and the ways to stretch them.

RoFormer (arXiv:2104.09864); linear interpolation (arXiv:2306.15595); yarn (arXiv:2309.00071); llama3 as in
Meta's Llama 3.1. Each is checked against transformers' modeling_rope_utils.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from luban.models.shape import RopeScalingConfig, ShapeConfig


class Rotary:
    """Angles of rotary positions. No module: nothing in it is trained, saved or cast to another type."""

    def __init__(self, shape: ShapeConfig):
        self.frequencies, self.scale = frequencies(shape)  # [head_dim / 2], float32
        self._on_device: dict[torch.device, Tensor] = {}

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [batch, 1, seq, head_dim] of positions [batch, seq]."""
        if positions.device not in self._on_device:
            self._on_device[positions.device] = self.frequencies.to(positions.device)
        angles = positions[:, None, :, None].float() * self._on_device[positions.device]  # [batch, 1, seq, head_dim / 2]
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.scale).to(dtype), (angles.sin() * self.scale).to(dtype)


def rotate(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn [batch, heads, seq, head_dim]; the pairs are (i, i + head_dim / 2), as in transformers."""
    first, second = states.chunk(2, dim=-1)
    return states * cosines + torch.cat((-second, first), dim=-1) * sines


def frequencies(shape: ShapeConfig) -> tuple[Tensor, float]:
    """Radians per position of each pair of dimensions [head_dim / 2], and the scale of cosines and sines."""
    width = shape.head_dim
    plain = 1.0 / shape.rope_theta ** (torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width)
    scaling = shape.rope_scaling
    if scaling is None or scaling.rope_type == "dynamic":  # dynamic differs only beyond maximum_positions, where we do not go
        return plain, 1.0
    if scaling.rope_type == "linear":
        return plain / scaling.factor, 1.0
    original = scaling.original_max_position_embeddings or shape.maximum_positions
    if scaling.rope_type == "llama3":
        return _llama3(plain, scaling, original), 1.0
    return _yarn(shape, scaling, original), _yarn_scale(scaling)


def _llama3(plain: Tensor, scaling: RopeScalingConfig, original: int) -> Tensor:
    """Long waves are slowed by the factor, short ones kept, those between blended."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = original * plain / (2 * math.pi)  # how often a wave turns within the original length
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * plain / scaling.factor + blend * plain


def _yarn(shape: ShapeConfig, scaling: RopeScalingConfig, original: int) -> Tensor:
    """Dimensions that turn often are kept, those that turn seldom slowed, with a linear ramp between."""
    width = shape.head_dim

    def dimension(turns: float) -> float:
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(shape.rope_theta))

    low, high = dimension(scaling.beta_fast or 32), dimension(scaling.beta_slow or 1)
    if scaling.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001  # as transformers: a step instead of a division by zero
    slowed = ((torch.arange(width // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    waves = shape.rope_theta ** (torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width)
    return slowed / (scaling.factor * waves) + (1 - slowed) / waves


def _yarn_scale(scaling: RopeScalingConfig) -> float:
    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return scale(scaling.mscale) / scale(scaling.mscale_all_dim)
    return scale(1.0)
