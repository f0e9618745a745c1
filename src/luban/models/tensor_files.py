"""Writing safetensors files, some bytes at a time: no second copy of a tensor is held, and what is written is through to the disk before it has a name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luban.foundation.artifacts import from_os_error, sync_directory

# safetensors' names of types
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {kind: name for name, kind in TYPES.items()}
PIECE_BYTES = 1 << 24  # written and hashed at a time


def write_tensors(path: Path, tensors: dict[str, Tensor], note: dict[str, str] | None = None, digest: Any = None) -> int:
    """Write a safetensors file through to the disk; returns its bytes, with which ``digest`` (of hashlib) is fed. OSError where the disk refuses; part of the file may be there then."""
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))  # so that every tensor begins at a multiple of its numbers' size
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(note or {})}}
    place = 0
    for name, tensor in ordered.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of eight bytes
    written = 0
    with path.open("wb") as stream:
        for piece in (len(text).to_bytes(8, "little"), text, *(piece for tensor in ordered.values() for piece in pieces(tensor))):
            written += stream.write(piece)
            if digest is not None:
                digest.update(piece)
        stream.flush()
        os.fsync(stream.fileno())
    return written


def replace_tensors(path: Path, tensors: dict[str, Tensor], note: dict[str, str] | None = None) -> None:
    """Write a safetensors file so that after a crash it is the old one or the new one, never a part. LubanError where the disk refuses."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        write_tensors(aside, tensors, note)
        os.replace(aside, path)
        sync_directory(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise from_os_error(error, path) from error


def pieces(tensor: Tensor) -> Iterator[memoryview]:
    """The tensor's bytes, some at a time; of one that is whole on the processor without a copy."""
    if not tensor.numel():
        return
    data = memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]
