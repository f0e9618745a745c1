"""Causal attention on a processor: attention.cpp, compiled once a machine, as an operation of torch's.

It does what ``scaled_dot_product_attention`` does with a causal mask and one of documents, without a mask: of what a token may not see most is never computed. What it takes
beside torch's: ``python -m benchmarks.attention``.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luban.foundation.environment import cache_folder, cxx
from luban.models.products import LIBRARY

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-march=native")


@functools.cache
def load() -> ctypes.CDLL | None:
    """The compiled code, made at the first call on a machine and kept in the user's cache, or where that cannot be written to, made for this process; None without a compiler that can make it."""
    compiler = shutil.which(cxx())
    if compiler is None or not SOURCE.exists():
        return None
    source = SOURCE.read_bytes()
    name = hashlib.sha256(b"\0".join([source, *(flag.encode() for flag in FLAGS), compiler.encode(), _processor().encode()])).hexdigest()[:16]
    for folder in (cache_folder(), None):
        try:
            folder = folder or Path(tempfile.mkdtemp())  # of this process alone: nobody else may put code there
            file = folder / f"attention-{name}.so"
            if not file.exists():
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                _compile(compiler, file)
            return ctypes.CDLL(str(file))
        except subprocess.SubprocessError:
            return None
        except OSError:
            continue
    return None


def _compile(compiler: str, file: Path) -> None:
    """Beside its place, and then into it: another process may do the same."""
    handle, made = tempfile.mkstemp(suffix=".so", dir=file.parent)
    os.close(handle)
    try:
        subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", made], check=True, capture_output=True, timeout=120)
        os.replace(made, file)
    finally:
        Path(made).unlink(missing_ok=True)


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "".join(next((line for line in lines if line.startswith(word)), "") for word in ("model name", "flags", "Features"))


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


def _forward(queries: Tensor, keys: Tensor, values: Tensor, begins: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    queries, keys, values, begins = _rows(queries), _rows(keys), _rows(values), begins.contiguous()
    made, norms = _empty(queries), queries.new_empty(queries.shape[:3])
    place = ctypes.c_void_p(begins.data_ptr()), ctypes.c_int64(torch.get_num_threads()), ctypes.c_float(scale)
    _call("luban_attention_forward", queries, keys, *_given(queries, keys, values), *place, *_given(made), ctypes.c_void_p(norms.data_ptr()))
    return made, norms


def _backward(slope: Tensor, queries: Tensor, keys: Tensor, values: Tensor, begins: Tensor, made: Tensor, norms: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    slope, queries, keys, values, begins, made = _rows(slope), _rows(queries), _rows(keys), _rows(values), begins.contiguous(), _rows(made)
    by_queries, by_keys, by_values = _empty(queries), _empty(keys), _empty(values)
    place = ctypes.c_void_p(begins.data_ptr()), ctypes.c_int64(torch.get_num_threads()), ctypes.c_float(scale), ctypes.c_void_p(norms.contiguous().data_ptr())
    _call("luban_attention_backward", queries, keys, *_given(queries, keys, values, made, slope), *place, *_given(by_queries, by_keys, by_values))
    return by_queries, by_keys, by_values


LIBRARY.impl("causal_attention", _forward, "CPU")
LIBRARY.impl("causal_attention_backward", _backward, "CPU")


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
