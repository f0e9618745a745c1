"""Reading what a user points at: formats by content and ending, .gz and .zst of each, bad lines named.

Lines end at ``\\n`` only: JSON lines may hold U+2028 or U+0085, which Python's text mode would take for line ends.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from luban.corpus.encodings import BINARY, SAMPLE_BYTES, detect_encoding
from luban.foundation.errors import DataError

MAXIMUM_RECORD_BYTES = 16 << 20  # a longer line is set aside: it would break the promise of bounded memory
_SHOWN = 2000  # characters of a bad line that are kept with its reason
TABLES = ("jsonl", "json", "csv", "tsv", "parquet", "warc")
FORMATS = ("text", "markdown", "html", *TABLES)
_ENDINGS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet",
    ".html": "html", ".htm": "html", ".xhtml": "html", ".md": "markdown", ".markdown": "markdown", ".txt": "text", ".warc": "warc",
}  # fmt: skip
READ_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError)


@dataclass
class BadLine:
    """A record that could not be read, where it stands and why. ``line`` counts from 1."""

    file: str
    line: int
    reason: str
    text: str


OnBad = Callable[[BadLine], None]
Rows = Iterator[tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Layout:
    """How a file is written: its format (one of FORMATS, or ``binary``), encoding and compression (``""``, ``gz``, ``zst``)."""

    format: str
    encoding: str = "utf-8"
    compression: str = ""

    def text(self) -> str:
        """``jsonl, gz, gb18030``: what is worth saying about it."""
        encoding = "" if self.encoding == "utf-8" or self.format in ("parquet", "warc", BINARY) else self.encoding
        return ", ".join(part for part in (self.format, self.compression, encoding) if part)


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files named, and every file in the folders named (sorted, nothing hidden); each once, in the order given.

    Raises DataError for a path that is not there and for a folder without files.
    """
    found: dict[Path, None] = {}
    for path in paths:
        path = Path(path)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path)))
            if not inside:
                raise DataError("{path}: the folder holds no files", "", "put the texts into it, or name another", path=path)
            found |= dict.fromkeys(inside)
        elif path.exists():
            found[path] = None
        else:
            raise DataError("{path}: no such file or folder", "", "check the path; a relative one starts at the recipe's folder", path=path)
    return list(found)


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in relative.parts)


def compression_of(path: Path) -> str:
    """``gz``, ``zst`` or nothing, by the first bytes rather than the ending."""
    with path.open("rb") as stream:
        magic = stream.read(4)
    return "gz" if magic[:2] == b"\x1f\x8b" else "zst" if magic == b"\x28\xb5\x2f\xfd" else ""


def open_stream(path: Path) -> BinaryIO:
    """The file's bytes, decompressed if it is gzip or Zstandard. Raises DataError if it cannot be opened."""
    try:
        compression = compression_of(path)
        if compression == "gz":
            return gzip.open(path, "rb")  # type: ignore[return-value]
        if compression == "zst":
            raw = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)
            return io.BufferedReader(raw, 1 << 20)  # type: ignore[arg-type]
        return path.open("rb", buffering=1 << 20)
    except OSError as error:
        raise DataError("{path} cannot be read: {error}", path=path, error=error.strerror or error) from None


def recognise(path: Path) -> Layout:
    """Find out how a file is written, from its first bytes and its ending. Raises DataError if it cannot be read."""
    path = Path(path)
    try:
        compression = compression_of(path)
        with open_stream(path) as stream:
            sample = _read_full(stream, SAMPLE_BYTES)
    except READ_ERRORS as error:
        raise DataError("{path} cannot be read: {error}", path=path, error=error) from None
    suffixes = [s.lower() for s in path.suffixes]
    while suffixes and suffixes[-1] in (".gz", ".zst", ".gzip", ".zstd"):
        suffixes.pop()
    named = _ENDINGS.get(suffixes[-1], "") if suffixes else ""
    if sample.startswith(b"PAR1"):
        return Layout("parquet", compression=compression)
    if sample.startswith(b"WARC/"):
        return Layout("warc", compression=compression)
    encoding = detect_encoding(sample)
    if encoding == BINARY:
        return Layout(BINARY, BINARY, compression)
    if named in ("parquet", "warc"):
        raise DataError("{path} is not a {format} file", "its first bytes are not those of one", "check how it was made, or rename it", path=path, format=named)
    return Layout(_format(named, sample.decode(encoding, "ignore").lstrip("\ufeff")), encoding, compression)


def _read_full(stream: BinaryIO, size: int) -> bytes:
    parts = []
    while size > 0 and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _format(named: str, text: str) -> str:
    """The format of a decoded sample, where the ending says ``named`` (or nothing)."""
    start = text.lstrip()
    if named in ("csv", "tsv", "markdown", "html"):
        return named
    if named in ("json", "jsonl"):
        single = named == "json" and "\n" not in text.strip()
        return "json" if start.startswith("[") or single or (named == "json" and not _object_a_line(text)) else "jsonl"
    if start[:300].lower().startswith(("<!doctype html", "<html")) or (start[:5] == "<?xml" and "<html" in start[:1000].lower()):
        return "html"
    if named:
        return named
    if start.startswith("{") and _object_a_line(text):
        return "jsonl"
    return "json" if start[:100].replace(" ", "").replace("\n", "").startswith("[{") else "text"


def _object_a_line(text: str) -> bool:
    """True if the first line that holds something is a whole JSON object."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return first.startswith("{") and "\n" not in text.strip()  # one huge line, cut by the sample


def read_lines(stream: BinaryIO, path: str, on_bad: OnBad, *, encoding: str = "utf-8", first_line: int = 1, size: int | None = None) -> Iterator[tuple[int, str]]:
    """Decoded lines with their numbers, cut at ``\\n`` alone; a line that is not valid or too long goes to ``on_bad``.

    ``size`` ends the reading after that many bytes: with a stream that starts at a line, one piece of a large file.
    """
    if encoding.startswith("utf-16"):
        yield from _wide_lines(stream, path, on_bad, encoding)
        return
    number, left = first_line - 1, size
    while left is None or left > 0:
        raw = stream.readline(MAXIMUM_RECORD_BYTES)
        if not raw:
            return
        number += 1
        taken = len(raw)
        if taken == MAXIMUM_RECORD_BYTES and not raw.endswith(b"\n"):
            taken += _skip_line(stream)
            on_bad(BadLine(path, number, f"longer than {MAXIMUM_RECORD_BYTES} bytes", raw[:_SHOWN].decode(encoding, "replace")))
        else:
            if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                raw = raw[3:]
            try:
                yield number, raw.decode("utf-8" if encoding == "utf-8-sig" else encoding).removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                on_bad(BadLine(path, number, f"not valid {encoding} (byte {error.start} of the line)", raw[:_SHOWN].decode(encoding, "replace").rstrip("\r\n")))
        if left is not None:
            left -= taken


def _skip_line(stream: BinaryIO) -> int:
    skipped = 0
    while part := stream.readline(MAXIMUM_RECORD_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _wide_lines(stream: BinaryIO, path: str, on_bad: OnBad, encoding: str) -> Iterator[tuple[int, str]]:
    """Lines of UTF-16, where a line end is two bytes and a pair may be broken."""
    text = io.TextIOWrapper(stream, encoding, errors="replace", newline="\n")
    number = 0
    while line := text.readline(MAXIMUM_RECORD_BYTES):
        number += 1
        line = line.removeprefix("\ufeff") if number == 1 else line
        if len(line) == MAXIMUM_RECORD_BYTES and not line.endswith("\n"):
            while (more := text.readline(MAXIMUM_RECORD_BYTES)) and not more.endswith("\n"):
                pass
            on_bad(BadLine(path, number, f"longer than {MAXIMUM_RECORD_BYTES} characters", line[:_SHOWN]))
        elif "\ufffd" in line:
            on_bad(BadLine(path, number, f"not valid {encoding}", line[:_SHOWN]))
        else:
            yield number, line.removesuffix("\n").removesuffix("\r")


def read_rows(path: Path, *, on_bad: OnBad, layout: Layout | None = None) -> Rows:
    """Each record of a table (jsonl, a JSON array, csv, tsv, parquet, WARC) with its line or row number, counted from 1.

    A record that cannot be read is handed to ``on_bad`` and the reading goes on. Raises DataError if the file is no table.
    """
    path = Path(path)
    layout = layout or recognise(path)
    readers = {"jsonl": _jsonl_rows, "json": _json_rows, "csv": _csv_rows, "tsv": _csv_rows, "parquet": _parquet_rows, "warc": _warc_rows}
    if layout.format not in readers:
        raise DataError("{path} holds {format}, not records", "", "records are read from jsonl, json, csv, tsv and parquet files", path=path, format=layout.format)
    try:
        yield from readers[layout.format](path, layout, on_bad)
    except READ_ERRORS as error:
        raise DataError("{path} is damaged or cut off: {error}", "", "fetch or write the file again", path=path, error=error) from None


def _jsonl_rows(path: Path, layout: Layout, on_bad: OnBad) -> Rows:
    with open_stream(path) as stream:
        yield from json_lines(read_lines(stream, str(path), on_bad, encoding=layout.encoding), str(path), on_bad)


def json_lines(lines: Iterator[tuple[int, str]], path: str, on_bad: OnBad) -> Rows:
    """Parse lines as JSON objects; empty lines are passed over."""
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            on_bad(BadLine(path, number, f"not valid JSON: {_brief(error)}", line[:_SHOWN]))
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            on_bad(BadLine(path, number, f"a JSON {_json_type(row)}, not an object", line[:_SHOWN]))


def _brief(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (character {error.pos})"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:80]


def _json_type(value: Any) -> str:
    return {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


def _json_rows(path: Path, layout: Layout, on_bad: OnBad) -> Rows:
    """The objects of one JSON array, or a single object (or the array of objects that it holds), parsed piece by piece."""
    from luban.corpus.json_array import array_items

    with open_stream(path) as stream:
        for number, row, raw in array_items(stream, layout.encoding, str(path), on_bad, MAXIMUM_RECORD_BYTES):
            if isinstance(row, dict):
                yield number, row
            else:
                on_bad(BadLine(str(path), number, f"a JSON {_json_type(row)}, not an object", raw[:_SHOWN]))


def _csv_rows(path: Path, layout: Layout, on_bad: OnBad) -> Rows:
    with open_stream(path) as stream:
        lines = read_lines(stream, str(path), on_bad, encoding=layout.encoding)
        numbers: list[int] = [0]

        def feed() -> Iterator[str]:
            for number, line in lines:
                numbers[0] = number
                yield line + "\n"

        fed = feed()
        header_line = next(fed, "")
        delimiter = "\t" if layout.format == "tsv" else max(",;\t|", key=header_line.count)
        csv.field_size_limit(MAXIMUM_RECORD_BYTES)
        columns = next(csv.reader([header_line.rstrip("\n")], delimiter=delimiter), [])
        quoting = csv.QUOTE_NONE if layout.format == "tsv" and '"' not in header_line else csv.QUOTE_MINIMAL
        if columns and not _is_header(columns):
            columns = [f"column_{index}" for index in range(1, len(columns) + 1)]
            fed = itertools.chain([header_line], fed)
            numbers[0] = 0
        rows = csv.reader(fed, delimiter=delimiter, strict=True, quoting=quoting)
        while True:
            start = numbers[0] + 1
            try:
                values = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                on_bad(BadLine(str(path), start, f"not valid csv: {error} (up to line {numbers[0]})", ""))
                continue
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(columns):
                on_bad(BadLine(str(path), start, f"{len(values)} fields where the header has {len(columns)}", delimiter.join(values)[:_SHOWN]))
            else:
                yield start, dict(zip(columns, values, strict=True))


def _is_header(cells: list[str]) -> bool:
    """True if the first line names columns: short, distinct, and neither numbers nor sentences."""
    names = [cell.strip() for cell in cells]
    return len(set(names)) == len(names) and all(0 < len(n) <= 40 and n.count(" ") <= 3 and not n[0].isdigit() and not re.search("[.!?,;。！？，；]", n) for n in names)


def _parquet_rows(path: Path, layout: Layout, on_bad: OnBad) -> Rows:
    if layout.compression:
        raise DataError("{path}: a compressed parquet file cannot be read", "parquet compresses inside", "unpack it first", path=path)
    yield from parquet_rows(path, None, 1)


def parquet_rows(path: Path, groups: list[int] | None, first_row: int) -> Rows:
    """Rows of some row groups (all if None) with their numbers. Raises DataError if the file is damaged."""
    try:
        with pq.ParquetFile(path) as parquet:
            number = first_row - 1
            for batch in parquet.iter_batches(batch_size=256, row_groups=groups, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowException as error:
        raise DataError("{path} is a damaged parquet file: {error}", "", "fetch or write the file again", path=path, error=error) from None


def _warc_rows(path: Path, layout: Layout, on_bad: OnBad) -> Rows:
    """The HTML responses of a web archive as rows of ``url`` and ``html``."""
    from luban.corpus.html import decode_html, warc_responses

    with open_stream(path) as stream:
        for number, url, body in warc_responses(stream):
            if len(body) > MAXIMUM_RECORD_BYTES:
                on_bad(BadLine(str(path), number, f"longer than {MAXIMUM_RECORD_BYTES} bytes", url))
            else:
                yield number, {"url": url, "html": decode_html(body)}
