"""Opens whatever a fit stage made."""

from __future__ import annotations

import json
from pathlib import Path

from luban.fitting.dictionary import DictionaryTagger
from luban.fitting.linear_model import LinearModel
from luban.fitting.ngram import NgramModel
from luban.foundation.errors import DataError
from luban.models.vectors import WordVectors

Fitted = NgramModel | WordVectors | LinearModel | DictionaryTagger


def load_fitted(folder: Path) -> Fitted:
    """The n-gram model, word vectors, linear model or dictionary in a folder. Raises DataError for anything else, and for damage."""
    file = Path(folder) / "config.json"
    try:
        config = json.loads(file.read_bytes())
        name, kind = str(config.get("model_type")), str(config.get("kind"))
    except OSError as error:
        raise DataError("{path} cannot be read: {error}", "", "name the folder of a fit stage", path=file, error=error.strerror or error) from None
    except (ValueError, AttributeError) as error:
        raise DataError("{file} is damaged: {error}", "", "restore the file", file=file, error=error) from None
    if name == "luban-ngram":
        return NgramModel.load(folder)
    if name == "luban-vectors":
        return WordVectors.load(folder)
    if name == "luban-linear":
        return DictionaryTagger.load(folder) if kind == "dictionary" else LinearModel.load(folder)
    raise DataError("{file}: model_type is {found!r}, and {wanted!r} is needed here", file=file, found=name, wanted="luban-ngram, luban-vectors, luban-linear")
