"""How a checkpoint lies on disk: safetensors files, and one JSON index that says where each piece of each tensor is and what bytes every file has.

What one process holds whole is written and read here; who writes which pieces of what several hold, and which of them a reader needs, is planned in planned_storage.py. No load executes code.

    step-00000120/
      model.safetensors, optimizer.safetensors …   of several processes model-00000.safetensors, model-00001.safetensors …
      state.json                                   counters, random states, the loader's position
      index.json                                   tensors, pieces, and the SHA-256 of each file, of itself too; written last
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from luban.foundation.artifacts import sha256_of, sync_directory
from luban.foundation.errors import DataError
from luban.models.tensor_files import NAMES, TYPES, write_tensors
from luban.parallel.layouts import in_shards
from luban.training.retention import STATE

FORMAT = 2
INDEX = "index.json"


# ---- the index --------------------------------------------------------------------------------------------------------


def write_index(folder: Path, tensors: dict[str, dict[str, Any]], files: dict[str, tuple[int, str]]) -> None:
    """Write where each tensor's pieces are (:func:`entry`), and the bytes and SHA-256 of each file, as JSON."""
    index = {"format": FORMAT, "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in sorted(files.items())}, "tensors": dict(sorted(tensors.items()))}
    index["sha256"] = _digest(index)
    _write_json(folder / INDEX, index)


def entry(dtype: torch.dtype, shape: Iterable[int], pieces: Iterable[tuple[Iterable[int], Iterable[int], str, str]]) -> dict[str, Any]:
    """A tensor's line of the index; a piece is its offsets, its sizes, its file, and its name there."""
    places = [{"offsets": list(offsets), "sizes": list(sizes), "file": file, "name": name} for offsets, sizes, file, name in pieces]
    return {"dtype": NAMES[dtype], "shape": list(shape), "pieces": places}


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a checkpoint, itself checked. DataError names the file and what is wrong with it."""
    file = folder / INDEX
    try:
        index = json.loads(file.read_bytes())
        if index["format"] > FORMAT:
            raise DataError("{folder} was written by a newer Luban", "", "upgrade Luban", folder=folder)
        if index.pop("sha256") != _digest(index):
            raise ValueError("it does not have the bytes that were written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError("{file} is damaged: {error}", file=file, error=error) from None
    return index


def verify(folder: Path, index: dict[str, Any]) -> None:
    """DataError naming the first file that does not have the bytes that were written."""
    for name, known in index["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != known["bytes"]:
            raise DataError("{file} is damaged: {size} bytes were written, {found} are there", file=file, size=known["bytes"], found=file.stat().st_size if file.is_file() else 0)
        if sha256_of(file) != known["sha256"]:
            raise DataError("{file} does not have the bytes that were written", file=file)


def _digest(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _write_json(path: Path, value: Any) -> tuple[int, str]:
    """Write a file of a checkpoint in the making through to the disk; returns its bytes and SHA-256."""
    data = json.dumps(value, ensure_ascii=False).encode()  # and no line feed: the last byte is needed too
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return len(data), hashlib.sha256(data).hexdigest()


# ---- the files --------------------------------------------------------------------------------------------------------


class Making:
    """A checkpoint in the making: ``<final>.partial``, to which state and index are added when all tensors are there, and which is renamed to ``final`` then.

    Names of tensors are ``part/name``; each part is a file of its own, and of each process where ``suffix`` tells them apart.
    """

    def __init__(self, final: Path, state: dict[str, Any], suffix: str = ""):
        self.final, self.state, self.suffix = final, state, suffix
        self.partial = final.with_name(final.name + ".partial")

    def begin(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)

    def write(self, part: str, tensors: dict[str, torch.Tensor]) -> tuple[int, str]:
        """Bytes and SHA-256 of the part's file."""
        digest = hashlib.sha256()
        return write_tensors(self.partial / self.file(part), tensors, digest=digest), digest.hexdigest()

    def file(self, part: str) -> str:
        return f"{part}{self.suffix}.safetensors"

    def finish(self, tensors: dict[str, dict[str, Any]], files: dict[str, tuple[int, str]]) -> None:
        files = {**files, STATE: _write_json(self.partial / STATE, self.state)}
        write_index(self.partial, tensors, files)
        sync_directory(self.partial)
        os.rename(self.partial, self.final)
        sync_directory(self.final.parent)

    def give_up(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)


def save_tensors(final: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any], group: Any = None) -> None:
    """Write a checkpoint: each process of ``group`` its own pieces, the first one the rest. OSError where the disk refuses; what was begun is removed then."""
    making = Making(final, state)
    try:
        if group is not None or any(map(in_shards, tensors.values())):
            from luban.training import planned_storage  # importing torch's planner takes half a second

            return planned_storage.save(making, tensors, group)
        making.begin()
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for key in sorted(tensors):  # so that equal runs write equal files
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = tensors[key]
        files = {making.file(part): making.write(part, named) for part, named in parts.items()}
        known = {f"{part}/{name}": entry(value.dtype, value.shape, [([0] * value.ndim, value.shape, making.file(part), name)]) for part, named in parts.items() for name, value in named.items()}
        making.finish(known, files)
    except BaseException:
        making.give_up()
        raise


def load_tensors(folder: Path, index: dict[str, Any], like: Callable[[str, torch.Size, torch.dtype], torch.Tensor], ours: Callable[[str], bool] = lambda name: True) -> dict[str, torch.Tensor]:
    """Those tensors of a checkpoint that are ``ours``, in the layout that ``like(name, shape, type)`` gives each: a whole tensor, or the piece of it that this process holds. Nothing is asked of other processes."""
    tensors = {name: like(name, torch.Size(found["shape"]), TYPES[found["dtype"]]) for name, found in index["tensors"].items() if ours(name)}
    if sharded := {name: tensor for name, tensor in tensors.items() if in_shards(tensor)}:
        from luban.training import planned_storage

        planned_storage.load(folder, index, sharded)
    by_file: dict[str, list[tuple[dict[str, Any], torch.Tensor]]] = {}
    for name in tensors.keys() - sharded.keys():
        for piece in index["tensors"][name]["pieces"]:
            by_file.setdefault(piece["file"], []).append((piece, tensors[name]))
    for file, wanted in by_file.items():
        with opened(folder / file) as stream:
            for piece, tensor in wanted:
                place = tuple(slice(start, start + size) for start, size in zip(piece["offsets"], piece["sizes"], strict=True))
                tensor.detach()[place].copy_(stream.get_tensor(piece["name"]))
    return tensors


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A checkpoint's safetensors file. DataError where it is damaged."""
    try:
        with safe_open(file, "pt") as stream:
            yield stream
    except (SafetensorError, OSError) as error:
        raise DataError("{file} is damaged: {error}", file=file, error=error) from None


def read_state(folder: Path) -> dict[str, Any]:
    """The counters of a checkpoint whose files were verified."""
    return json.loads((folder / STATE).read_bytes())
