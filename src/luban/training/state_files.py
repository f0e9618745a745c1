"""An optimizer's state in files beside the run, mapped into memory: a parameter's state is read when that parameter moves, changed in place, and let go of.

The files are safetensors, one a parameter. They are no checkpoint: a process makes them anew, and fills them from the checkpoint that it goes on from. What is changed in a mapped page is the
system's to write to the disk, and the page its own to use again, so that memory holds no more of the state than there is room for.
"""

from __future__ import annotations

import errno
import json
import mmap
import shutil
from pathlib import Path

import torch
from torch import Tensor

from luban.foundation.artifacts import from_os_error
from luban.foundation.console import bytes_text
from luban.foundation.errors import LubanError
from luban.models.tensor_files import TYPES, write_tensors

FOLDER = "optimizer"  # in training/
LEAST_BYTES = 1 << 14  # a smaller state stays in memory


class StateFiles:
    """Where the states of a model's parameters lie, by name."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.maps: dict[str, mmap.mmap] = {}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def hold(self, name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state of a parameter as tensors that lie in its file. LubanError where the disk has no room: a file has all its blocks before the first step."""
        large = {slot: value for slot, value in state.items() if value.nbytes >= LEAST_BYTES}
        if not large:
            return state
        path = self.folder / f"{name}.safetensors"
        try:
            write_tensors(path, large)
            with path.open("r+b") as stream:
                held = self.maps[name] = mmap.mmap(stream.fileno(), 0)
        except OSError as error:
            raise self._refused(error, sum(value.nbytes for value in large.values())) from error
        mapped = _tensors(held)
        self.release(name)
        return state | mapped

    def release(self, name: str) -> None:
        """Let go of the memory of a parameter's state; what was changed stays in the file."""
        if name in self.maps and hasattr(mmap, "MADV_DONTNEED"):  # of a shared mapping it drops this process's hold on the pages, and nothing that was written to them
            self.maps[name].madvise(mmap.MADV_DONTNEED)

    def _refused(self, error: OSError, wanted: int) -> LubanError:
        held = sum(map(len, self.maps.values()))
        free = shutil.disk_usage(self.folder).free
        shutil.rmtree(self.folder, ignore_errors=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return from_os_error(error, self.folder)
        return LubanError(
            "the disk is full: the optimizer's state does not fit into {folder}", "{held} of it were written, {wanted} more for the next matrix, and {free} are free; a checkpoint takes as much again",
            "free some space, choose adamw_8bit or adafactor, whose state is a quarter or next to nothing, or set optimizer.state: memory", folder=self.folder, held=bytes_text(held), wanted=bytes_text(wanted), free=bytes_text(free),
        )  # fmt: skip


def _tensors(held: mmap.mmap) -> dict[str, Tensor]:
    """The tensors of a mapped safetensors file, in place."""
    start = 8 + int.from_bytes(held[:8], "little")
    header = json.loads(held[8:start])
    found = {}
    for slot, about in header.items():
        if slot != "__metadata__":
            first, last = about["data_offsets"]
            kind = TYPES[about["dtype"]]
            found[slot] = torch.frombuffer(held, dtype=kind, count=(last - first) // kind.itemsize, offset=start + first).view(about["shape"])
    return found
