"""How a checkpoint lies on disk: safetensors files, and one JSON index that says where each piece of each tensor is and what bytes every file has.

torch.distributed.checkpoint plans who writes what and which pieces a reader needs, whatever layout they were written in; its own file format and metadata are
pickles, so here a :class:`IndexWriter` and an :class:`IndexReader` stand in their place, and the planner's objects go to JSON and back. No load executes code.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItemType
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from luban.foundation.artifacts import sha256_of, sync_directory
from luban.foundation.errors import DataError
from luban.models.tensor_files import NAMES, TYPES, write_tensors
from luban.training.retention import STATE

FORMAT = 2
INDEX = "index.json"


# ---- the index --------------------------------------------------------------------------------------------------------


def write_index(folder: Path, metadata: Metadata, files: dict[str, tuple[int, str]]) -> None:
    """Write what the planner knows of the tensors, and the bytes and SHA-256 of each file, as JSON."""
    tensors = {}
    for name, found in sorted(metadata.state_dict_metadata.items()):
        places = []
        for piece in found.chunks:
            file, key = metadata.storage_data[MetadataIndex(name, piece.offsets)]
            places.append({"offsets": list(piece.offsets), "sizes": list(piece.sizes), "file": file, "name": key})
        tensors[name] = {"dtype": NAMES[found.properties.dtype], "shape": list(found.size), "pieces": places}
    index = {"format": FORMAT, "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in sorted(files.items())}, "tensors": tensors}
    index["sha256"] = _digest(index)
    _write_json(folder / INDEX, index)


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


def metadata_of(index: dict[str, Any]) -> Metadata:
    """The planner's objects from the index."""
    known, places = {}, {}
    for name, found in index["tensors"].items():
        chunks = [ChunkStorageMetadata(torch.Size(piece["offsets"]), torch.Size(piece["sizes"])) for piece in found["pieces"]]
        known[name] = TensorStorageMetadata(TensorProperties(TYPES[found["dtype"]]), torch.Size(found["shape"]), chunks)
        for piece in found["pieces"]:
            places[MetadataIndex(name, piece["offsets"])] = (piece["file"], piece["name"])
    return Metadata(known, storage_data=places)


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


# ---- torch.distributed.checkpoint's two ends --------------------------------------------------------------------------


class IndexWriter(StorageWriter):
    """Writes a process's pieces as safetensors into ``<final>.partial``; the coordinator adds state and index and renames it to ``final``.

    Names of tensors are ``part/name``; each part is a file of its own.
    """

    def __init__(self, final: Path, state: dict[str, Any]):
        self.final, self.state, self.suffix = final, state, ""
        self.partial = final.with_name(final.name + ".partial")

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: a writer is made for one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if "rank" in kwargs:
            self.suffix = f"-{kwargs['rank']:05d}"
        if is_coordinator:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        parts: dict[str, dict[str, torch.Tensor]] = {}
        places: list[tuple[MetadataIndex, str, str]] = []
        for item in sorted(plan.items, key=lambda item: item.index.fqn):  # so that equal runs write equal files
            assert item.type != WriteItemType.BYTE_IO, f"{item.index.fqn} is no tensor"
            part, _, name = item.index.fqn.partition("/")
            if item.tensor_data.chunk.sizes != item.tensor_data.size:
                name += "@" + ",".join(map(str, item.tensor_data.chunk.offsets))
            parts.setdefault(part, {})[name] = planner.resolve_data(item)
            places.append((item.index, part, name))
        written = {part: self._write(part, tensors) for part, tensors in parts.items()}
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(index, 0, (self._file(part), name, *written[part])) for index, part, name in places])
        return done

    def _write(self, part: str, tensors: dict[str, torch.Tensor]) -> tuple[int, str]:
        digest = hashlib.sha256()
        return write_tensors(self.partial / self._file(part), tensors, digest=digest), digest.hexdigest()

    def _file(self, part: str) -> str:
        return f"{part}{self.suffix}.safetensors"

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        found = [result for of_process in results for result in of_process]
        metadata.storage_data = {result.index: result.storage_data[:2] for result in found}
        files = {result.storage_data[0]: result.storage_data[2:] for result in found}
        files[STATE] = _write_json(self.partial / STATE, self.state)
        write_index(self.partial, metadata, files)
        sync_directory(self.partial)
        os.rename(self.partial, self.final)
        sync_directory(self.final.parent)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class IndexReader(StorageReader):
    """Reads the pieces that a plan asks for out of a checkpoint's safetensors files."""

    def __init__(self, folder: Path, index: dict[str, Any]):
        self.folder, self.metadata = folder, metadata_of(index)

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: a reader is made for one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: the index is read already."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[tuple[str, Any]]] = {}
        for item in plan.items:
            file, name = self.metadata.storage_data[item.storage_index]
            by_file.setdefault(file, []).append((name, item))
        for file, wanted in by_file.items():
            try:
                with safe_open(self.folder / file, "pt") as opened:
                    for name, item in wanted:
                        self._read(opened, name, item, planner)
            except (SafetensorError, OSError) as error:
                raise DataError("{file} is damaged: {error}", file=self.folder / file, error=error) from None
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @staticmethod
    def _read(opened: Any, name: str, item: Any, planner: LoadPlanner) -> None:
        if item.lengths:
            value = opened.get_slice(name)[tuple(slice(start, start + size) for start, size in zip(item.storage_offsets, item.lengths, strict=True))]
        else:
            value = opened.get_tensor(name)
        target = planner.resolve_tensor(item)
        target.detach().copy_(value)
        planner.commit_tensor(item, target)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


# ---- whole checkpoints ------------------------------------------------------------------------------------------------


def save_tensors(final: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any], group: Any = None) -> None:
    """Write a checkpoint: each process of ``group`` its own pieces, the first one the rest. OSError where the disk refuses; what was begun is removed then."""
    writer, planner = IndexWriter(final, state), DefaultSavePlanner(flatten_state_dict=False)
    try:
        if group is not None:
            dcp.save(tensors, storage_writer=writer, planner=planner, process_group=group)
            return
        planner.set_up_planner(tensors, is_coordinator=True)
        writer.set_up_storage_writer(True)
        plans, metadata = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
        plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
        writer.finish(metadata, [writer.write_data(plan, planner).wait()])
    except BaseException as error:
        shutil.rmtree(writer.partial, ignore_errors=True)
        inner = [cause for cause, _ in getattr(error, "failures", {}).values() if isinstance(cause, OSError)]
        if inner:  # of some process
            raise inner[0] from None
        raise


def load_tensors(folder: Path, index: dict[str, Any], like: Callable[[str, torch.Size, torch.dtype], torch.Tensor], ours: Callable[[str], bool] = lambda name: True) -> dict[str, torch.Tensor]:
    """Those tensors of a checkpoint that are ``ours``, in the layout that ``like(name, shape, type)`` gives each: a whole tensor, or the piece of it that this process holds. Nothing is asked of other processes."""
    reader, planner = IndexReader(folder, index), DefaultLoadPlanner(flatten_state_dict=False)
    tensors = {name: like(name, found.size, found.properties.dtype) for name, found in reader.metadata.state_dict_metadata.items() if ours(name)}
    planner.set_up_planner(tensors, reader.metadata, is_coordinator=True)
    plan = planner.finish_plan(reader.prepare_local_plan(planner.create_local_plan()))
    reader.read_data(plan, planner).wait()
    return tensors


def read_state(folder: Path) -> dict[str, Any]:
    """The counters of a checkpoint whose files were verified."""
    return json.loads((folder / STATE).read_bytes())
