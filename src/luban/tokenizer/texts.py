"""The texts of a curated corpus, as far as a tokenizer needs them (this room lies below the one that makes corpora)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from luban.foundation.errors import DataError


@dataclass(frozen=True)
class SampleText:
    """One document: ``id`` decides its lot in sampling."""

    id: str
    text: str
    language: str = ""


def read_texts(corpus: Path, split: str) -> Iterator[SampleText]:
    """Stream ``documents/SPLIT/*.parquet`` in order, one batch in memory at a time. Raises DataError for what is no corpus."""
    folder = corpus / "documents"
    if not folder.is_dir():
        raise DataError("{corpus} is not a curated corpus: it has no folder documents/", "", "make one with luban curate", corpus=corpus)
    for file in sorted((folder / split).glob("*.parquet")):
        try:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(batch_size=512, columns=["id", "text", "language"], use_threads=False):
                    for row in batch.to_pylist():
                        yield SampleText(row["id"], row["text"], row["language"])
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise DataError("{file} cannot be read as documents: {error}", "", "curate the corpus again", file=file, error=error) from None
