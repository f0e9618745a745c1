"""A decoder's layer on a processor as one step of autograd: its products are torch's, and what stands between them is C++ (own_layers.cpp, attention.cpp), one pass over memory each.

RMSNorm, attention with rotary positions and with or without norms of queries and keys, SwiGLU (layers.py). Queries, keys and values stand side by side in one matrix, gate and up in another, so that nothing is copied between a
product and what follows it; the stream is added by the product that comes before. The backward pass is written out: what the forward would give again in the same pass over memory is
not kept. Nothing is compiled by torch.compile, so the first step is as fast as the others.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luban.foundation.compiled import compiled
from luban.models import attention

PART = 64  # rows whose contributions to a norm's gradient are summed first, as in own_layers.cpp


@functools.cache
def load() -> ctypes.CDLL | None:
    """The compiled code; None without a compiler."""
    return compiled(Path(__file__).with_suffix(".cpp"))


def fits(layer: nn.Module) -> bool:
    """Whether a layer is plain: all of its products are of float32 matrices, without bias, adapters, hooks, or weights that ranks share out."""
    attend, feed = layer.self_attn, layer.mlp
    linear = [attend.q_proj, attend.k_proj, attend.v_proj, attend.o_proj, feed.gate_proj, feed.up_proj, feed.down_proj]
    inner = [module for module in layer.modules() if module is not layer]
    return (
        all(type(module) is nn.Linear and module.bias is None for module in linear)
        and all(type(parameter) is nn.Parameter and parameter.dtype == torch.float32 for parameter in layer.parameters())
        and not any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks for module in inner)
    )


def through(layer: nn.Module, states: Tensor, angles: tuple[Tensor, Tensor], begins: Tensor) -> Tensor:
    """What ``layer`` makes of ``states`` [batch, seq, dim]; ``angles`` [1 or batch, 1, seq, head_dim] of rotary.py, ``begins`` [batch, seq] of attention.py."""
    attend, feed = layer.self_attn, layer.mlp
    modules = (layer.input_layernorm, attend.q_proj, attend.k_proj, attend.v_proj, attend.o_proj, layer.post_attention_layernorm, feed.gate_proj, feed.up_proj, feed.down_proj)
    of_heads = (attend.q_norm.weight, attend.k_norm.weight) if attend.query_key_norm else (None, None)
    return _Layer.apply(states, angles, begins, attend.head_dim, layer.input_layernorm.epsilon, *(module.weight for module in modules), *of_heads)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, angles: tuple[Tensor, Tensor], begins: Tensor, head_dim: int, epsilon: float, *weights: Tensor | None) -> Tensor:
        before, query, key, value, out, after, gate, up, down, *of_heads = weights
        batch, seq, dim = states.shape
        stream = states.reshape(-1, dim)  # [tokens, dim]
        first, first_scales = _norm(stream, before, epsilon)
        heads = _products(first, query, key, value)  # [tokens, (heads + 2 kv_heads) * head_dim]
        place = (batch, seq, head_dim, len(query), len(key))
        attended, norms = attention.forward(*_normed(_heads(heads, *place), of_heads, epsilon)[0], begins, head_dim**-0.5, angles)
        attended = attended.transpose(1, 2).reshape(len(stream), -1)
        middle = torch.addmm(stream, attended, out.t())
        second, second_scales = _norm(middle, after, epsilon)
        both = _products(second, gate, up)  # [tokens, 2 feed_forward]
        made = torch.addmm(middle, _swiglu(both), down.t())
        ctx.place, ctx.epsilon = place, epsilon
        ctx.save_for_backward(stream, first, first_scales, heads, attended, norms, middle, second, second_scales, both, begins, *angles, *weights)
        return made.view(batch, seq, dim)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        stream, first, first_scales, heads, attended, norms, middle, second, second_scales, both, begins, cosines, sines, *weights = ctx.saved_tensors
        before, query, key, value, out, after, gate, up, down, *of_heads = weights
        wanted = ctx.needs_input_grad[5:]
        above = above.reshape(stream.shape).contiguous()
        by_both, hidden = _swiglu_backward(above @ down, both)
        by_down = _by_weight(wanted[8], above, hidden)
        del hidden  # what is large goes as soon as it is used
        by_gate, by_up = _by_weights(wanted[6:8], by_both, second, gate, up)
        by_second = _back(by_both, gate, up)
        del by_both
        by_middle, by_after = _norm_backward(by_second, above, middle, after, second_scales)
        by_out = _by_weight(wanted[4], by_middle, attended)
        by_heads = torch.empty_like(heads)
        apart, by_apart = _heads(heads, *ctx.place), _heads(by_heads, *ctx.place)
        normed, scales = _normed(apart, of_heads, ctx.epsilon)
        attention.backward(_heads(by_middle @ out, *ctx.place)[0], *normed, begins, _heads(attended, *ctx.place)[0], norms, ctx.place[2] ** -0.5, (cosines, sines), by_apart)
        by_of_heads = [_norm_backward(slope, None, states, weight, of)[1] for slope, states, weight, of in zip(by_apart, apart, of_heads, scales, strict=False)] if scales else [None, None]
        del normed
        by_query, by_key, by_value = _by_weights(wanted[1:4], by_heads, first, query, key, value)
        by_stream, by_before = _norm_backward(_back(by_heads, query, key, value), by_middle, stream, before, first_scales)
        return by_stream.view(*ctx.place[:2], -1), None, None, None, None, by_before, by_query, by_key, by_value, by_out, by_after, by_gate, by_up, by_down, *by_of_heads


# ---- products ---------------------------------------------------------------------------------------------------------


def _products(states: Tensor, *weights: Tensor) -> Tensor:
    """``states @ weight.T`` of each weight, side by side."""
    made = states.new_empty(len(states), sum(map(len, weights)))
    for part, weight in zip(made.split([len(weight) for weight in weights], 1), weights, strict=True):
        torch.mm(states, weight.t(), out=part)
    return made


def _back(slopes: Tensor, *weights: Tensor) -> Tensor:
    """What comes back to the states from what stands side by side."""
    parts = slopes.split([len(weight) for weight in weights], 1)
    total = parts[0] @ weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total.addmm_(part, weight)
    return total


def _by_weight(wanted: bool, slopes: Tensor, states: Tensor) -> Tensor | None:
    return slopes.t() @ states if wanted else None


def _by_weights(wanted: tuple[bool, ...], slopes: Tensor, states: Tensor, *weights: Tensor) -> list[Tensor | None]:
    parts = slopes.split([len(weight) for weight in weights], 1)
    return [_by_weight(want, part, states) for want, part in zip(wanted, parts, strict=True)]


def _heads(side_by_side: Tensor, batch: int, seq: int, head_dim: int, *sizes: int) -> list[Tensor]:
    """Queries, keys and values [batch, heads, seq, head_dim], or the first of them, in the place where they stand."""
    queries, keys = sizes
    widths = (queries, keys, keys) if side_by_side.shape[1] > queries else (queries,)
    return [part.view(batch, seq, -1, head_dim).transpose(1, 2) for part in side_by_side.split(widths, 1)]


# ---- what stands between them -----------------------------------------------------------------------------------------


def _call(name: str, rows: int, width: int, *given: Any) -> None:
    addresses = (ctypes.c_void_p(one.data_ptr()) if isinstance(one, Tensor) else one for one in given)
    getattr(load(), name)(ctypes.c_int64(rows), ctypes.c_int64(width), ctypes.c_int64(torch.get_num_threads()), *addresses)


def _norm(stream: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """RMSNorm of each row, or of each head of rows [batch, heads, seq, head_dim] that stand as [batch, seq, heads, head_dim]; and the scale of each."""
    rows, layout = _rows(stream)
    made, scales = torch.empty((rows, layout[0].value * len(weight)), dtype=stream.dtype), stream.new_empty(rows * layout[0].value)
    _call("luban_norm_forward", rows, len(weight), *layout, ctypes.c_float(epsilon), stream, weight, made, scales)
    return made, scales


def _norm_backward(slopes: Tensor, above: Tensor | None, stream: Tensor, weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """What comes back through the norm and, ``above``, beside it, in the place of ``slopes``; and the gradient of the weight."""
    rows, layout = _rows(stream)
    parts = stream.new_empty(-(-rows // PART), len(weight))
    _call("luban_norm_backward", rows, len(weight), *layout, slopes, ctypes.c_void_p() if above is None else above, stream, weight, scales, slopes, parts)
    return slopes, parts.sum(0)


def _rows(stream: Tensor) -> tuple[int, tuple[ctypes.c_int64, ctypes.c_int64]]:
    """How many rows there are; how many norms each has, and how far apart rows lie."""
    if stream.ndim == 2:
        return len(stream), (ctypes.c_int64(1), ctypes.c_int64(stream.stride(0)))
    return stream.shape[0] * stream.shape[2], (ctypes.c_int64(stream.shape[1]), ctypes.c_int64(stream.stride(2)))


def _normed(apart: list[Tensor], weights: Sequence[Tensor | None], epsilon: float) -> tuple[list[Tensor], list[Tensor]]:
    """Queries, keys and values, the first two normalised by head if they have a weight for it; and the scales of these."""
    if weights[0] is None:
        return apart, []
    made = [_norm(states, weight, epsilon) for states, weight in zip(apart, weights, strict=False)]
    return [*(one.view(states.transpose(1, 2).shape).transpose(1, 2) for (one, _), states in zip(made, apart, strict=False)), apart[2]], [scales for _, scales in made]


def _swiglu(both: Tensor) -> Tensor:
    made = both.new_empty(len(both), both.shape[1] // 2)
    _call("luban_swiglu_forward", len(both), made.shape[1], both, made)
    return made


def _swiglu_backward(slopes: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """What comes back to gate and up; and in the place of ``slopes`` the forward's result again."""
    made = torch.empty_like(both)
    _call("luban_swiglu_backward", len(both), slopes.shape[1], slopes, both, made, slopes)
    return made, slopes


def cross_entropy(logits: Tensor, bias: Tensor | None, targets: Tensor, label_smoothing: float, learning: bool) -> tuple[Tensor, Tensor | None]:
    """Each token's cross-entropy [tokens] of ``logits`` [tokens, vocabulary] in float32, which become its derivative by them where that is wanted."""
    nats = logits.new_empty(len(logits))
    _call("luban_cross_entropy", len(logits), logits.shape[1], ctypes.c_float(label_smoothing), ctypes.c_int64(learning), ctypes.c_void_p() if bias is None else bias, targets.contiguous(), logits, nats)
    return nats, logits if learning else None
