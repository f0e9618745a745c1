"""How files would be read: recognised format, the column of the text, three examples, the bad lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luban.corpus.config import CurateConfig
from luban.corpus.plan import SourceFile, Unit, describe
from luban.corpus.readers import BadLine
from luban.corpus.records import unit_records
from luban.foundation.console import say, warn

_FILES, _EXAMPLES, _BAD = 8, 3, 10


def preview(files: Sequence[Path]) -> None:
    """Read every file as ``curate`` would with its defaults, and show what was found."""
    config = CurateConfig(sources=[str(file) for file in files])
    described = [describe(file, str(file), file, config) for file in files]
    show_files(described)
    bad: list[BadLine] = []
    count = 0
    for _, record in unit_records(described, Unit(list(range(len(described)))), Path(), config.document_characters, bad.append):
        if count < _EXAMPLES:
            show_text(f"{record.file}:{record.line}", record.text)
        count += 1
    for line in bad[:_BAD]:
        warn("{source}: {reason}; set aside", source=f"{line.file}:{line.line}" if line.line else line.file, reason=line.reason)
    say("{records} documents, {bad} bad lines", records=count, bad=len(bad))


def show_files(files: Sequence[SourceFile]) -> None:
    """One line a file: how it was understood."""
    for file in files[:_FILES]:
        if file.problem:
            warn("{file}: {problem}; set aside", file=file.label, problem=file.problem)
        elif file.is_table:
            say("{file}: {layout}; the text is in {column!r}; rules: {preset}", file=file.label, layout=file.layout.text(), column=file.text_field, preset=file.preset)
        else:
            say("{file}: {layout}; cut by: {cut}; rules: {preset}", file=file.label, layout=file.layout.text(), cut=file.cut, preset=file.preset)
    if len(files) > _FILES:
        say("… and {count} more files", count=len(files) - _FILES)


def show_text(source: str, text: str) -> None:
    say("  {source}: {text}", source=source, text=" ".join(text[:300].split())[:120])
