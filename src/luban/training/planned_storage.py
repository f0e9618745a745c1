"""Checkpoints of which several processes hold pieces: torch.distributed.checkpoint plans who writes what and which pieces a reader needs, whatever layout they were written in.

Its own file format and metadata are pickles, so an :class:`IndexWriter` and an :class:`IndexReader` stand in their place, and the planner's objects go to the index of storage.py and back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItemType
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from luban.models.tensor_files import TYPES
from luban.training.storage import Making, entry, opened


def save(making: Making, tensors: dict[str, torch.Tensor], group: Any) -> None:
    """Write a checkpoint: each process of ``group`` its own pieces, the first one the rest; without a group this process's. OSError where the disk of one of them refuses."""
    try:
        dcp.save(tensors, storage_writer=IndexWriter(making, group is not None), planner=DefaultSavePlanner(flatten_state_dict=False), process_group=group, no_dist=group is None)
    except BaseException as error:
        inner = [cause for cause, _ in getattr(error, "failures", {}).values() if isinstance(cause, OSError)]
        if inner:  # of some process
            raise inner[0] from None
        raise


def load(folder: Path, index: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Fill ``tensors`` with the pieces that this process holds of each. Nothing is asked of other processes."""
    reader, planner = IndexReader(folder, index), DefaultLoadPlanner(flatten_state_dict=False)
    planner.set_up_planner(tensors, reader.metadata, is_coordinator=True)
    plan = planner.finish_plan(reader.prepare_local_plan(planner.create_local_plan()))
    reader.read_data(plan, planner).wait()


def metadata_of(index: dict[str, Any]) -> Metadata:
    """The planner's objects from the index."""
    known, places = {}, {}
    for name, found in index["tensors"].items():
        chunks = [ChunkStorageMetadata(torch.Size(piece["offsets"]), torch.Size(piece["sizes"])) for piece in found["pieces"]]
        known[name] = TensorStorageMetadata(TensorProperties(TYPES[found["dtype"]]), torch.Size(found["shape"]), chunks)
        for piece in found["pieces"]:
            places[MetadataIndex(name, piece["offsets"])] = (piece["file"], piece["name"])
    return Metadata(known, storage_data=places)


class IndexWriter(StorageWriter):
    """Writes a process's pieces as safetensors; the coordinator finishes the checkpoint."""

    def __init__(self, making: Making, apart: bool):
        self.making, self.apart = making, apart  # whether each process has files of its own

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: a writer is made for one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if self.apart:
            self.making.suffix = f"-{kwargs['rank']:05d}"
        if is_coordinator:
            self.making.begin()

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
        written = {part: self.making.write(part, tensors) for part, tensors in parts.items()}
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(index, 0, (self.making.file(part), name, *written[part])) for index, part, name in places])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        found = [result for of_process in results for result in of_process]
        places = {result.index: result.storage_data[:2] for result in found}
        tensors = {
            name: entry(known.properties.dtype, known.size, [(piece.offsets, piece.sizes, *places[MetadataIndex(name, piece.offsets)]) for piece in known.chunks])
            for name, known in metadata.state_dict_metadata.items()
        }  # fmt: skip
        self.making.finish(tensors, {result.storage_data[0]: result.storage_data[2:] for result in found})

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
            with opened(self.folder / file) as stream:
                for name, item in wanted:
                    self._read(stream, name, item, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @staticmethod
    def _read(stream: Any, name: str, item: Any, planner: LoadPlanner) -> None:
        if item.lengths:
            value = stream.get_slice(name)[tuple(slice(start, start + size) for start, size in zip(item.storage_offsets, item.lengths, strict=True))]
        else:
            value = stream.get_tensor(name)
        target = planner.resolve_tensor(item)
        target.detach().copy_(value)
        planner.commit_tensor(item, target)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True
