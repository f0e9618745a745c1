"""What a recipe's data will give a training that is planned: tokens of an epoch and the size of the vocabulary, from what is made, what is on disk, or what the recipe says it will make."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from luban.corpus.readers import find_files
from luban.foundation.artifacts import Artifact, is_artifact, open_artifact
from luban.foundation.errors import DataError
from luban.foundation.paths import named_files
from luban.pipeline.recipe import Recipe, Stage
from luban.planning.resolve import vocabulary_of
from luban.tokenizer.algorithms import automatic_vocabulary_size

BYTES_A_TOKEN = 3.5  # of text in a vocabulary that is not made yet
TOKENIZERS = ("tokenizer", "pretrained")  # inputs that are no text


def expected(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """``tokens`` of an epoch and the ``vocabulary`` of a train stage, as far as they are known."""
    tokens = [size for value in stage.inputs.get("data", []) if (size := _tokens(recipe, value)) is not None]
    sizes = [size for field in ("tokenizer", "data") for value in stage.inputs.get(field, []) if (size := _vocabulary(recipe, value)) is not None]
    return ({"tokens": sum(tokens)} if tokens else {}) | ({"vocabulary": sizes[0]} if sizes else {})


def _made(recipe: Recipe, value: str) -> Artifact | None:
    path = recipe.out / value if value in recipe.stages else recipe.path_of(value)
    return open_artifact(path) if is_artifact(path) else None


def _texts(stage: Stage) -> Iterable[str]:
    """What a stage that is not made yet reads, tokenizers left out."""
    return (value for field, values in stage.inputs.items() if field not in TOKENIZERS for value in values)


def _tokens(recipe: Recipe, value: str) -> float | None:
    """Of a stage, an artifact, or files of text; None where nothing is there."""
    if (made := _made(recipe, value)) is not None and (tokens := made.metrics.get("train", {}).get("tokens")):
        return tokens
    size = _bytes(recipe, value)
    return None if size is None else size / BYTES_A_TOKEN


def _bytes(recipe: Recipe, value: str) -> int | None:
    """Bytes of text that a stage will make, or that files hold."""
    made = _made(recipe, value)
    if made is not None:
        return made.metrics.get("train_bytes") or _on_disk(made.path)
    if value in recipe.stages:
        sizes = [size for other in _texts(recipe.stages[value]) if (size := _bytes(recipe, other)) is not None]
        return sum(sizes) if sizes else None
    return _on_disk(recipe.path_of(value))


def _on_disk(path: Path) -> int | None:
    try:
        return sum(file.stat().st_size for file in find_files(named_files(path))) or None
    except (DataError, OSError):
        return None


def _vocabulary(recipe: Recipe, value: str) -> int | None:
    """Of a tokenizer, or of what was or will be encoded with one; None where it is not known."""
    if (made := _made(recipe, value)) is not None:
        return made.metrics.get("vocabulary_size") or next((vocabulary_of(folder) for folder in (made.path, made.path / "tokenizer") if (folder / "tokenizer.json").is_file()), None)
    stage = recipe.stages.get(value)
    if stage is None:
        path = recipe.path_of(value)
        return vocabulary_of(path) if path.name == "tokenizer.json" and path.is_file() or (path / "tokenizer.json").is_file() else None
    if stage.kind.name == "train_tokenizer" and not stage.inputs.get("pretrained"):
        wanted = stage.config.vocabulary_size
        sizes = [size for other in _texts(stage) if (size := _bytes(recipe, other)) is not None]
        return wanted if wanted != "auto" else automatic_vocabulary_size(sum(sizes)) if sizes else None
    return next((size for field in TOKENIZERS for other in stage.inputs.get(field, []) if (size := _vocabulary(recipe, other)) is not None), None)
