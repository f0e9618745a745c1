"""The weights of a model directory, read one tensor at a time when they are asked for, under the names that they have in the model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from luban.foundation.console import say
from luban.foundation.errors import DataError
from luban.models.base import Model, tensors_missing
from luban.models.config_json import head_from, read_config, shape_from
from luban.models.families import AUTO, build_model, family_of
from luban.models.heads import Head

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PAGES_BYTES = 2**28  # looked at of a mapped file before it is opened anew, which gives the pages back


class Stored:
    """What a directory holds for ``model``, whose own parameters have no values (they are on the meta device) but where the files lack them.

    ``places`` say in which file a parameter lies, and under which name. A model that runs through transformers has been read whole, by transformers' own hand, which may
    fuse or split what the files hold: there all values are the model's own, and nothing has a place.
    """

    def __init__(self, model: Model):
        self.model = model
        self.places: dict[str, tuple[Path, str]] = {}
        self.changes: dict[str, Callable[[Tensor], Tensor]] = {}  # what :meth:`read` makes of a parameter's values
        self._file: Path | None = None
        self._tensors: safe_open | None = None
        self._seen = 0

    def __contains__(self, name: str) -> bool:
        """Whether there are values for a parameter of this name."""
        owner, _, leaf = name.rpartition(".")
        value = getattr(self.model.get_submodule(owner), leaf, None)
        return name in self.places or (value is not None and not value.is_meta)

    def view(self, name: str) -> Tensor:
        """A tensor as the file has it, on the file's own pages: to be copied or used before the next one is read."""
        file, there = self.places[name]
        if self._file != file or self._seen > PAGES_BYTES:
            self._tensors = None
            self._tensors, self._file, self._seen = _open(file), file, 0
        tensor = self._tensors.get_tensor(there)
        self._seen += tensor.nbytes
        if not tensor.is_floating_point():
            raise DataError("{file}: tensor {name} is of type {dtype}", "weights are floating-point numbers", file=file, name=there, dtype=tensor.dtype)
        return tensor

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A copy of a parameter's values, of the type ``dtype`` or their own."""
        if name not in self.places:
            return self.model.get_parameter(name).detach().to(dtype=dtype, copy=True)
        value = self.view(name)
        return self.changes[name](value).to(dtype or torch.float32) if name in self.changes else value.to(dtype=dtype or value.dtype, copy=True)

    def resize_vocabulary(self, size: int) -> None:
        """Make room for ``size`` tokens. What has a row for each of them is read for it, and stays with the model."""
        before, old = {name: value.shape for name, value in self.model.named_parameters()}, self.model.shape.vocabulary_size
        self.model.resize_vocabulary(size)
        changed = [name for name, value in self.model.named_parameters() if value.shape != before[name] and name in self.places]
        if changed:
            self.model.resize_vocabulary(old)
            for name in changed:
                put(self.model, name, self.read(name, torch.float32))
                del self.places[name]
            self.model.resize_vocabulary(size)

    def skeleton(self) -> Model:
        """A copy of the model without any values, for the caller to change."""
        return copy.deepcopy(self.model, {id(value): nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad) for value in self.model.parameters()})


def put(model: Model, name: str, value: Tensor) -> None:
    """Give a parameter other values, of whatever device and type."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, leaf, nn.Parameter(value, requires_grad=getattr(module, leaf).requires_grad))


def open_stored(
    folder: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", *, check_finite: bool = False,
    head: Head | None = None, language_model: bool = False, seed: int = 0, quiet: bool = False,
) -> Stored:
    """The weights of a model directory, their names and shapes compared with the model's, their values not yet read.

    ``dtype`` and ``device`` are those of what is drawn, and of a model that transformers reads, which alone is read here and checked with ``check_finite``;
    the rest as of :func:`luban.models.huggingface.load_model`.
    """  # fmt: skip
    plain = read_config(folder)
    shape = shape_from(plain, str(folder / "config.json"))
    files = weight_files(folder)  # the words for pickled or missing weights are said there
    if (family := family_of(shape.architecture)) is AUTO:
        return Stored(family.model.read_directory(folder, plain, dtype, device, check_finite, head, language_model, seed))
    saved = head_from(plain)
    wanted_head = None if language_model else head or saved
    with torch.device("meta"):
        model = build_model(shape)
        if wanted_head is not None and wanted_head.replaces_output:
            model.put(wanted_head)
        model.head = wanted_head
    stored, wanted = Stored(model), model.state_dict()
    for file, names in files.items():
        for name, there in _shapes(file, names):
            if (own := _own_name(name, model, wanted, saved)) is not None:
                _check(own, name, there, wanted, file, shape.architecture)
                stored.places[own] = (file, name)
    _complete(model, [name for name in wanted if name not in stored.places], wanted_head != saved, folder, dtype, device, seed, quiet)
    return stored


def _shapes(file: Path, names: list[str] | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a file's tensors, of all or those that the index names."""
    tensors = _open(file)
    held = tensors.keys()
    for name in held if names is None else names:
        if name not in held:
            raise DataError("{file}: tensor {name} is missing", "the index says that it is there", "restore the file", file=file, name=name)
        yield name, tuple(tensors.get_slice(name).get_shape())


def _check(own: str, name: str, there: tuple[int, ...], wanted: dict[str, Tensor], file: Path, architecture: str) -> None:
    if own not in wanted:
        raise DataError(
            "{file}: tensor {name} has no place in the model",
            "config.json describes a {name_of_shape} without it",
            "check that config.json and the weights belong together",
            file=file,
            name=name,
            name_of_shape=architecture,
        )
    if there != (shape := tuple(wanted[own].shape)):
        raise DataError(
            "{file}: tensor {name} is {there}, config.json makes it {shape}",
            "",
            "check that config.json and the weights belong together",
            file=file,
            name=name,
            there=list(there),
            shape=list(shape),
        )


def _open(file: Path) -> safe_open:
    """An opened safetensors file; it is closed when nobody holds it or a view of its tensors. DataError for a damaged one."""
    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError:
        raise DataError("{file} is missing", "the index names it", "restore the file", file=file) from None
    except (SafetensorError, OSError) as error:
        raise DataError("{file} is damaged: {error}", "", "restore the file; was the download whole?", file=file, error=error) from None


def _complete(model: Model, missing: list[str], replaced: bool, folder: Path, dtype: torch.dtype, device: str | torch.device, seed: int, quiet: bool) -> None:
    """Draw what a directory may lack: optional parts, and the output where another head takes its place. DataError for the rest."""
    _draw(model, [name for name in missing if name.startswith(model.optional) or (replaced and model.is_output(name))], dtype, device, seed)
    if model.fresh and not quiet:
        say("new weights, drawn from the seed: {names}", names=", ".join(model.fresh[:4]) + (" …" if len(model.fresh) > 4 else ""))
    if missing := [name for name in missing if model.get_parameter(name).is_meta]:
        raise tensors_missing(folder, missing)


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
        put(model, name, torch.empty_like(model.get_parameter(name), dtype=dtype, device=device))
    if names:
        model.initialize(seed, only=names)
        model.fresh = names


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
