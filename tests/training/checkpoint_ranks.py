"""Run by test_checkpoints.py as two processes: saves and loads tensors that are cut over both."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from luban.training import storage


def values() -> dict[str, torch.Tensor]:
    """The whole tensors, of sizes that two ranks cannot share evenly."""
    draw = torch.Generator().manual_seed(4)
    return {
        "model/rows": torch.randn(7, 3, generator=draw), "model/columns": torch.randn(4, 5, generator=draw).bfloat16(), "model/one": torch.randn(1, 6, generator=draw),
        "optimizer/both": torch.randn(3, generator=draw), "optimizer/count": torch.tensor(5.0),
    }  # fmt: skip


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    cuts = {"model/rows": [Shard(0)], "model/columns": [Shard(1)], "model/one": [Shard(0)], "optimizer/both": [Replicate()]}
    cut = {name: distribute_tensor(tensor, mesh, cuts[name]) if name in cuts else tensor for name, tensor in values().items()}
    storage.save_tensors(folder / "of-two", cut, {"step": 7}, dist.new_group(backend="gloo"))
    index = storage.read_index(folder / "of-one")
    found = storage.load_tensors(folder / "of-one", index, lambda name, shape, dtype: torch.empty_like(cut[name]) if name in cuts else torch.empty(shape, dtype=dtype))
    for name, tensor in cut.items():
        assert type(found[name]) is type(tensor), name
        one, other = (value.to_local() if isinstance(value, DTensor) else value for value in (found[name], tensor))
        assert torch.equal(one, other), name
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
