"""Planted pairs, and an objective on labelled examples opened without a pipeline, for tests."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from text_lab import shape_of, tokenizer_of_style

from luban.foundation.config import build
from luban.objectives.base import DataRequest, Loaders, load_objective
from luban.objectives.config import NAMES
from luban.tokenizer.tokenizer import Tokenizer

WORDS = ["red", "blue", "green", "one", "two", "three", "cat", "dog", "sun", "moon"]


def reversed_words(number: int, seed: int = 0, longest: int = 4) -> list[tuple[str, str]]:
    """Some words, and the same words from behind."""
    rng = random.Random(seed)
    chosen = [[rng.choice(WORDS) for _ in range(rng.randint(2, longest))] for _ in range(number)]
    return [(" ".join(words), " ".join(reversed(words))) for words in chosen]


def write_pairs(folder: Path, pairs: list[tuple[str, ...]], columns: str = "input\toutput", name: str = "pairs.tsv") -> Path:
    path = folder / name
    path.write_text("\n".join([columns, *("\t".join(pair) for pair in pairs)]) + "\n", encoding="utf-8")
    return path


def request_for(folder: Path, data: Path, architecture: str, tokenizer: Tokenizer, *, length: int = 64, mapping: dict[str, Any] | None = None, share: float = 0.1, teachers: list[Path] = (), **shape: Any) -> DataRequest:
    given = {
        "data": [data], "validation": [], "replay": [], "replay_share": 0.0, "tokenizer": tokenizer, "shape": shape_of(architecture, tokenizer, **shape),
        "sequence_length": length, "rows_per_step": 8, "examples_per_step": 8, "seed": 5, "packing": "auto", "validation_share": share,
        "mapping": mapping or {}, "mixture": [], "work": folder, "teachers": list(teachers),
    }  # fmt: skip
    return DataRequest(**given)


def open_task(folder: Path, data: Path, style: str, architecture: str, *, name: str, settings: dict[str, Any] | None = None, **request: Any) -> tuple[Any, Loaders, DataRequest]:
    """A task objective with its loaders over a file."""
    objective = load_objective(build(NAMES[name], {"name": name, **(settings or {})}))
    asked = request_for(folder, data, architecture, objective.adapt_tokenizer(tokenizer_of_style(style)), **request)
    return objective, objective.loaders(asked), asked
