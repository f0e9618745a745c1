"""Small tokenizers, stores and batches for the tests of the objectives on running text."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

import luban
from luban.foundation.artifacts import Artifact
from luban.foundation.config import build
from luban.models.families import family_of
from luban.objectives.base import DataRequest, Loaders, Objective, load_objective
from luban.objectives.config import NAMES
from luban.tokenizer.algorithms import Plan, learn
from luban.tokenizer.special import STYLES
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch
from luban.tokens.writer import StoreWriter

DATA = Path(luban.__file__).parent / "recipes" / "quickstart" / "data"
SMALL = {"layers": 1, "hidden_size": 32, "heads": 2, "feed_forward_size": 64}


@cache
def texts() -> list[str]:
    """Shakespeare's speeches and Chinese poems."""
    english = (DATA / "shakespeare.txt").read_text(encoding="utf-8")[:60_000]
    with gzip.open(DATA / "poems.jsonl.gz", "rt", encoding="utf-8") as stream:
        chinese = [json.loads(next(stream))["text"] for _ in range(60)]
    return [english[start : start + 600] for start in range(0, len(english), 600)] + chinese


@cache
def tokenizer_of_style(style: str, size: int = 900) -> Tokenizer:
    core, named = learn(Plan(STYLES[style].algorithm, size, style=style), lambda: iter(texts()))
    return Tokenizer(core, {"tokenizer_class": "PreTrainedTokenizerFast", **named})


def write_store(folder: Path, tokenizer: Tokenizer, documents: list[str], name: str = "tokens") -> Artifact:
    """An encoded corpus whose training and validation split hold the same documents."""
    for split in ("train", "validation"):
        facts = {"tokenizer": tokenizer.fingerprint(), "end_of_text_id": tokenizer.end_of_text_id, "begin_of_text_id": tokenizer.begin_of_text_id, "shard_tokens": 10_000}
        writer = StoreWriter(folder / name / split, vocabulary_size=tokenizer.vocabulary_size, shard_tokens=10_000, facts=facts)
        for number, text in enumerate(documents):
            writer.add(tokenizer.encode(text), language="", identity=f"{number}", size_bytes=len(text.encode()))
        writer.finish()
    return Artifact(folder / name, {"kind": "encode", "licences": []})


def shape_of(architecture: str, tokenizer: Tokenizer, **more: Any) -> Any:
    fields = {**SMALL, "vocabulary_size": tokenizer.vocabulary_size, "maximum_positions": 512, **more}
    known = {name: value for name, value in fields.items() if value is not None}
    return build(family_of(architecture).shape, {"architecture": architecture, **known}).resolved()


def open_objective(
    folder: Path, style: str, architecture: str, *, name: str, documents: list[str] | None = None, length: int = 64, rows: int = 8,
    seed: int = 5, packing: str = "auto", shape: dict[str, Any] | None = None, **settings: Any,
) -> tuple[Objective, Loaders, DataRequest]:  # fmt: skip
    """An objective with its loaders over a store of ``documents``."""
    objective = load_objective(build(NAMES[name], {"name": name, **settings}))
    plain = tokenizer_of_style(style)
    tokenizer = objective.adapt_tokenizer(plain)
    store = write_store(folder, plain, texts() if documents is None else documents)
    given = {
        "data": [store], "validation": [], "replay": [], "replay_share": 0.0, "tokenizer": tokenizer,
        "shape": shape_of(architecture, tokenizer, **(shape or {})), "sequence_length": length, "rows_per_step": rows, "examples_per_step": 8,
        "seed": seed, "packing": packing, "validation_share": 0.05, "mapping": {}, "mixture": [], "work": folder,
    }  # fmt: skip
    request = DataRequest(**given)
    return objective, objective.loaders(request), request


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches are equal, number by number."""
    names = ("inputs", "targets", "weights", "segments", "positions", "source", "source_segments", "prefix")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all((a is None and b is None) or (a is not None and b is not None and a.shape == b.shape and bool((a == b).all())) for a, b in pairs)


def segments_of(batch: Batch) -> torch.Tensor:
    """The segments of a batch [rows, seq], written out where every row is one piece."""
    return torch.zeros_like(batch.inputs) if batch.segments is None else batch.segments


def rows_of(batch: Batch) -> list[list[torch.Tensor]]:
    """The places of each piece in each row."""
    return [[(row == number).nonzero().squeeze(1) for number in row[row >= 0].unique()] for row in segments_of(batch)]
