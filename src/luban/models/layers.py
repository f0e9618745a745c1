"""The parts of a decoder layer: RMSNorm, grouped-query attention, SwiGLU."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.models import own_layers
from luban.models.attention import causal_attention
from luban.models.rotary import rotate
from luban.models.shape import ShapeConfig


class Cache(Protocol):
    """What a decoder asks of a key-value cache (see luban.inference.cache)."""

    def positions(self, length: int) -> Tensor:
        """Positions [batch, length] of the next tokens of each row."""

    def columns(self, length: int) -> Tensor:
        """Where the next tokens stand among the keys, [batch or 1, length]."""

    def mask(self, length: int, window: int | None) -> Tensor | None:
        """What the next tokens may see, [batch, 1, length, keys] of bool; None where a plain causal rule holds."""

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values [batch, kv_heads, length, head_dim]; all that the new tokens attend to comes back."""


class RMSNorm(nn.Module):
    """Scale to unit mean square, then by a weight (arXiv:1910.07467). The mean is taken in float32 or wider."""

    def __init__(self, size: int, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, states: Tensor) -> Tensor:
        return F.rms_norm(states, self.weight.shape, self.weight.to(states.dtype), self.epsilon)


class Attention(nn.Module):
    """Causal attention in which groups of query heads share a head of keys and values (arXiv:2305.13245)."""

    def __init__(self, shape: ShapeConfig):
        super().__init__()
        self.heads, self.key_value_heads, self.head_dim = shape.heads, shape.key_value_heads, shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, shape.heads * shape.head_dim, bias=shape.query_bias)
        self.k_proj = nn.Linear(shape.hidden_size, shape.key_value_heads * shape.head_dim, bias=shape.query_bias)
        self.v_proj = nn.Linear(shape.hidden_size, shape.key_value_heads * shape.head_dim, bias=shape.query_bias)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden_size, bias=shape.output_bias)
        if shape.query_key_norm:
            self.q_norm = RMSNorm(shape.head_dim, shape.norm_epsilon)
            self.k_norm = RMSNorm(shape.head_dim, shape.norm_epsilon)
        self.query_key_norm = shape.query_key_norm

    def forward(self, states: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        batch, seq, _ = states.shape
        queries = self.q_proj(states).view(batch, seq, self.heads, self.head_dim)
        keys = self.k_proj(states).view(batch, seq, self.key_value_heads, self.head_dim)
        values = self.v_proj(states).view(batch, seq, self.key_value_heads, self.head_dim).transpose(1, 2)
        if self.query_key_norm:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries = rotate(queries.transpose(1, 2), *angles)  # [batch, heads, seq, head_dim]
        keys = rotate(keys.transpose(1, 2), *angles)  # [batch, kv_heads, seq, head_dim]
        if cache is not None:
            keys, values = cache.update(layer, keys, values)
        attended = self._attend(queries, keys, values, mask)
        return self.o_proj(attended.transpose(1, 2).reshape(batch, seq, -1))

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """``mask`` as :meth:`Cache.mask` gives it; or where each token's document begins, [batch, seq] of int32, for attention.py."""
        batch, heads, seq, head_dim = queries.shape
        if mask is not None and mask.dtype == torch.int32:
            return causal_attention(queries, keys, values, mask)
        if seq == 1 and heads != self.key_value_heads:
            # One new token: the query heads of a group become rows of one small product, so that no key is copied.
            grouped = queries.reshape(batch, self.key_value_heads, -1, head_dim)
            return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).reshape(batch, heads, 1, head_dim)
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None and seq > 1, enable_gqa=heads != self.key_value_heads
        )


class FeedForward(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, shape: ShapeConfig):
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.feed_forward_size, bias=shape.feed_forward_bias)
        self.up_proj = nn.Linear(shape.hidden_size, shape.feed_forward_size, bias=shape.feed_forward_bias)
        self.down_proj = nn.Linear(shape.feed_forward_size, shape.hidden_size, bias=shape.feed_forward_bias)

    def forward(self, states: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(states)) * self.up_proj(states))


class Layer(nn.Module):
    """Attention, then SwiGLU, each on the normalised stream and added to it."""

    own = False  # own_layers.py does it where it can

    def __init__(self, shape: ShapeConfig):
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.norm_epsilon)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.norm_epsilon)

    def forward(self, states: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        if self.own and mask is not None and mask.dtype == torch.int32 and own_layers.fits(self):
            return own_layers.through(self, states, angles, mask)
        states = states + self.self_attn(self.input_layernorm(states), angles, mask, cache, layer)
        return states + self.mlp(self.post_attention_layernorm(states))
