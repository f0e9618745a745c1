"""Causal attention on a processor: attention.cpp, compiled once a machine, as an operation of torch's.

It does what ``scaled_dot_product_attention`` does with a causal mask and one of documents, without a mask: of what a token may not see most is never computed. What it takes
beside torch's: ``python -m benchmarks.attention``.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luban.foundation.compiled import compiled
from luban.models.products import LIBRARY


@functools.cache
def load() -> ctypes.CDLL | None:
    """attention.cpp, compiled; None without a compiler."""
    return compiled(Path(__file__).with_suffix(".cpp"))


def begins_of(segments: Tensor | None, rows: int, seq: int) -> Tensor:
    """Where the document of each place begins, [rows, seq] of int32; padding is like a document of its own."""
    if segments is None:
        return torch.zeros(rows, seq, dtype=torch.int32)
    begins = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    return torch.where(begins, torch.arange(seq, dtype=torch.int32), 0).cummax(1).values.int()


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, begins: Tensor) -> Tensor:
    """Each token's mean of the values of those from its document's beginning to itself, [batch, heads, seq, head_dim].

    ``queries`` [batch, heads, seq, head_dim], ``keys`` and ``values`` [batch, groups, seq, head_dim] with heads a multiple of groups, all float32 on the processor; ``begins`` [batch, seq]
    int32, never falling. :func:`load` must have given something.
    """
    return torch.ops.luban.causal_attention(queries, keys, values, begins, queries.shape[-1] ** -0.5)[0]


# ---- the operation ------------------------------------------------------------------------------------------------------

LIBRARY.define("causal_attention(Tensor queries, Tensor keys, Tensor values, Tensor begins, float scale) -> (Tensor, Tensor)")
LIBRARY.define("causal_attention_backward(Tensor slope, Tensor queries, Tensor keys, Tensor values, Tensor begins, Tensor made, Tensor norms, float scale) -> (Tensor, Tensor, Tensor)")


def _empty(like: Tensor) -> Tensor:
    """[batch, heads, seq, head_dim] whose heads stand side by side in memory, as the products around it want them."""
    batch, heads, seq, size = like.shape
    return like.new_empty(batch, seq, heads, size).transpose(1, 2)


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _integers(*values: int) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


def _given(*tensors: Tensor) -> list[Any]:
    """Address and strides of each, as the compiled code takes them."""
    return [one for tensor in tensors for one in (ctypes.c_void_p(tensor.data_ptr()), _integers(*tensor.stride()[:3]))]


def _call(name: str, queries: Tensor, keys: Tensor, *given: Any) -> None:
    batch, heads, seq, size = queries.shape
    getattr(load(), name)(_integers(batch, heads, keys.shape[1], seq, size), *given)


class _Angles(ctypes.Structure):
    _fields_ = (("cosines", ctypes.c_void_p), ("sines", ctypes.c_void_p))


def _place(begins: Tensor, scale: float, angles: tuple[Tensor, Tensor] | None) -> list[Any]:
    """Documents, angles [1 or batch, 1, seq, head_dim] with the distance of two rows', threads, scale."""
    turned = _Angles(*(angle.data_ptr() for angle in angles)) if angles else _Angles()
    distance = angles[0].stride(0) if angles and len(angles[0]) > 1 else 0
    return [ctypes.c_void_p(begins.data_ptr()), turned, ctypes.c_int64(distance), ctypes.c_int64(torch.get_num_threads()), ctypes.c_float(scale)]


def forward(queries: Tensor, keys: Tensor, values: Tensor, begins: Tensor, scale: float, angles: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """:func:`causal_attention` without a graph, and the logarithm of each token's sum of exponentials. Queries and keys are turned by ``angles``, if there are any (rotary.py)."""
    queries, keys, values, begins = _rows(queries), _rows(keys), _rows(values), begins.contiguous()
    angles = angles and tuple(angle.contiguous() for angle in angles)
    made, norms = _empty(queries), queries.new_empty(queries.shape[:3])
    _call("luban_attention_forward", queries, keys, *_given(queries, keys, values), *_place(begins, scale, angles), *_given(made), ctypes.c_void_p(norms.data_ptr()))
    return made, norms


def backward(
    slope: Tensor, queries: Tensor, keys: Tensor, values: Tensor, begins: Tensor, made: Tensor, norms: Tensor, scale: float,
    angles: tuple[Tensor, Tensor] | None = None, into: Sequence[Tensor] | None = None,
) -> Sequence[Tensor]:  # fmt: skip
    """What comes back to queries, keys and values as they were given, ``into`` tensors of their shapes or new ones."""
    slope, queries, keys, values, begins, made = _rows(slope), _rows(queries), _rows(keys), _rows(values), begins.contiguous(), _rows(made)
    angles = angles and tuple(angle.contiguous() for angle in angles)
    found = into or (_empty(queries), _empty(keys), _empty(values))
    _call("luban_attention_backward", queries, keys, *_given(queries, keys, values, made, slope), *_place(begins, scale, angles), ctypes.c_void_p(norms.contiguous().data_ptr()), *_given(*found))
    return found


LIBRARY.impl("causal_attention", forward, "CPU")
LIBRARY.impl("causal_attention_backward", lambda *given: tuple(backward(*given)), "CPU")


@torch.library.register_fake("luban::causal_attention", lib=LIBRARY)
def _(queries: Tensor, keys: Tensor, values: Tensor, begins: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return _empty(queries), queries.new_empty(queries.shape[:3])


@torch.library.register_fake("luban::causal_attention_backward", lib=LIBRARY)
def _(slope: Tensor, queries: Tensor, keys: Tensor, values: Tensor, begins: Tensor, made: Tensor, norms: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(queries), _empty(keys), _empty(values)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _derive(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*torch.ops.luban.causal_attention_backward(slope, *ctx.saved_tensors, ctx.scale), None, None)


torch.library.register_autograd("luban::causal_attention", _derive, setup_context=_keep, lib=LIBRARY)
