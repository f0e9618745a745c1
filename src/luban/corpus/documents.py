"""The documents of a curated corpus, as parquet files under ``documents/{train,validation,test}/``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from luban.foundation.errors import DataError, nearest

SPLITS = ("train", "validation", "test")
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("language", pa.string()), ("source", pa.string()), ("metadata", pa.string())])


@dataclass
class Document:
    """One text. ``id`` is the hash of the text, ``source`` names its file and line (``"file.jsonl:12"``)."""

    id: str
    text: str
    language: str = ""
    source: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


def read_documents(corpus: Path, split: str) -> Iterator[Document]:
    """Stream the documents of one split in their stable order, one batch in memory at a time.

    Raises DataError if the corpus has no such split or a file in it is damaged.
    """
    for file in split_files(corpus, split):
        try:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(batch_size=512, columns=SCHEMA.names, use_threads=False):
                    for row in batch.to_pylist():
                        yield Document(row["id"], row["text"], row["language"], row["source"], json.loads(row["metadata"] or "{}"))
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise DataError("{file} cannot be read as documents: {error}", "", "curate the corpus again", file=file, error=error) from None


def split_files(corpus: Path, split: str) -> list[Path]:
    """The parquet files of one split, in order; a split that no document fell into has none."""
    if split not in SPLITS:
        raise DataError("{corpus} has no split {split!r}", "", "use {guess}", corpus=corpus, split=split, guess=nearest(split, SPLITS) or ", ".join(SPLITS))
    folder = corpus / "documents"
    if not folder.is_dir():
        raise DataError("{corpus} is not a curated corpus: it has no folder documents/", "", "make one with luban curate", corpus=corpus)
    return sorted((folder / split).glob("*.parquet"))


def documents_table(documents: Sequence[Document]) -> pa.Table:
    """Documents as one arrow table, in the order given."""
    columns = {
        "id": [d.id for d in documents],
        "text": [d.text for d in documents],
        "language": [d.language for d in documents],
        "source": [d.source for d in documents],
        "metadata": [json.dumps(d.metadata, default=str) if d.metadata else "" for d in documents],
    }
    return pa.table(columns, schema=SCHEMA)
