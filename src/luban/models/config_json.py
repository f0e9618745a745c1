"""config.json: a shape as transformers writes it, old and new, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luban.foundation.config import Source, build
from luban.foundation.errors import DataError
from luban.models.auto_shape import refuse_code, written_structure
from luban.models.families import AUTO, BY_ARCHITECTURE, family_of
from luban.models.heads import Head, read_head
from luban.models.sentence import sentence_head
from luban.models.shape_base import BaseShapeConfig


def read_config(folder: Path) -> dict[str, Any]:
    """The plain content of ``folder/config.json``. Raises DataError when it is missing or no JSON object."""
    file = folder / "config.json"
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            "{folder} is not a model directory: it has no config.json",
            "",
            "give the folder that holds config.json and model.safetensors",
            folder=folder,
        ) from None
    except ValueError as error:
        raise DataError("{file} is damaged: {error}", "", "restore the file", file=file, error=error) from None
    if not isinstance(plain, dict):
        raise DataError("{file} is damaged: {error}", "", "restore the file", file=file, error="no JSON object")
    if "luban_head" not in plain and (head := sentence_head(folder)) is not None:
        plain |= head.to_json()  # sentence-transformers keeps the pooling in files of its own
    return plain


def read_shape(folder: Path) -> Any:
    """The shape that a model directory was written with. Raises DataError for what Luban has no decoder for."""
    return shape_from(read_config(folder), str(folder / "config.json"))


def shape_from(plain: dict[str, Any], file: str = "config.json") -> Any:
    """The shape that the content of a config.json describes."""
    if str(plain.get("model_type")) not in BY_ARCHITECTURE:
        refuse_code(plain, file)
    family = family_of(plain.get("model_type"), file)
    architecture = family.architectures[0] if family is AUTO else plain["model_type"]
    return build(family.shape, {"architecture": architecture, **family.from_json(plain, file)}, Source(file))


def head_from(plain: dict[str, Any]) -> Head | None:
    """The task head that the content of a config.json describes; None for a language model."""
    if "luban_head" in plain:
        return read_head(plain, "")
    family = family_of(plain.get("model_type"))
    if family is AUTO:
        return read_head(plain, written_structure(plain))
    classes = {name: structure for structure, name in family.classes(plain["model_type"]).items()}
    named = plain.get("architectures") or [""]
    return read_head(plain, classes.get(named[0], ""))


def config_json(
    shape: BaseShapeConfig,
    dtype: str,
    *,
    head: Head | None = None,
    end_ids: list[int] | None = None,
    begin_id: int | None = None,
    pad_id: int | None = None,
) -> dict[str, Any]:
    """The content of config.json: what transformers 4 and 5, vLLM and llama.cpp's converter read.

    ``dtype`` is the weights' type, such as ``"float32"``.
    """
    family = family_of(shape.architecture)
    classes = family.classes(shape.architecture)
    said = family.to_json(shape)
    return {
        "architectures": [classes.get(head.trunk.structure if head.own else head.structure, classes[""]) if head else classes[""]],
        "model_type": shape.architecture,
        **said,
        **(head.to_json() if head else {}),
        "use_cache": True,
        "bos_token_id": begin_id,
        "eos_token_id": end_ids[0] if end_ids and len(end_ids) == 1 else end_ids or None,
        "pad_token_id": said.get("pad_token_id", pad_id),  # the positions of some encoders hang on it
        "torch_dtype": dtype,
        "dtype": dtype,
    }
