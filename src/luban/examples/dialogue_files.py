"""The conversations of a file, one row each, whatever file it is: tables, JSON in several shapes, YAML, and text with names before the turns."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from luban.corpus.json_array import array_items
from luban.corpus.readers import MAXIMUM_RECORD_BYTES, READ_ERRORS, BadLine, Layout, OnBad, json_lines, open_stream, read_lines, read_rows, recognise
from luban.examples import formats
from luban.examples.dialogues import is_dialogue_file
from luban.examples.notes import Notes
from luban.examples.records import kind_of, read_table
from luban.foundation.errors import DataError

COLUMN = "dialogue"  # the name of what has none: a list among lists, a paragraph of a text
_YAML = (".yml", ".yaml")
_DEEPEST = 30  # levels of a YAML file
_LONGEST = 1 << 31  # bytes of one JSON or YAML document
_SAMPLE_LINES = 400
_SHOWN = 2000

Row = tuple[int, str, dict[str, Any]]  # (line it starts on, its key in the file or nothing, columns)


def conversation_rows(path: Path, on_bad: OnBad, named: bool = False) -> Iterator[Row]:
    """Each conversation of a file as a row; a record that is none goes to ``on_bad``. ``named``: a mapping says which column to read.

    Raises DataError for a file that holds neither records nor dialogues.
    """
    layout = recognise(path)
    try:
        if layout.format in ("text", "json", "jsonl") and _ending(path) in _YAML:
            yield from _from_documents(path, _yaml_documents(path, layout, on_bad), on_bad)
        elif layout.format == "text" and (named or is_dialogue_file(_first_lines(path, layout))):
            yield from _paragraphs(path, layout, on_bad)
        elif layout.format == "json" and kind_of(path) == "json":
            yield from _from_documents(path, _json_documents(path, layout, on_bad), on_bad)
        elif layout.format in ("json", "jsonl"):
            with open_stream(path) as stream:
                lines = map(_listed_line, read_lines(stream, str(path), on_bad, encoding=layout.encoding))
                yield from ((number, "", row) for number, row in json_lines(lines, str(path), on_bad))
        elif layout.format == "tsv":  # whose cells may be quoted, and then hold line ends
            notes = Notes()
            table = read_table(path, notes, "tsv")
            for bad in notes.bad:
                on_bad(bad)
            yield from ((number, "", row) for number, row in table.rows)
        else:
            yield from ((number, "", row) for number, row in read_rows(path, on_bad=on_bad, layout=layout))
    except READ_ERRORS as error:
        raise DataError("{path} is damaged or cut off: {error}", "", "fetch or write the file again", path=path, error=error) from None


def as_row(value: Any) -> dict[str, Any] | None:
    """One conversation as a row: an object as it is, a list of turns under the name ``dialogue``."""
    if isinstance(value, dict):
        return value
    return {COLUMN: value} if isinstance(value, list) and value and all(isinstance(item, str | dict) for item in value) else None


def expanded(value: Any, line: int) -> Iterator[tuple[int, str, Any]]:
    """The conversations that one document holds: itself, a list of them, or an object that holds them in a list or by their keys."""
    if isinstance(value, list):
        yield from ((getattr(item, "line", line), "", item) for item in value)
        return
    if not isinstance(value, dict) or formats.recognise(value):
        yield line, "", value
        return
    lists = [item for name, item in value.items() if str(name).strip().lower() in formats.MESSAGES and isinstance(item, list) and any(isinstance(one, list) for one in item)]
    rows = [item for item in value.values() if isinstance(item, list) and item and all(isinstance(one, dict) for one in item)]
    keyed = [row for item in itertools.islice(value.values(), 20) if isinstance(item, dict | list) and (row := as_row(item))]
    if lists:  # ChatterBot's corpus: {conversations: [[…], […]]}
        lines = getattr(lists[0], "lines", [])
        yield from ((lines[place] if place < len(lines) else line, "", item) for place, item in enumerate(lists[0]))
    elif keyed and 2 * sum(bool(formats.recognise(row)) for row in keyed) >= min(20, len(value)):  # CrossWOZ: {identity: {messages: […]}}
        yield from ((getattr(item, "line", line), str(name), item) for name, item in value.items())
    elif len(rows) == 1:
        yield from ((getattr(item, "line", line), "", item) for item in rows[0])
    else:
        yield line, "", value


def _from_documents(path: Path, documents: Iterator[tuple[int, Any]], on_bad: OnBad) -> Iterator[Row]:
    for start, document in documents:
        for line, name, value in expanded(document, start):
            row = as_row(value)
            if row is None:
                kind = {list: "a list of other things than turns", str: "a text", bool: "a truth value", type(None): "nothing"}.get(
                    list if isinstance(value, list) else type(value), "a number"
                )
                on_bad(BadLine(str(path), line, f"{name + ': ' if name else ''}{kind}, not an object or a list of turns", str(value)[:_SHOWN]))
            else:
                yield line, name, row


def _listed_line(numbered: tuple[int, str]) -> tuple[int, str]:
    """A line of JSON that is a list of turns, as an object that holds it."""
    number, line = numbered
    if line.lstrip().startswith("["):
        try:
            row = as_row(json.loads(line))
        except (ValueError, RecursionError):
            row = None
        if row:
            return number, json.dumps(row, ensure_ascii=False)
    return number, line


def _json_documents(path: Path, layout: Layout, on_bad: OnBad) -> Iterator[tuple[int, Any]]:
    """The elements of an array, piece by piece; or the objects that stand one behind the other."""
    with open_stream(path) as stream:
        if _first_character(path, layout) == "[":
            yield from ((line, [value]) for line, value, _ in array_items(stream, layout.encoding, str(path), on_bad, MAXIMUM_RECORD_BYTES))
            return
        text = stream.read(_LONGEST).decode(layout.encoding, "replace").lstrip("\ufeff")
    decoder, position, line = json.JSONDecoder(), 0, 1
    while rest := text[position : position + 1]:
        if rest.isspace():
            line, position = line + (rest == "\n"), position + 1
            continue
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            place = text.count("\n", 0, error.pos) + 1 if isinstance(error, json.JSONDecodeError) else line
            on_bad(BadLine(str(path), place, f"not valid JSON from here on: {getattr(error, 'msg', 'nested too deeply')}", text[position : position + _SHOWN]))
            return
        yield line, value
        line, position = line + text.count("\n", position, end), end


def _first_character(path: Path, layout: Layout) -> str:
    with open_stream(path) as stream:
        return stream.read(1 << 12).decode(layout.encoding, "ignore").lstrip("\ufeff \t\r\n")[:1]


def _first_lines(path: Path, layout: Layout) -> list[str]:
    with open_stream(path) as stream:
        return [line for _, line in itertools.islice(read_lines(stream, str(path), lambda bad: None, encoding=layout.encoding), _SAMPLE_LINES)]


def _paragraphs(path: Path, layout: Layout, on_bad: OnBad) -> Iterator[Row]:
    """A text's paragraphs, a dialogue each."""
    block: list[str] = []
    start = 1
    with open_stream(path) as stream:
        for number, line in itertools.chain(read_lines(stream, str(path), on_bad, encoding=layout.encoding), [(0, "")]):
            if line.strip():
                start = start if block else number
                block.append(line)
            elif block:
                yield start, "", {COLUMN: "\n".join(block)}
                block = []


def _ending(path: Path) -> str:
    return next((suffix for suffix in reversed([one.lower() for one in path.suffixes]) if suffix not in (".gz", ".zst", ".gzip", ".zstd")), "")


# ---- YAML ----------------------------------------------------------------------------------------------------------------


class _List(list):
    """A list with the line it starts on, and those of its items."""

    def __init__(self, line: int):
        super().__init__()
        self.line = line
        self.lines: list[int] = []


class _Object(dict):
    """An object with the line it starts on."""

    def __init__(self, line: int):
        super().__init__()
        self.line = line
        self.key: str | None = None


def _yaml_documents(path: Path, layout: Layout, on_bad: OnBad) -> Iterator[tuple[int, Any]]:
    """The documents of a YAML file, every scalar a text (a turn that says ``Yes`` or ``1963`` is no truth value or number).

    Built from the parser's events, so that nothing recurses; aliases are refused, because nested ones fill memory. What stands before
    a fault is read, the conversation with the fault and those behind it are not.
    """
    with open_stream(path) as stream:
        text = stream.read(_LONGEST).decode(layout.encoding, "replace").lstrip("\ufeff")
    documents: list[tuple[int, Any]] = []
    stack: list[_List | _Object] = []

    def put(value: Any, line: int) -> None:
        if not stack:
            documents.append((line, value))
        elif isinstance(stack[-1], _List):
            stack[-1].append(value)
            stack[-1].lines.append(line)
        elif stack[-1].key is None:
            if not isinstance(value, str):
                raise _Fault("a key that is no text", line)
            stack[-1].key = value
        else:
            stack[-1][stack[-1].key], stack[-1].key = value, None

    try:
        _build(text, stack, put)
    except (yaml.YAMLError, _Fault) as error:
        mark = getattr(error, "problem_mark", None)
        line = error.line if isinstance(error, _Fault) else mark.line + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1
        reason = str(error) if isinstance(error, _Fault) else getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        if len(stack) > 2 and isinstance(stack[1], _List):
            stack[1].pop()  # the conversation that holds the fault
        elif len(stack) == 2 and isinstance(stack[0], _List):
            stack[0].pop()
        on_bad(BadLine(str(path), line, f"not valid YAML from here on: {reason}", "\n".join(text.split("\n")[line - 1 : line + 1])[:_SHOWN]))
    yield from documents


class _Fault(ValueError):
    """What YAML allows and this reader does not."""

    def __init__(self, reason: str, line: int):
        super().__init__(reason)
        self.line = line


def _build(text: str, stack: list[_List | _Object], put: Callable[[Any, int], None]) -> None:
    """Hand every node to ``put``, containers when they begin, so that what was read before a fault is there."""
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise _Fault("an alias, which is not read: nested ones fill memory", line)
        if isinstance(event, yaml.ScalarEvent):
            put(event.value, line)
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(stack) >= _DEEPEST:
                raise _Fault("nested too deeply", line)
            made = _List(line) if isinstance(event, yaml.SequenceStartEvent) else _Object(line)
            put(made, line)
            stack.append(made)
        elif isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
