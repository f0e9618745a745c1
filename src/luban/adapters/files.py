"""An adapter as a directory: peft's two files, and beside them what peft does not say.

``adapter_config.json``, ``adapter_model.safetensors``  peft's format, where peft has the method; else the same files with Luban's names (docs/adapters.md).
``config.json``  of the base with the adapter's head, so that the directory says what it predicts.
``luban_adapter.json``  the base and its fingerprint, the method's whole config, the template's fingerprint and the stop tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from luban.adapters.attached import settle
from luban.adapters.config import NAMES
from luban.adapters.method import Method, method_from, method_of
from luban.foundation.artifacts import write_json
from luban.foundation.config import build
from luban.foundation.errors import DataError
from luban.models.auto import AutoModelAdapter
from luban.models.base import Model
from luban.models.config_json import config_json, head_from, read_config
from luban.models.heads import Head
from luban.models.huggingface import load_model
from luban.models.narrow import round_matrices
from luban.models.quantization_config import QuantizationConfig
from luban.models.quantized_model import dequantize_model, load_quantized
from luban.models.stored import put, weight_files
from luban.models.tensor_files import replace_tensors
from luban.tokenizer.tokenizer import Tokenizer

SETTINGS, WEIGHTS, NOTE = "adapter_config.json", "adapter_model.safetensors", "luban_adapter.json"
FORMAT = 1
SAMPLE = 1 << 16  # bytes read at each of three places of a weight file for the base's fingerprint
TASK_TYPES = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "span": "QUESTION_ANS", "vector": "FEATURE_EXTRACTION"}
STRUCTURES = {"SEQ_CLS": "sequence", "TOKEN_CLS": "token", "QUESTION_ANS": "span"}


def is_adapter(folder: Path) -> bool:
    """Whether a directory holds an adapter rather than a model."""
    return (Path(folder) / SETTINGS).is_file()


# ---- writing -----------------------------------------------------------------------------------------------------------


def save_adapter(model: Model, folder: Path, base: Path, tokenizer: Tokenizer, quantization: QuantizationConfig | None = None) -> None:
    """Write the adapter that ``model`` wears and what was saved whole; ``base`` is the directory it stands on."""
    method: Method = model.adapter
    folder, base = Path(folder), Path(base).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = method.tensors(model)
    whole = {name: model.get_parameter(name).detach() for name in model.saved_whole}
    tensors |= {f"{method.whole_prefix}{name}": value for name, value in whole.items()}
    if _tied_table(model):
        tensors[f"{method.whole_prefix}lm_head.weight"] = model.output_weight  # peft reads the tied matrix by both names
    replace_tensors(folder / WEIGHTS, {name: value.detach() for name, value in tensors.items()})
    end_ids = tokenizer.stop_ids
    ids = (end_ids, tokenizer.begin_of_text_id, tokenizer.pad_id)
    if isinstance(model, AutoModelAdapter):
        plain = model.config_json(model.dtype, *ids)
    else:
        plain = config_json(model.shape, str(model.dtype).removeprefix("torch."), head=model.head, end_ids=ids[0], begin_id=ids[1], pad_id=ids[2])
    write_json(folder / "config.json", plain)
    write_json(folder / SETTINGS, {**_settings(model, method), "base_model_name_or_path": str(base)})
    note = {
        "format": FORMAT, "base": os.path.relpath(base, folder.resolve()), "base_fingerprint": fingerprint(base), "adapter": {"method": method.config.method, **method.config.explicit()},
        "whole": sorted(whole), "template_fingerprint": tokenizer.fingerprint(), "stop_ids": end_ids, "report": method.report(model), **({"quantization": quantization.explicit()} if quantization else {}),
        **({"weights": "bfloat16"} if model.narrow else {}),
    }  # fmt: skip
    write_json(folder / NOTE, note)


def _tied_table(model: Model) -> bool:
    """Whether a decoder's embedding is saved whole and is its output matrix too."""
    return model.shape.kind == "decoder" and model.output_weight is model.embedding.weight and any(model.get_parameter(name) is model.embedding.weight for name in model.saved_whole)


def _settings(model: Model, method: Method) -> dict[str, Any]:
    """adapter_config.json without the base's place."""
    head = model.head
    structure = head.structure if head is not None and head.replaces_output else ""
    writes = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM"}.get(model.shape.kind)
    named = {"peft_type": method.peft_type} if method.peft_type else {"luban_method": method.config.method}
    tied = {"ensure_weight_tying": True} if _tied_table(model) else {}
    return {**named, **tied, "task_type": TASK_TYPES.get(structure) if structure else writes, "inference_mode": True, "modules_to_save": _modules(model) or None, **method.settings(model)}


def _modules(model: Model) -> list[str]:
    """The modules whose parameters are saved whole, as peft names them: a head by its first name, others by their full place."""
    places = []
    for name in model.saved_whole:
        places.append(name.split(".")[0] if model.is_output(name) and "." in name else name.rpartition(".")[0])
    return sorted(set(places))


def fingerprint(base: Path) -> str:
    """A model directory's weights in 16 hexadecimal digits: of each file its length, its header, and three samples of 64 KiB."""
    digest = hashlib.sha256()
    for file in sorted(weight_files(base)):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for place in (0, size // 2, max(0, size - SAMPLE)):
                stream.seek(place)
                digest.update(stream.read(SAMPLE))
    return digest.hexdigest()[:16]


# ---- reading -----------------------------------------------------------------------------------------------------------


def open_model(
    folder: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", *, head: Head | None = None, language_model: bool = False, seed: int = 0,
    other_template: bool = False, quantization: QuantizationConfig | None = None, dequantized: bool = False,
) -> Model:
    """A model directory, or an adapter's with its base under it, in evaluation mode. ``head`` and ``language_model`` as of
    :func:`luban.models.huggingface.load_model`. Raises DataError where the base is missing or not the one that the adapter was made for,
    or (unless ``other_template``) the tokenizer beside it is not the one that it was trained with.

    ``quantization`` holds the matrices in fewer bits; an adapter that was trained on such a base is opened on it again, or, ``dequantized``,
    on the numbers that the few bits stand for, in floating point. One that was trained on a base in bfloat16 is opened on such numbers.
    """  # fmt: skip
    folder = Path(folder)
    if not is_adapter(folder):
        return _load_base(folder, dtype, device, head, language_model, seed, quantization, dequantized)
    plain, note = read_settings(folder)
    tensors = read_tensors(folder)
    own_head = None if language_model else head or adapter_head(folder, plain, tensors)
    known = build(QuantizationConfig, note["quantization"]) if note.get("quantization") else quantization
    model = _load_base(base_of(folder, plain, note), dtype, device, own_head, own_head is None, seed, known, dequantized, note.get("weights") == "bfloat16", quiet=True)
    wear(model, plain, note, tensors, other_head=own_head is not None and own_head != adapter_head(folder, plain, tensors))
    if not other_template:
        check_tokenizer(folder, note)
    return model.eval()


def open_beside(folder: Path, base: Path, model: Model) -> Model:
    """An adapter's model on ``base``, from which ``model`` was opened: what the adapter does not change is not read again, the two share it."""
    plain, note = read_settings(folder)
    tensors = read_tensors(folder)
    head = adapter_head(folder, plain, tensors)
    known = build(QuantizationConfig, note["quantization"]) if note.get("quantization") else None
    shared = {} if known else dict(model.named_parameters())

    def take(opened: Model, name: str, there: Tensor | None = None) -> bool:
        """Have a parameter be that of ``model``, unless the adapter's file has values of its own for it."""
        usable = name in shared and opened.get_parameter(name).shape == shared[name].shape and not any(own.endswith(f".{name}") for own in tensors)
        if usable:
            put(opened, name, shared[name])
        return usable

    if known:
        opened = _load_base(base, model.dtype, model.device, head, head is None, 0, known, False, note.get("weights") == "bfloat16", quiet=True)
    else:
        opened = load_model(base, model.dtype, model.device, head=head, language_model=head is None, place=take, quiet=True)
    for name, _ in list(opened.named_parameters()):
        take(opened, name)  # what transformers read was not asked for one by one
    wear(opened, plain, note, tensors)
    return opened.eval()


def _load_base(folder: Path, dtype: torch.dtype, device: Any, head: Head | None, language_model: bool, seed: int, quantization: QuantizationConfig | None, dequantized: bool, rounded: bool = False, quiet: bool = False) -> Model:
    if quantization is None:
        model = load_model(folder, dtype, device, head=head, language_model=language_model, seed=seed, quiet=quiet)
        return round_matrices(model) if rounded else model
    model = load_quantized(folder, quantization, dtype, device, head=head, language_model=language_model, seed=seed, quiet=quiet)
    if rounded:
        round_matrices(model)
    return dequantize_model(model) if dequantized else model


def wear(model: Model, plain: Mapping[str, Any], note: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str = "default", other_head: bool = False) -> Method:
    """Put a saved adapter on a model that has its base's weights. With ``other_head`` the model has one for another task than was saved, which is left out."""
    known = note.get("adapter")
    method = method_of(build(NAMES[known["method"]], known), name) if known else method_from(plain, name)
    method = method.as_saved()
    _grow(model, tensors, method.whole_prefix)
    before = set(map(id, model.parameters()))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    method.attach(model, 0)
    used = method.load(model, tensors)
    rest = {name.removeprefix(method.whole_prefix): value for name, value in tensors.items() if name not in used}
    rest = {name: value for name, value in rest.items() if not (other_head and model.is_output(name))}
    whole = [_load_whole(model, name, value) for name, value in rest.items()]
    settle(model, method, [name for name in whole if name], before)
    return method


def _grow(model: Model, tensors: Mapping[str, Tensor], before: str) -> None:
    """Make room for the tokens that were added when the adapter was trained: its embeddings were saved whole."""
    name = next(name for name, parameter in model.named_parameters() if parameter is model.embedding.weight)
    saved = tensors.get(f"{before}{name}")
    if saved is not None and len(saved) != len(model.embedding.weight):
        model.resize_vocabulary(len(saved))


def _load_whole(model: Model, name: str, value: Tensor) -> str:
    """Copy a tensor that was saved whole; its name, or nothing where a tied matrix is named a second time."""
    known = dict(model.named_parameters())
    if name not in known:
        if name == "lm_head.weight" or name.endswith(".position_ids"):
            return ""
        raise DataError("the adapter's tensor {name} has no place in the model", "", "check that the adapter was made for this base", name=name)
    if known[name].shape != value.shape:
        raise DataError("the adapter's tensor {name} is {there}, the model makes it {wanted}", "", "check that the adapter was made for this base", name=name, there=list(value.shape), wanted=list(known[name].shape))
    with torch.no_grad():
        known[name].copy_(value)
    return name


def read_settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """adapter_config.json and luban_adapter.json (empty where peft wrote the adapter)."""
    found = []
    for file in (folder / SETTINGS, folder / NOTE):
        try:
            found.append(json.loads(file.read_text(encoding="utf-8")) if file.name == SETTINGS or file.exists() else {})
            if not isinstance(found[-1], dict):
                raise ValueError("no JSON object")
        except (OSError, ValueError) as error:
            raise DataError("{file} is damaged: {error}", "", "restore the file", file=file, error=error) from None
    if found[1].get("format", FORMAT) > FORMAT:
        raise DataError("{folder} was written by a newer Luban", "", "upgrade Luban", folder=folder)
    return found[0], found[1]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The adapter's tensors. Raises DataError where the file is missing, damaged or a pickle."""
    file = folder / WEIGHTS
    if not file.exists():
        why = "pickled weights are not read: a pickle runs whatever code its maker put in it" if (folder / "adapter_model.bin").exists() else ""
        raise DataError("{file} is missing", why, "save the adapter as safetensors", file=file)
    try:
        return load_file(file)
    except Exception as error:
        raise DataError("{file} is damaged: {error}", "", "restore the file; was the download whole?", file=file, error=error) from None


def base_of(folder: Path, plain: Mapping[str, Any], note: Mapping[str, Any]) -> Path:
    """The base's directory: where the note says, seen from the adapter, or where adapter_config.json says. Its weights must be those the adapter was made for."""
    named = str(plain.get("base_model_name_or_path") or "")
    places = [folder / note["base"]] if note.get("base") else []
    places += [Path(named), folder / named] if named else []
    for place in places:
        if (place / "config.json").is_file():
            if note.get("base_fingerprint") and fingerprint(place) != note["base_fingerprint"]:
                raise DataError("{base} is not the base that {folder} was made for", "its weights have changed since", "train the adapter again, or restore the base", base=place, folder=folder)
            return place.resolve()
    raise DataError("the base of {folder} is missing: {named}", "an adapter is a change of another model, which must be there too; nothing is fetched from a hub", "write the base's folder into {file} as base_model_name_or_path", folder=folder, named=named or "-", file=folder / SETTINGS)  # fmt: skip


def text_folder(folder: Path) -> Path:
    """Where a model directory's tokenizer lies: in it, or for an adapter that brings none (peft writes none) in its base's."""
    if (folder / "tokenizer.json").exists() or not is_adapter(folder):
        return folder
    return base_of(folder, *read_settings(folder))


def check_base(folder: Path, plain: Mapping[str, Any], note: Mapping[str, Any], base: Path) -> None:
    """Raises DataError where ``base`` does not hold the weights that an adapter was made for."""
    if fingerprint(base) != (note.get("base_fingerprint") or fingerprint(base_of(folder, plain, note))):
        raise DataError("{base} is not the base that {folder} was made for", "its weights are others", "serve the adapter on its own base, or by its own folder", base=base, folder=folder)


def adapter_head(folder: Path, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Head | None:
    """The head that the adapter was trained with; of one that peft wrote, as its task type and tensors say."""
    if (folder / "config.json").is_file():
        return head_from(read_config(folder))
    structure = STRUCTURES.get(str(plain.get("task_type")))
    if structure is None:
        return None
    outputs = [value.shape[0] for name, value in tensors.items() if name.endswith(("classifier.weight", "score.weight", "out_proj.weight", "qa_outputs.weight")) and "lora_" not in name]
    labels = tuple(f"LABEL_{index}" for index in range(outputs[-1] if outputs else 2))
    return Head(structure, {"sequence": "classification", "token": "tagging", "span": "question_answering"}[structure], () if structure == "span" else labels, "single_label" if structure == "sequence" else "")


def check_tokenizer(folder: Path, note: Mapping[str, Any], given: Tokenizer | None = None) -> None:
    """What the adapter learned to read and to stop at must be what it is given: a tokenizer from elsewhere, or that in its own folder."""
    if not note.get("template_fingerprint") or not (given or (folder / "tokenizer.json").exists()):
        return
    tokenizer = given or Tokenizer.load(folder)
    if tokenizer.fingerprint() != note["template_fingerprint"]:
        raise DataError("{folder}: the tokenizer or its chat template is not the one that the adapter was trained with", "the model would read another format than it learned", "restore tokenizer.json, tokenizer_config.json and chat_template.jinja, or give it the base that it was trained on", folder=folder)
    if note.get("stop_ids") not in (None, tokenizer.stop_ids):
        raise DataError("{folder}: the stop tokens are {there}, the adapter was trained with {wanted}", "it would not know where to stop", "restore tokenizer_config.json and generation_config.json", folder=folder, there=tokenizer.stop_ids, wanted=note["stop_ids"])
