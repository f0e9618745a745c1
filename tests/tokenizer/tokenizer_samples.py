"""Small real text and tokenizers learned from it, for the tests of several rooms."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq

import luban
from luban.corpus.documents import Document, documents_table
from luban.tokenizer import templates
from luban.tokenizer.algorithms import Plan, learn
from luban.tokenizer.tokenizer import Tokenizer

DATA = Path(luban.__file__).parent / "recipes" / "quickstart" / "data"


def english(characters: int = 200_000) -> list[str]:
    text = (DATA / "shakespeare.txt").read_text(encoding="utf-8")[:characters]
    return [text[start : start + 4000] for start in range(0, len(text), 4000)]


def chinese(count: int = 400) -> list[str]:
    with gzip.open(DATA / "poems.jsonl.gz", "rt", encoding="utf-8") as stream:
        return [json.loads(next(stream))["text"] for _ in range(count)]


def tokenizer_of(algorithm: str, size: int = 2000, texts: list[str] | None = None, **options: object) -> Tokenizer:
    texts = texts or english() + chinese()
    core, named = learn(Plan(algorithm, size, **options), lambda: iter(texts))
    return Tokenizer(core, {"tokenizer_class": "PreTrainedTokenizerFast", **named, "chat_template": templates.CHATML})


def write_corpus(folder: Path, **splits: list[tuple[str, str]]) -> Path:
    """A curated corpus on disk: ``write_corpus(folder, train=[("en", text), …], validation=[…])``."""
    for split, items in splits.items():
        (folder / "documents" / split).mkdir(parents=True)
        documents = [Document(f"{split}-{index}", text, language, f"file:{index}") for index, (language, text) in enumerate(items)]
        pq.write_table(documents_table(documents), folder / "documents" / split / "00000.parquet")
    return folder
