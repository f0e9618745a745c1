"""The records of a file (rows of a table, pieces of a text) and the text in each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from luban.corpus.html import decode_html, extract
from luban.corpus.readers import MAXIMUM_RECORD_BYTES, BadLine, json_lines, open_stream, parquet_rows, read_lines, read_rows

if TYPE_CHECKING:
    from luban.corpus.plan import SourceFile, Unit

OnBad = Callable[[BadLine], None]
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
_HTML_START = re.compile(r"\s*(<!doctype html|<html)", re.IGNORECASE)
_LONG_PARAGRAPH = 50  # times the length of a block: then a "paragraph" is a file without empty lines, and is cut at line ends


@dataclass
class Record:
    """A text as found, before any cleaning. ``line`` is where it starts."""

    file: str
    line: int
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


def unit_records(files: list[SourceFile], unit: Unit, working: Path, characters: int, on_bad: OnBad) -> Iterator[tuple[SourceFile, Record]]:
    """Every record of a unit; what cannot be read goes to ``on_bad``, a whole file that cannot be read too."""
    from luban.corpus.spool import piece_records

    taken = 0
    for index in unit.files:
        file = files[index]
        if file.problem:
            on_bad(BadLine(file.label, 0, file.problem, ""))
            continue
        if unit.piece:
            contents = piece_records(working / unit.piece, file.label, on_bad)
        else:
            contents = file_records(file, on_bad, unit=unit, characters=characters)
        for number, content in contents:
            record = to_record(file, number, content, on_bad)
            if record is not None:
                yield file, record
                taken += 1
                if taken == unit.limit:
                    return


def file_records(file: SourceFile, on_bad: OnBad, unit: Unit | None = None, characters: int = 2000) -> Iterator[tuple[int, Any]]:
    """Line number and content (a mapping from a table, a string from a text) of each record in a file or a part of it."""
    from luban.foundation.errors import DataError

    path, format = Path(file.path), file.layout.format

    def relabelled(bad: BadLine) -> None:
        on_bad(BadLine(file.label, bad.line, bad.reason, bad.text))

    try:
        if format == "parquet":
            yield from parquet_rows(path, unit.groups if unit else None, unit.first_line if unit else 1)
        elif file.is_table and not (unit and unit.size):
            yield from read_rows(path, on_bad=relabelled, layout=file.layout)
        elif format == "html":
            yield from _whole_html(path, relabelled)
        else:
            with open_stream(path) as stream:
                yield from _from_lines(stream, file, unit, characters, relabelled)
    except DataError as error:
        relabelled(BadLine(file.label, 0, "the rest of the file cannot be read: " + error.text().splitlines()[0].replace(str(path), file.label), ""))


def _from_lines(stream: BinaryIO, file: SourceFile, unit: Unit | None, characters: int, on_bad: OnBad) -> Iterator[tuple[int, Any]]:
    start, size, first_line = (unit.start, unit.size, unit.first_line) if unit and unit.size else (0, None, 1)
    if start:
        stream.seek(start)
    lines = read_lines(stream, file.label, on_bad, encoding=file.layout.encoding, first_line=first_line, size=size)
    if file.is_table:
        yield from json_lines(lines, file.label, on_bad)
    else:
        yield from cut(lines, file.cut, characters)


def _whole_html(path: Path, on_bad: OnBad) -> Iterator[tuple[int, str]]:
    with open_stream(path) as stream:
        body = stream.read(MAXIMUM_RECORD_BYTES + 1)
    if len(body) > MAXIMUM_RECORD_BYTES:
        on_bad(BadLine(str(path), 1, f"longer than {MAXIMUM_RECORD_BYTES} bytes", ""))
    elif body.strip():
        yield 1, decode_html(body)


def cut(lines: Iterator[tuple[int, str]], mode: str, characters: int) -> Iterator[tuple[int, str]]:
    """Documents of a plain text with the line each starts on. Blocks end at the first empty line after ``characters``."""
    held: list[str] = []
    start, length = 1, 0
    longest = MAXIMUM_RECORD_BYTES if mode == "file" else _LONG_PARAGRAPH * characters
    for number, line in lines:
        empty = not line.strip()
        separating = mode not in ("file", "line", "blank_line", "blocks", "blocks_of_lines") and line.strip() == mode
        ends = (mode == "line" and held) or (mode == "blank_line" and empty) or (mode == "blocks" and empty and length >= characters) or separating
        ends = ends or (mode == "blocks_of_lines" and length >= characters) or length + len(line) > max(longest, characters)
        if ends and held:
            yield start, "\n".join(held)
            held, length = [], 0
        if separating or (empty and not held):
            continue
        if not held:
            start = number
        held.append(line)
        length += len(line) + 1
    if held:
        yield start, "\n".join(held)


def to_record(file: SourceFile, number: int, content: Any, on_bad: OnBad) -> Record | None:
    """The text of a row or piece, and what else the row says; None if it has none (then ``on_bad`` is told)."""
    if isinstance(content, str):
        return Record(file.label, number, extract(content) if file.layout.format == "html" else content)
    name = file.text_field
    if "{" in name:
        text: Any = _PLACEHOLDER.sub(lambda match: str(content.get(match[1]) or ""), name)
        used = set(_PLACEHOLDER.findall(name))
    else:
        text, used = content.get(name), {name}
    if not isinstance(text, str) or not text.strip():
        problem = "is empty" if isinstance(text, str) else "is missing" if text is None else "is not text"
        on_bad(BadLine(file.label, number, f"the column {name!r} {problem}", str(content)[:2000]))
        return None
    if _HTML_START.match(text):
        text = extract(text)
    return Record(file.label, number, text, {key: value for key, value in content.items() if key not in used and _is_plain(value)})


def _is_plain(value: Any) -> bool:
    return isinstance(value, (int, float, bool)) or (isinstance(value, str) and len(value) <= 1000)
