"""A model as a Hugging Face directory: config.json and safetensors, and back.

Weights are read one tensor at a time from the mapped file, so that memory holds them once. Nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from luban.foundation.artifacts import write_json
from luban.foundation.errors import DataError
from luban.models.base import Model
from luban.models.config_json import config_json, read_config, read_shape
from luban.models.families import AUTO, family_of
from luban.models.heads import Head
from luban.models.sentence import write_sentence_files
from luban.models.stored import INDEX, SINGLE, open_stored, put
from luban.models.tensor_files import replace_tensors

__all__ = ["load_model", "read_shape", "save_model", "stored_dtype"]

SHARD_BYTES = 5 * 10**9


def save_model(
    model: Model,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    end_ids: list[int] | None = None,
    begin_id: int | None = None,
    pad_id: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    read: Callable[[str], Tensor] | None = None,
) -> None:
    """Write config.json and the weights, each file whole or not at all.

    ``dtype`` is the type on disk (None: the model's). ``end_ids`` end a text, ``begin_id`` starts one. Above
    ``shard_bytes`` the weights are spread over several files with an index. A tied output matrix is not written twice.
    ``read`` gives the values of a parameter, whose name it is called with in the model's order, each when it is needed; the model itself then needs none, but where
    it runs through transformers: there they are put into it, and written by transformers' own hand.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = dtype or model.dtype
    if model.head is not None and model.head.structure == "vector" and model.head.task == "embedding":
        write_sentence_files(folder, model.head, model.shape.hidden_size)
    if family_of(model.shape.architecture) is AUTO:
        for name, parameter in model.named_parameters() if read else ():
            parameter.data.copy_(read(name))
        model.write_directory(folder, dtype, end_ids, begin_id, pad_id, shard_bytes)
        return
    tensors = model.state_dict()
    read = read or tensors.__getitem__
    shards = _shards({name: value.numel() * dtype.itemsize for name, value in tensors.items()}, shard_bytes)
    files = [SINGLE] if len(shards) == 1 else [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        # One shard at a time is cast and brought to memory.
        replace_tensors(folder / file, {name: read(name).to("cpu", dtype).contiguous() for name in names})
    if len(shards) > 1:
        total = sum(value.numel() * dtype.itemsize for value in tensors.values())
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})
    else:
        (folder / INDEX).unlink(missing_ok=True)
    for stale in folder.glob("model*.safetensors"):
        if stale.name not in files:
            stale.unlink()
    write_json(
        folder / "config.json",
        config_json(model.shape, str(dtype).removeprefix("torch."), head=model.head, end_ids=end_ids, begin_id=begin_id, pad_id=pad_id),
    )


def _shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def load_model(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    check_finite: bool = False,
    *,
    head: Head | None = None,
    language_model: bool = False,
    seed: int = 0,
    place: Callable[[Model, str, Tensor], bool] | None = None,
    quiet: bool = False,
) -> Model:
    """A model directory, in evaluation mode, with the task head that it was saved with.

    ``head`` takes the place of the saved one, and ``language_model`` that of any head: the trunk's weights are read, what the new output needs and the directory has
    not is drawn from ``seed`` and named. Raises DataError, naming file and tensor, when weights are missing, left over, of wrong shape or
    unreadable, when only pickled weights are there, and with ``check_finite`` when a weight is no finite number.
    ``place`` sees each tensor as it is read, on the file's pages, under its name here, and says whether it has put it into the model itself, in a form
    of its own; a model that runs through transformers is read whole without asking it. ``quiet`` does not name what was drawn: the caller fills it.
    """
    folder = Path(folder)
    stored = open_stored(folder, dtype, device, check_finite=check_finite, head=head, language_model=language_model, seed=seed, quiet=quiet)
    for name, (file, _) in stored.places.items():
        tensor = stored.view(name)
        if place is None or not place(stored.model, name, tensor):
            _assign(stored.model, name, tensor, dtype, torch.device(device), file, check_finite)
    return stored.model.eval()


def _assign(model: Model, name: str, value: Tensor, dtype: torch.dtype, device: torch.device, file: Path, check_finite: bool) -> None:
    """Put a tensor in the place of the meta one. It is copied: nothing may hang on the file after this."""
    if check_finite and not bool(value.float().isfinite().all()):
        raise DataError(
            "{file}: tensor {name} holds NaN or infinity",
            "the training that wrote it diverged, or the file is damaged",
            file=file,
            name=name,
        )
    put(model, name, value.to(device, dtype, copy=True))


def stored_dtype(folder: Path) -> torch.dtype:
    """The type that config.json names for the weights, float32 if none."""
    plain = read_config(Path(folder))
    return getattr(torch, str(plain.get("dtype") or plain.get("torch_dtype") or "float32").removeprefix("torch."), torch.float32)
