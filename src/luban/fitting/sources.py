"""What is fitted to: the train split of curated corpora, or files of text of which a share is held out by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from luban.corpus.config import CurateConfig
from luban.corpus.documents import Document, read_documents
from luban.corpus.language import identify
from luban.corpus.plan import describe
from luban.corpus.readers import BadLine, find_files
from luban.corpus.records import file_records, to_record
from luban.foundation.artifacts import Artifact, Input
from luban.foundation.console import warn
from luban.foundation.errors import DataError


class Sources:
    """Documents to fit and documents to score. A pass may be made as often as needed; nothing is kept in memory."""

    def __init__(self, inputs: list[Input], held_out: float):
        """``held_out``: share of the documents of plain files that is set aside; a corpus has its own splits."""
        self.corpora = [item for item in inputs if isinstance(item, Artifact)]
        self.paths = [item for item in inputs if not isinstance(item, Artifact)]
        self.share = held_out
        self.bad: dict[str, list[BadLine]] = {}
        for artifact in self.corpora:
            if artifact.kind != "curate":
                raise DataError(
                    "{path} is made by {kind!r}, which holds no text", "", "name a curate stage, or files of text", path=artifact.path, kind=artifact.kind
                )

    @property
    def licences(self) -> list[str]:
        return [name for artifact in self.corpora for name in artifact.licences]

    def training(self) -> Iterator[Document]:
        """The documents to fit, in a stable order."""
        for artifact in self.corpora:
            yield from read_documents(artifact.path, "train")
        yield from (document for document in self._files() if not self._is_held_out(document))

    def held_out(self) -> Iterator[Document]:
        """The documents to score: the test split of a corpus, or its validation split where that is empty."""
        for artifact in self.corpora:
            found = next(read_documents(artifact.path, "test"), None)
            yield from read_documents(artifact.path, "test" if found is not None else "validation")
        yield from (document for document in self._files() if self._is_held_out(document))

    def _is_held_out(self, document: Document) -> bool:
        digest = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64

    def _files(self) -> Iterator[Document]:
        config = CurateConfig(sources=[str(path) for path in self.paths] or ["-"])
        for path in self.paths:
            for file in find_files([Path(path)]):
                described = describe(file, str(path), Path(path), config)
                if described.problem:
                    raise DataError("{file}: {problem}", "", "name files of text", file=file, problem=described.problem)
                bad: list[BadLine] = []
                for number, content in file_records(described, bad.append):
                    record = to_record(described, number, content, bad.append)
                    if record is not None and record.text.strip():
                        yield Document(f"{described.label}:{number}", record.text, identify(record.text), f"{described.label}:{number}")
                if bad and described.label not in self.bad:
                    self.bad[described.label] = bad
                    warn(
                        "{file}: {count} lines could not be read, first line {line}: {reason}",
                        file=described.label,
                        count=len(bad),
                        line=bad[0].line,
                        reason=bad[0].reason,
                    )
