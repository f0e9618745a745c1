"""Which texts are scored: a deterministic sample of a split, without what the models have seen elsewhere."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luban.corpus.config import CurateConfig
from luban.corpus.documents import Document, read_documents
from luban.corpus.language import identify
from luban.corpus.plan import describe
from luban.corpus.readers import TABLES, BadLine, find_files, read_rows, recognise
from luban.corpus.records import file_records, to_record
from luban.foundation.artifacts import Artifact, Input
from luban.foundation.console import warn
from luban.foundation.errors import DataError

# Letters and digits that make a passage: a single line of a poem or a common phrase is none.
PASSAGE_CHARACTERS = {True: 10, False: 40}  # by whether the text is mostly Chinese, Japanese or Korean


@dataclass
class HeldOut:
    """The chosen documents, in the order of their ids, and what there was to choose from."""

    documents: list[Document]
    split: str
    available: int = 0
    available_bytes: int = 0
    excluded: int = 0
    notes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # message templates and their values

    @property
    def texts(self) -> list[str]:
        return [document.text for document in self.documents]

    @property
    def languages(self) -> list[str]:
        """Languages, the one with the most documents first."""
        names = [document.language for document in self.documents]
        return sorted({name for name in names if name}, key=lambda name: (-names.count(name), name))


def choose(sources: list[Input], split: str, maximum_documents: int, maximum_bytes: int, exclude: list[Input]) -> HeldOut:
    """Sample the held-out documents. Raises DataError when nothing is left to score."""
    corpora = [source for source in sources if _is_corpus(source)]
    held_out = HeldOut([], split)
    if corpora and split == "test" and not any(next(read_documents(_path(corpus), "test"), None) for corpus in corpora):
        held_out.split = "validation"
        held_out.notes.append(("the corpus has no test split; its validation split was scored, on which training may have stopped", {}))
    held_out.documents = _sample(_all_texts(sources, held_out.split), held_out, maximum_documents, maximum_bytes)
    if exclude and held_out.documents:
        _leave_out(held_out, exclude)
    if not held_out.documents:
        if held_out.excluded:
            raise DataError("no held-out document is left: each shares a passage with `exclude`", "a score on text that was trained on says nothing", "hold out more documents (split.test of the corpus)")
        raise DataError(
            "there is no held-out text to score",
            "the {split} split is empty",
            "give the corpus a test share, such as split: {example}",
            split=held_out.split,
            example="{test: 0.05}",
        )
    return held_out


def training_texts(sources: list[Input], most_bytes: int) -> tuple[list[str], bool]:
    """Texts of the corpora's train splits, and whether that was all of them. A sample is as deterministic as a held-out one."""
    texts: list[str] = []
    corpora = [source for source in sources if _is_corpus(source)]
    share = most_bytes // max(1, len(corpora))
    whole = True
    for corpus in corpora:
        found = HeldOut([], "train")
        documents = _sample(read_documents(_path(corpus), "train"), found, 1 << 62, share)
        texts += [document.text for document in documents]
        whole = whole and len(documents) == found.available
    return texts, whole


def _sample(documents: Iterable[Document], found: HeldOut, maximum_documents: int, maximum_bytes: int) -> list[Document]:
    """The documents with the smallest hashes until a limit is reached, whatever order they come in, in bounded memory."""
    heap: list[tuple[int, int, Document]] = []  # largest hash on top
    total = 0
    for number, document in enumerate(documents):
        size = len(document.text.encode("utf-8", "surrogatepass"))
        found.available += 1
        found.available_bytes += size
        mark = int.from_bytes(hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
        heapq.heappush(heap, (-mark, -number, document))
        total += size
        while len(heap) > 1 and (len(heap) > maximum_documents or total > maximum_bytes):
            total -= len(heapq.heappop(heap)[2].text.encode("utf-8", "surrogatepass"))
    chosen = [document for _, _, document in sorted(heap, key=lambda item: (-item[0], -item[1]))]
    if len(chosen) == 1 and total > maximum_bytes:
        chosen[0].text = chosen[0].text.encode("utf-8", "surrogatepass")[:maximum_bytes].decode("utf-8", "ignore")
    return chosen


def _leave_out(held_out: HeldOut, exclude: list[Input]) -> None:
    """Drop documents that share a passage with other training data. One that is shorter than a passage stays."""
    owners: dict[bool, dict[str, list[int]]] = {True: {}, False: {}}
    for index, document in enumerate(held_out.documents):
        letters = _letters(document.text)
        kind = _is_dense(letters)
        width = PASSAGE_CHARACTERS[kind]
        for start in range(len(letters) - width + 1):
            owners[kind].setdefault(letters[start : start + width], []).append(index)
    seen: set[int] = set()
    for text in _strings_in(exclude):
        letters = _letters(text)
        for kind, width in PASSAGE_CHARACTERS.items():
            for start in range(len(letters) - width + 1):
                seen.update(owners[kind].get(letters[start : start + width], ()))
    held_out.excluded = len(seen)
    held_out.documents = [document for index, document in enumerate(held_out.documents) if index not in seen]
    if seen:
        held_out.notes.append(("{count} held-out documents were left out: they share a passage with `exclude`", {"count": len(seen)}))


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).lower()


def _is_dense(letters: str) -> bool:
    return sum("\u3040" <= letter <= "\u9fff" or "\uac00" <= letter <= "\ud7a3" for letter in letters) * 2 > len(letters)


def _strings_in(sources: list[Input]) -> Iterator[str]:
    """Every string of the rows of data files (conversations nest them), or the texts of a corpus' train split."""

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            for inner in value.values():
                yield from strings(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from strings(inner)

    for source in sources:
        if _is_corpus(source):
            yield from (document.text for document in read_documents(_path(source), "train"))
            continue
        for path in find_files([_path(source)]):
            layout, bad = recognise(path), _Bad(path.name)
            if layout.format in TABLES:
                rows: Iterable[tuple[int, Any]] = read_rows(path, on_bad=bad.add, layout=layout)
            else:
                rows = (item for file in _source_files(path) for item in file_records(file, bad.add))
            for _, content in rows:
                yield from strings(content)
            bad.tell()


def _all_texts(sources: list[Input], split: str) -> Iterator[Document]:
    for source in sources:
        if _is_corpus(source):
            yield from read_documents(_path(source), split)
            continue
        for file in _source_files(_path(source)):
            bad = _Bad(file.label)
            for number, content in file_records(file, bad.add):
                record = to_record(file, number, content, bad.add)
                if record is not None and record.text.strip():
                    yield Document(f"{file.label}:{number}", record.text, identify(record.text), f"{file.label}:{number}")
            bad.tell()


def _source_files(path: Path) -> Iterator[Any]:
    """Files under a path as the corpus room reads them. Raises DataError for one that cannot be read at all."""
    config = CurateConfig(sources=[str(path)])
    for file in find_files([path]):
        described = describe(file, str(path), path, config)
        if described.problem:
            raise DataError("{file}: {problem}", "", "name files of text", file=file, problem=described.problem)
        yield described


class _Bad:
    """Counts the lines of a file that cannot be read, and says so once."""

    def __init__(self, label: str):
        self.label, self.lines = label, []

    def add(self, bad: BadLine) -> None:
        self.lines.append(bad)

    def tell(self) -> None:
        if self.lines:
            first = self.lines[0]
            warn("{file}: {count} lines could not be read, first line {line}: {reason}", file=self.label, count=len(self.lines), line=first.line, reason=first.reason)


def _is_corpus(source: Input) -> bool:
    if isinstance(source, Artifact) and source.kind != "curate":
        raise DataError("{path} is made by {kind!r}, which holds no text to score", "", "name the curate stage, or files of text", path=source.path, kind=source.kind)
    return isinstance(source, Artifact)


def _path(source: Input) -> Path:
    return source.path if isinstance(source, Artifact) else source
