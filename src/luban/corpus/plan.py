"""What there is to read, cut into units of work: the same units however many processes work on them.

A unit is a byte range of a large file that can be cut at line ends, some row groups of a parquet file, one large
file that cannot be cut, or many small files together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from luban.corpus.config import CurateConfig
from luban.corpus.encodings import BINARY
from luban.corpus.readers import READ_ERRORS, TABLES, BadLine, Layout, find_files, open_stream, read_rows, recognise
from luban.corpus.spool import spool_file
from luban.foundation.artifacts import write_json
from luban.foundation.errors import ConfigError, DataError, LubanError, nearest

UNIT_BYTES = 8 << 20
WHOLE_FILE_BYTES = 64 << 10
_TEXT_COLUMNS = ("text", "content", "body", "document", "article", "passage", "markdown", "html", "raw_html", "正文", "内容", "文本")
_SUPERVISED = ("messages", "conversations", "instruction", "chosen", "prompt")


@dataclass
class SourceFile:
    """One input file and how it is read. ``label`` is its path below the source that the user named."""

    path: str
    label: str
    source: str
    layout: Layout
    text_field: str = ""
    preset: str = "off"
    cut: str = "file"  # file, line, blank_line, blocks, blocks_of_lines, or the text of a separating line
    problem: str = ""  # why it cannot be read at all

    @property
    def is_table(self) -> bool:
        return self.layout.format in TABLES


@dataclass
class Unit:
    """A piece of work. ``files`` index the plan; the rest limits what is read of a single file."""

    files: list[int]
    start: int = 0
    size: int | None = None
    first_line: int = 1
    groups: list[int] | None = None
    limit: int | None = None  # records at the most
    piece: str = ""  # a spooled piece, relative to the working folder


@dataclass
class Plan:
    files: list[SourceFile]
    units: list[Unit]

    def save(self, path: Path) -> None:
        write_json(path, {"files": [asdict(file) for file in self.files], "units": [asdict(unit) for unit in self.units]})

    @classmethod
    def load(cls, path: Path) -> Plan:
        data = json.loads(path.read_bytes())
        return cls([SourceFile(**{**file, "layout": Layout(**file["layout"])}) for file in data["files"]], [Unit(**unit) for unit in data["units"]])


def make_plan(config: CurateConfig, sources: list[tuple[str, Path]], working: Path) -> Plan:
    """Look at every file and cut the work into units. Raises DataError if there is nothing to read."""
    files = [describe(path, name, root, config) for name, root in sources for path in find_files([root])]
    units: list[Unit] = []
    slices = {name: _slice(name) for name, _ in sources if "#" in name}
    for name, limit in slices.items():
        units.append(Unit([index for index, file in enumerate(files) if file.source == name], limit=limit))
    small: list[int] = []
    small_bytes = 0
    for index, file in enumerate(files):
        if file.source in slices:
            continue
        size = Path(file.path).stat().st_size
        large = size > (UNIT_BYTES // 4 if file.layout.compression else UNIT_BYTES)
        if large and not file.problem:
            if small:
                units.append(Unit(small))
                small, small_bytes = [], 0
            units += list(_cut(index, file, working, config.document_characters))
            continue
        small.append(index)
        small_bytes += size
        if small_bytes >= UNIT_BYTES or len(small) >= 10_000:
            units.append(Unit(small))
            small, small_bytes = [], 0
    return Plan(files, units + ([Unit(small)] if small else []))


def _slice(name: str) -> int:
    """``data.jsonl#500``: the first 500 records."""
    number = name.partition("#")[2]
    if not number.isdigit() or number == "0":
        raise ConfigError("sources: {name!r}: after # stands how many records to take", "", "write for example data.jsonl#500", name=name)
    return int(number)


def describe(path: Path, source: str, root: Path, config: CurateConfig) -> SourceFile:
    """Recognise one file: format, encoding, column of the text, rules, and how a plain text is cut."""
    inside = path.relative_to(root).as_posix() if root.is_dir() else ""
    label = "/".join(part for part in (root.name, inside) if part).encode("utf-8", "replace").decode()
    try:
        layout = recognise(path)
        if layout.format == BINARY:
            return SourceFile(str(path), label, source, layout, problem="not text (binary)")
        if config.format not in ("auto", layout.format):
            layout = Layout(config.format, layout.encoding, layout.compression)
        file = SourceFile(str(path), label, source, layout, preset=config.quality.preset)
        if file.is_table:
            columns, file.text_field = _find_text(path, layout, config.text_field)
            is_web = "url" in columns or "html" in file.text_field
        else:
            is_web = layout.format == "html"
            file.cut = _cut_mode(path, layout, config)
    except ConfigError:
        raise
    except LubanError as error:
        return SourceFile(str(path), label, source, Layout(BINARY), problem=error.text().splitlines()[0].replace(str(path), label))
    if file.preset == "auto":
        file.preset = "web" if is_web else "prose"
    return file


def _find_text(path: Path, layout: Layout, wanted: str) -> tuple[list[str], str]:
    """The columns of a table and the one that holds the text, judged from its first hundred rows."""
    sample: list[dict[str, Any]] = []
    bad: list[BadLine] = []
    rows = read_rows(path, on_bad=bad.append, layout=layout)
    for _, row in rows:
        sample.append(row)
        if len(sample) == 100 or sum(len(str(r)) for r in sample[-1:]) > 1 << 20:
            break
    rows.close()  # type: ignore[attr-defined]
    columns = list(dict.fromkeys(name for row in sample for name in row))
    if wanted != "auto":
        if columns and "{" not in wanted and wanted not in columns:
            raise ConfigError(
                "text_field: {file} has no column {name!r}",
                "its columns are {columns}",
                "did you mean {guess}?",
                file=path,
                name=wanted,
                columns=", ".join(columns),
                guess=nearest(wanted, columns) or "auto",
            )
        return columns, wanted
    lengths = {name: sum(len(row[name]) for row in sample if isinstance(row.get(name), str)) for name in columns}
    named = next((name for name in _TEXT_COLUMNS if lengths.get(name)), "")
    if not named and any(name in columns for name in _SUPERVISED) and columns:
        raise ConfigError(
            "{file} holds conversations or instructions (columns {columns}), not plain documents", "curate makes text for pretraining",
            "give the file to a train stage with the instruction objective, or name the column of the text in text_field", file=path, columns=", ".join(columns),
        )  # fmt: skip
    chosen = named or max(lengths, key=lambda name: lengths[name], default="")
    if sample and not lengths.get(chosen):
        raise DataError("{file}: no column holds text (columns: {columns})", "", "name it in text_field", file=path, columns=", ".join(columns) or "-")
    return columns, chosen


def _cut_mode(path: Path, layout: Layout, config: CurateConfig) -> str:
    separator = config.document_separator
    if layout.format in ("html", "markdown") and separator in ("auto", "file", "blocks"):
        return "file"
    with open_stream(path) as stream:
        head = stream.read(WHOLE_FILE_BYTES + 1)
    if separator == "auto":
        separator = "file" if len(head) <= WHOLE_FILE_BYTES else "blocks"
    if separator == "blocks":
        text = head.decode(layout.encoding, "ignore")
        has_empty_lines = any(not line.strip() for line in text.split("\n")[1:-1])
        return "blocks" if has_empty_lines else "blocks_of_lines"
    return separator


def _cut(index: int, file: SourceFile, working: Path, characters: int) -> Iterator[Unit]:
    """Units of one large file."""
    path, layout = Path(file.path), file.layout
    if layout.format == "parquet":
        yield from _row_groups(index, path)
    elif layout.format in ("jsonl", "text") and not layout.compression and not layout.encoding.startswith("utf-16") and file.cut != "file":
        yield from _byte_ranges(index, path, whole_paragraphs=file.cut in ("blocks", "blank_line"), separator=file.cut)
    elif file.cut == "file" and not file.is_table:
        yield Unit([index])
    else:
        try:
            yield from (Unit([index], piece=name) for name in spool_file(index, file, working, UNIT_BYTES, characters))
        except (DataError, *READ_ERRORS):
            yield Unit([index])  # reading it again in the unit names the place of the damage


def _row_groups(index: int, path: Path) -> Iterator[Unit]:
    with pq.ParquetFile(path) as parquet:
        meta = parquet.metadata
        row, groups, size, first = 1, [], 0, 1
        for group in range(meta.num_row_groups):
            groups.append(group)
            size += meta.row_group(group).total_byte_size
            row += meta.row_group(group).num_rows
            if size >= UNIT_BYTES:
                yield Unit([index], groups=groups, first_line=first)
                groups, size, first = [], 0, row
        if groups:
            yield Unit([index], groups=groups, first_line=first)


def _byte_ranges(index: int, path: Path, *, whole_paragraphs: bool, separator: str) -> Iterator[Unit]:
    """Ranges that end at a line end; at an empty or separating line where documents span lines."""
    total, start, first_line = path.stat().st_size, 0, 1
    with path.open("rb", buffering=1 << 20) as stream:
        while start < total:
            lines = 0
            left = UNIT_BYTES
            while left > 0 and (block := stream.read(min(1 << 20, left))):
                lines += block.count(b"\n")
                left -= len(block)
            while tail := stream.readline():
                lines += tail.endswith(b"\n")
                if not whole_paragraphs and separator in ("file", "line", "blocks_of_lines"):
                    break
                if not tail.strip() if whole_paragraphs else tail.strip() == separator.encode():
                    break
                if stream.tell() - start > 4 * UNIT_BYTES:
                    break
            end = stream.tell()
            yield Unit([index], start=start, size=end - start, first_line=first_line)
            start, first_line = end, first_line + lines
