"""Files of labelled data as records: what a file is, by its content; its rows and columns; whether it has a header."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luban.corpus.encodings import BINARY
from luban.corpus.json_array import array_items
from luban.corpus.readers import MAXIMUM_RECORD_BYTES, READ_ERRORS, Layout, open_stream, read_lines, read_rows, recognise
from luban.examples import columns as known
from luban.examples.notes import Notes
from luban.foundation.errors import ConfigError, DataError

TABLES = ("csv", "tsv", "jsonl", "json", "parquet")
CONLL_ENDINGS = {".conll", ".bio", ".iob", ".iob2", ".bioes"}
FORMATS = (*TABLES, "conll", "brat", "tmx", "two_files", "sentences", "semeval", "lines", "folders")
_TAG = re.compile(r"^(O|[BIOESLUMW]([-_].+)?)$")
_MOST_QUOTED_LINES = 200  # of one field: an unclosed quote must not swallow the rest of the file
_LARGEST_JSON = 1 << 31  # characters of one object, such as a whole SQuAD file
_SAMPLE_LINES = 400


@dataclass
class Table:
    """Rows of a file with the line each starts on. ``named`` is False where the file has no header and columns are numbered."""

    path: Path
    format: str
    rows: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    named: bool = True

    def sample(self, number: int = 300) -> list[dict[str, Any]]:
        """Rows spread over the whole table."""
        step = max(1, len(self.rows) // number)
        return [row for _, row in self.rows[::step][:number]]


def kind_of(path: Path) -> str:
    """One of FORMATS but for ``two_files`` and ``folders``, by content first and ending second; ``binary`` for what is no text."""
    layout = recognise(path)
    if layout.format == "json":  # an array; or lines that hold one array each
        lines = [line for line in _first_lines(path, layout) if line.strip()]
        return "jsonl" if len(lines) > 1 and all(line.startswith("[") and line.rstrip().endswith("]") for line in lines[:50]) else "json"
    if layout.format in ("jsonl", "parquet", "csv", BINARY):
        return layout.format
    names = [suffix.lower() for suffix in path.suffixes]
    if ".ann" in names:
        return "brat"
    lines = _first_lines(path, layout)
    filled = [line for line in lines if line.strip()]
    if ".tmx" in names or any("<tmx" in line for line in filled[:20]):
        return "tmx"
    named = CONLL_ENDINGS & set(names) and 2 * sum(len(line.split()) > 1 for line in filled) > len(filled)  # however many of its lines are broken
    if named or looks_like_conll(lines):
        return "conll"
    if any(re.search(r"<e1>.+</e1>", line) for line in filled[:4]) and not any("\t" in line for line in filled[1:2]):
        return "semeval"
    if layout.format == "tsv" or (filled and sum("\t" in line.strip() for line in filled) >= 0.9 * len(filled)):
        return "tsv"
    if ".txt" in names and path.with_suffix(".ann").exists():
        return "brat"
    if filled and sum(line.startswith("__label__") for line in filled) >= 0.9 * len(filled):
        return "sentences"
    return "lines"


def _first_lines(path: Path, layout: Layout) -> list[str]:
    lines: list[str] = []
    try:
        with open_stream(path) as stream:
            for _, line in read_lines(stream, str(path), lambda bad: None, encoding=layout.encoding):
                lines.append(line)
                if len(lines) == _SAMPLE_LINES:
                    break
    except READ_ERRORS as error:
        raise DataError("{path} is damaged or cut off: {error}", "", "fetch or write the file again", path=path, error=error) from None
    return lines


def looks_like_conll(lines: list[str]) -> bool:
    """Whether lines are words with a tag in their last column: few kinds of last column, most of them tags, words short."""
    cells = [
        line.split("\t") if "\t" in line else line.split() for line in lines if line.strip() and not line.startswith(("-DOCSTART-", "# "))
    ]
    if len(cells) < 2:
        return False
    wide = [row for row in cells if len(row) >= 2]
    if len(wide) < 0.9 * len(cells):
        return False
    tags = [row[-1].strip() for row in wide]
    short = sum(len(row[0]) <= 40 and " " not in row[0].strip() for row in wide) >= 0.95 * len(wide)
    marked = sum(bool(_TAG.match(tag)) for tag in tags)
    if (
        short
        and marked >= 0.95 * len(tags)
        and (
            any(tag[1:2] in ("-", "_") for tag in tags)
            or {"B", "I"} <= set(tags)
            or {"B", "E"} <= set(tags)
            or "O" in tags
            and len(wide) > 20
        )
    ):
        return True
    blank = sum(not line.strip() for line in lines)  # IO tags or parts of speech: sentences are short, tags few
    return (
        short
        and blank >= 1
        and len(cells) >= 2 * blank
        and len(set(tags)) <= max(3, len(tags) // 3)
        and all(re.match(r"^[A-Z][\w$.:,'`-]*$|^O$|^[^\w\s]+$", tag) for tag in tags)
    )


def is_tag(value: Any) -> bool:
    """Whether a value is a tag such as O, B-PER, I_LOC."""
    return bool(_TAG.match(str(value)))


def lines_of(path: Path, notes: Notes) -> list[tuple[int, str]]:
    """The numbered lines of a text file; undecodable ones go to ``notes.bad``."""
    path = Path(path)
    try:
        with open_stream(path) as stream:
            return list(read_lines(stream, str(path), notes.bad.append, encoding=recognise(path).encoding))
    except READ_ERRORS as error:
        raise DataError("{path} is damaged or cut off: {error}", "", "fetch or write the file again", path=path, error=error) from None


def read_table(path: Path, notes: Notes, form: str | None = None, header: bool | None = None) -> Table:
    """The rows of a csv, tsv, jsonl, json or parquet file. ``header`` overrides what is found out about the first line."""
    path = Path(path)
    form = form or kind_of(path)
    if form == "parquet":
        rows = list(read_rows(path, on_bad=notes.bad.append))
    elif form in ("json", "jsonl"):
        rows = _json_rows(path, form, notes)
    else:
        return _cells(path, form, notes, header)
    columns: dict[str, None] = {}
    for _, row in rows:
        columns |= dict.fromkeys(row)
    return Table(path, form, rows, list(columns))


def _json_rows(path: Path, form: str, notes: Notes) -> list[tuple[int, dict[str, Any]]]:
    layout = recognise(path)
    found: list[tuple[int, Any, str]] = []
    if form == "jsonl":
        for number, line in lines_of(path, notes):
            if line.strip():
                try:
                    found.append((number, json.loads(line), line))
                except (ValueError, RecursionError) as error:
                    notes.set_aside(path, number, f"not valid JSON: {getattr(error, 'msg', 'nested too deeply')}", line)
    else:
        try:
            with open_stream(path) as stream:
                found = list(array_items(stream, layout.encoding, str(path), notes.bad.append, _LARGEST_JSON))
        except READ_ERRORS as error:
            raise DataError("{path} is damaged or cut off: {error}", "", "fetch or write the file again", path=path, error=error) from None
    if len(found) == 1 and form == "json" and isinstance(found[0][1], dict):
        found = [(found[0][0], row, "") for row in _turned(found[0][1])]
    if len(found) > 1 and all(isinstance(value, str) for _, value, _ in found):
        notes.set_aside(path, 0, f"not read: a list of {len(found)} names, no records")
        return []
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, value, raw in found:
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict):
            value = {"text": value[0], **value[1]}  # spaCy's training pairs
        elif isinstance(value, list) and 2 <= len(value) <= 4 and all(isinstance(item, str | int | float) for item in value):
            value = {f"column_{place}": item for place, item in enumerate(value, start=1)}
        if isinstance(value, dict):
            rows.append((number, {str(name): item for name, item in value.items()}))
        else:
            notes.set_aside(path, number, "a JSON value that is no object", raw)
    return rows


def _turned(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one object that holds a whole table: a list a column, or pandas' ``{column: {row: cell}}``, or ``{identity: row}``."""
    inner = list(value.values())
    if len(inner) < 2:
        return [value]
    if all(
        isinstance(cells, list) and len(cells) == len(inner[0]) > 1 and not any(isinstance(cell, dict) for cell in cells) for cells in inner
    ):
        return [dict(zip(value, cells, strict=True)) for cells in zip(*inner, strict=True)]
    if all(isinstance(cells, dict) and cells and list(cells) == list(inner[0]) for cells in inner):
        if any(known.normalised(name) in known.ALL for name in value):
            return [{name: cells[row] for name, cells in value.items()} for row in inner[0]]
        return [{**({} if "id" in row else {"id": name}), **row} for name, row in value.items()]
    return [value]


def _cells(path: Path, form: str, notes: Notes, header: bool | None) -> Table:
    lines = [(number, line) for number, line in lines_of(path, notes) if line.strip()]
    if not lines:
        return Table(path, form)
    delimiter = "\t" if form == "tsv" else _delimiter([line for _, line in lines[:50]])
    # A tab-separated file seldom quotes; one that does has quoted fields in most of the lines that hold a quote at all.
    quotes = [line for _, line in lines[:2000] if '"' in line]
    quoted = sum(bool(re.search(r'(^|\t)"(?:[^"\t]|"")*"(\t|$)', line)) for line in quotes)
    plain = delimiter == "\t" and quoted * 2 <= len(quotes) and not _breaks_lines(path, lines)
    records = _plain_records(lines) if plain else _quoted_records(path, lines, delimiter, notes)
    if not records:
        return Table(path, form)
    first = records[0][1]
    named = header if header is not None else has_header(first, [cells for _, cells in records[1:400]])
    names = _distinct(first) if named else [f"column_{place}" for place in range(1, _usual_width(records) + 1)]
    rows = []
    for number, cells in records[1:] if named else records:
        if len(cells) == len(names):
            rows.append((number, dict(zip(names, cells, strict=True))))
        else:
            where = "the header has" if named else "the file has"
            notes.set_aside(path, number, f"{len(cells)} fields where {where} {len(names)}", delimiter.join(cells))
    return Table(path, form, rows, names, named)


def _delimiter(lines: list[str]) -> str:
    """The separator that stands in most lines, and as often in each as in the first."""
    return max(
        ",\t;|", key=lambda mark: (sum(mark in line for line in lines), sum(line.count(mark) == lines[0].count(mark) for line in lines))
    )


def _usual_width(records: list[tuple[int, list[str]]]) -> int:
    widths = [len(cells) for _, cells in records]
    return max(sorted(set(widths)), key=widths.count)


def _distinct(names: Iterable[str]) -> list[str]:
    """Column names, the empty one and repeated ones numbered."""
    seen: dict[str, int] = {}
    for place, name in enumerate((name.strip() for name in names), start=1):
        name = name or f"column_{place}"
        seen[name if name not in seen else f"{name}_{place}"] = place
    return list(seen)


def _breaks_lines(path: Path, lines: list[tuple[int, str]]) -> bool:
    """Whether quoted cells of a tab-separated file hold line ends: few lines are as wide as the first, and nearly all records are."""
    sample, width = lines[:2000], lines[0][1].count("\t") + 1
    if 2 * sum(line.count("\t") + 1 == width for _, line in sample) > len(sample) or not any('"' in line for _, line in sample):
        return False
    records = _quoted_records(path, sample, "\t", Notes())
    return len(records) > 1 and sum(len(cells) == width for _, cells in records) >= 0.9 * len(records)


def _plain_records(lines: list[tuple[int, str]]) -> list[tuple[int, list[str]]]:
    return [(number, line.split("\t")) for number, line in lines]


def _quoted_records(path: Path, lines: list[tuple[int, str]], delimiter: str, notes: Notes) -> list[tuple[int, list[str]]]:
    """Records of a csv file. A field may go over lines; a quote that is never closed costs its own line only."""
    csv.field_size_limit(MAXIMUM_RECORD_BYTES)
    records: list[tuple[int, list[str]]] = []
    place = 0
    while place < len(lines):
        number, text = lines[place]
        cells, taken, reason = _one_record(lines, place, delimiter)
        if cells is not None and taken > 1 and records and len(cells) != len(records[-1][1]):
            cells, taken, reason = None, 1, "a quote is opened and never closed"
        if cells is None:
            notes.set_aside(path, number, f"not valid csv: {reason}", text)
            taken = 1
        elif any(cell.strip() for cell in cells):
            records.append((number, cells))
        place += taken
    return records


def _one_record(lines: list[tuple[int, str]], place: int, delimiter: str) -> tuple[list[str] | None, int, str]:
    """The record that starts at a line, how many lines it takes, and why there is none."""
    collected: list[str] = []
    reason = "a quote is opened and never closed"
    for count, (number, line) in enumerate(lines[place : place + _MOST_QUOTED_LINES], start=1):
        if collected:  # empty lines inside quotes were dropped with the others; their number tells how many
            collected[-1] += "\n" * (number - lines[place + count - 2][0])
        collected.append(line)
        if count > 1 and '"' not in line:
            continue
        try:
            return next(csv.reader(collected, delimiter=delimiter, strict=True)), count, ""
        except csv.Error as error:
            if "unexpected end" not in str(error):
                return None, 1, str(error)
    return None, 1, reason


def has_header(first: list[str], body: list[list[str]]) -> bool:
    """Whether the first line names the columns: known names, or names that no cell below resembles."""
    cells = [cell.strip() for cell in first]
    filled = [cell for cell in cells if cell]
    if not filled or len(set(filled)) < len(filled) or any(len(cell) > 60 for cell in cells):
        return False
    named = sum(known.normalised(cell) in known.ALL for cell in filled)
    if named >= 2:
        return True
    below = [[row[place].strip() for row in body if len(row) > place] for place in range(len(cells))]
    if any(cell and cell in values for cell, values in zip(cells, below, strict=True)):
        return False  # a value that comes back in its own column is data
    if named:
        return True
    if any(len(cell) > 30 or cell.count(" ") > 3 or known.number(cell) is not None or re.search("[.!?,;。！？，；]", cell) for cell in filled):
        return False
    for cell, values in zip(cells, below, strict=True):
        if cell and values and all(known.number(value) is not None for value in values):
            return True  # a word above numbers
        if cell and len(values) >= 8 and len(set(values)) * 4 <= len(values):
            return True  # a word above classes that come back, and is none of them
    return False


def column(table: Table, value: Any, part: str) -> str:
    """The column that a mapping names: its name, or its place counted from 1. Raises ConfigError for one that is not there."""
    from luban.foundation.errors import nearest

    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= len(table.columns):
        return table.columns[value - 1]
    for candidate in table.columns:
        if str(value) == candidate:
            return candidate
    lowered = {known.normalised(name): name for name in table.columns}
    if known.normalised(str(value)) in lowered:
        return lowered[known.normalised(str(value))]
    raise ConfigError(
        "mapping: {part}: {path} has no column {value!r}", "its columns are {columns}", "did you mean {guess}? A place, counted from 1, may be written instead of a name",
        part=part, path=table.path.name, value=value, columns=", ".join(table.columns[:20]), guess=nearest(str(value), table.columns) or (table.columns or ["?"])[0],
    )  # fmt: skip
