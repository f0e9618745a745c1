"""A model as a Hugging Face directory: config.json and safetensors, and back.

Weights are read one tensor at a time from the mapped file, so that memory holds them once. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from luban.foundation.artifacts import from_os_error, sync_directory, write_json
from luban.foundation.console import say
from luban.foundation.errors import DataError
from luban.models.base import Model
from luban.models.config_json import config_json, head_from, read_config, read_shape, shape_from
from luban.models.families import AUTO, build_model, family_of
from luban.models.heads import Head
from luban.models.sentence import write_sentence_files

__all__ = ["load_model", "read_shape", "save_model", "stored_dtype"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def save_model(
    model: Model,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    end_ids: list[int] | None = None,
    begin_id: int | None = None,
    pad_id: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write config.json and the weights, each file whole or not at all.

    ``dtype`` is the type on disk (None: the model's). ``end_ids`` end a text, ``begin_id`` starts one. Above
    ``shard_bytes`` the weights are spread over several files with an index. A tied output matrix is not written twice.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = dtype or model.dtype
    if model.head is not None and model.head.structure == "vector" and model.head.task == "embedding":
        write_sentence_files(folder, model.head, model.shape.hidden_size)
    if family_of(model.shape.architecture) is AUTO:
        model.write_directory(folder, dtype, end_ids, begin_id, pad_id, shard_bytes)
        return
    tensors = {name: value.detach() for name, value in model.state_dict().items()}
    shards = _shards({name: value.numel() * dtype.itemsize for name, value in tensors.items()}, shard_bytes)
    files = [SINGLE] if len(shards) == 1 else [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        # One shard at a time is cast and brought to memory.
        write_tensors({name: tensors[name].to("cpu", dtype).contiguous() for name in names}, folder / file)
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


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise from_os_error(error, path) from error
    sync_directory(path.parent)


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
    plain = read_config(folder)
    shape = shape_from(plain, str(folder / "config.json"))
    if (family := family_of(shape.architecture)) is AUTO:
        weight_files(folder)  # the words for pickled or missing weights are said there
        return family.model.read_directory(folder, plain, dtype, device, check_finite, head, language_model, seed)
    saved = head_from(plain)
    wanted_head = None if language_model else head or saved
    with torch.device("meta"):
        model = build_model(shape)
        if wanted_head is not None and wanted_head.replaces_output:
            model.put(wanted_head)
        model.head = wanted_head
    wanted = model.state_dict()
    found: set[str] = set()
    for file, names in weight_files(folder).items():
        with _opened(file) as tensors:
            held = tensors.keys()
            for name in held if names is None else names:
                if name not in held:
                    raise DataError(
                        "{file}: tensor {name} is missing", "the index says that it is there", "restore the file", file=file, name=name
                    )
                if (own := _own_name(name, model, wanted, saved)) is None:
                    continue
                if own not in wanted:
                    raise DataError(
                        "{file}: tensor {name} has no place in the model",
                        "config.json describes a {name_of_shape} without it",
                        "check that config.json and the weights belong together",
                        file=file,
                        name=name,
                        name_of_shape=shape.architecture,
                    )
                tensor = _read(tensors, name, tuple(wanted[own].shape), file)
                if place is None or not place(model, own, tensor):
                    _assign(model, own, tensor, dtype, torch.device(device), file, check_finite)
                found.add(own)
    _complete(model, [name for name in wanted if name not in found], wanted_head != saved, folder, dtype, device, seed, quiet)
    return model.eval()


def _complete(model: Model, missing: list[str], replaced: bool, folder: Path, dtype: torch.dtype, device: str | torch.device, seed: int, quiet: bool) -> None:
    """Draw what a directory may lack: optional parts, and the output where another head takes its place. DataError for the rest."""
    _draw(model, [name for name in missing if name.startswith(model.optional) or (replaced and model.is_output(name))], dtype, device, seed)
    if model.fresh and not quiet:
        say("new weights, drawn from the seed: {names}", names=", ".join(model.fresh[:4]) + (" …" if len(model.fresh) > 4 else ""))
    if missing := [name for name in missing if model.get_parameter(name).is_meta]:
        raise DataError(
            "{folder}: {count} tensors are missing: {names}",
            "config.json describes a model that has them",
            "restore the weights; was the download whole?",
            folder=folder,
            count=len(missing),
            names=", ".join(missing[:5]) + (" …" if len(missing) > 5 else ""),
        )


def _own_name(name: str, model: Model, wanted: dict[str, Tensor], saved: Head | None) -> str | None:
    """A tensor's name in the model; None for what is left out.

    Left out are buffers of old directories, a tied output matrix that is written a second time, and the output of a language model or
    of another head where the model now has a different one. A bare trunk's names lack the prefix.
    """
    own = model.rename(name)
    if own is None or own in wanted:
        return None if own is not None and model.is_output(own) and _other_task(model.head, saved) else own
    if model.prefix + own in wanted:
        return model.prefix + own
    tied = own == "lm_head.weight" and model.shape.tied_embeddings
    other_output = model.is_output(own) and any(head is not None and head.replaces_output for head in (model.head, saved))
    return None if tied or other_output or own.startswith(model.optional) else own


def _other_task(head: Head | None, saved: Head | None) -> bool:
    """Whether a head takes the place of one for other labels, whose weights may bear the same names."""
    if head is None or saved is None or not (head.replaces_output and saved.replaces_output):
        return False
    return (head.structure, head.labels) != (saved.structure, saved.labels)


def _draw(model: Model, names: list[str], dtype: torch.dtype, device: str | torch.device, seed: int) -> None:
    """First values for parameters that the directory does not hold."""
    for name in names:
        owner, _, leaf = name.rpartition(".")
        old = model.get_parameter(name)
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(torch.empty_like(old, dtype=dtype, device=device), requires_grad=old.requires_grad))
    if names:
        model.initialize(seed, only=names)
        model.fresh = names


def _read(tensors: safe_open, name: str, shape: tuple[int, ...], file: Path) -> Tensor:
    there = tuple(tensors.get_slice(name).get_shape())
    if there != shape:
        raise DataError(
            "{file}: tensor {name} is {there}, config.json makes it {shape}",
            "",
            "check that config.json and the weights belong together",
            file=file,
            name=name,
            there=list(there),
            shape=list(shape),
        )
    return tensors.get_tensor(name)


def _assign(model: Model, name: str, value: Tensor, dtype: torch.dtype, device: torch.device, file: Path, check_finite: bool) -> None:
    """Put a tensor in the place of the meta one. It is copied: nothing may hang on the file after this."""
    if not value.is_floating_point():
        raise DataError(
            "{file}: tensor {name} is of type {dtype}", "weights are floating-point numbers", file=file, name=name, dtype=value.dtype
        )
    if check_finite and not bool(value.float().isfinite().all()):
        raise DataError(
            "{file}: tensor {name} holds NaN or infinity",
            "the training that wrote it diverged, or the file is damaged",
            file=file,
            name=name,
        )
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, leaf, torch.nn.Parameter(value.to(device, dtype, copy=True), requires_grad=getattr(module, leaf).requires_grad))


def weight_files(folder: Path) -> dict[Path, list[str] | None]:
    """The weight files of a model directory, each with the tensors it is to hold (None: whatever it holds)."""
    if (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        try:
            places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            files: dict[Path, list[str] | None] = {}
            for name, file in places.items():
                if Path(file).name != file:
                    raise ValueError(f"{file!r} is no file name")
                files.setdefault(folder / file, []).append(name)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError("{file} is damaged: {error}", "", "restore the file", file=folder / INDEX, error=error) from None
        return files
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    if pickled := sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED):
        raise DataError(
            "{folder} holds only pickled weights: {names}",
            "reading a pickle runs whatever code its maker put in it",
            "where you trust them: transformers' AutoModelForCausalLM.from_pretrained(…).save_pretrained(…) writes safetensors",
            folder=folder,
            names=", ".join(pickled[:3]),
        )
    raise DataError("{folder} holds no weights", "neither {single} nor {index} is there", "", folder=folder, single=SINGLE, index=INDEX)


class _opened:
    """An opened safetensors file; a damaged one is a DataError."""

    def __init__(self, file: Path):
        self.file = file

    def __enter__(self) -> safe_open:
        try:
            self.handle = safe_open(self.file, framework="pt")
            return self.handle.__enter__()
        except FileNotFoundError:
            raise DataError("{file} is missing", "the index names it", "restore the file", file=self.file) from None
        except (SafetensorError, OSError) as error:
            raise DataError(
                "{file} is damaged: {error}", "", "restore the file; was the download whole?", file=self.file, error=error
            ) from None

    def __exit__(self, *problem: object) -> None:
        self.handle.__exit__(*problem)


def stored_dtype(folder: Path) -> torch.dtype:
    """The type that config.json names for the weights, float32 if none."""
    plain = read_config(Path(folder))
    return getattr(torch, str(plain.get("dtype") or plain.get("torch_dtype") or "float32").removeprefix("torch."), torch.float32)


def tensor_names(folder: Path) -> Iterator[str]:
    """Names of all tensors on disk."""
    for file in weight_files(Path(folder)):
        with _opened(file) as tensors:
            yield from tensors.keys()
