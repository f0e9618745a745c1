"""What is to be predicted: the items of files, of folders, and of lines as they come, each with its place and its own columns."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luban.corpus.readers import BadLine, find_files
from luban.examples.notes import Notes
from luban.examples.reading import read_examples
from luban.examples.records import TABLES, kind_of, lines_of, read_table
from luban.examples.slices import Slice, parse, take
from luban.examples.tasks import LabeledText
from luban.foundation.console import say, warn
from luban.foundation.errors import ConfigError, DataError, LubanError
from luban.foundation.paths import together
from luban.inference.predictor import Predictor
from luban.objectives.base import load_objective
from luban.objectives.tasks import TaskObjective

LINES_AT_ONCE = 64 * 1024  # bytes of standard input that are read together, if they are there
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(eq=False)
class Asked:
    """Something to predict: where it stands, the item (or why there is none), and the columns of its row."""

    place: str
    item: dict[str, Any] | None
    row: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def items_of(path: Path, predictor: Predictor, mapping: dict[str, Any] | None = None) -> list[Asked]:
    """Everything in a file or folder, in its order: read as the task's training data is, or else its rows or lines as they are.

    A record that cannot be read is there with its ``problem``. Raises DataError where there is nothing, or nothing that can be read.
    """
    plain, part = parse(path)
    if len(together(plain)) == 2 and (objective := _objective(predictor)) is not None and objective.reads in ("text_pairs", "embedding"):
        read = read_examples([path], objective.reads, mapping, answers=False)
        return _with_bad([Asked(example.source, objective.item_of(example)) for example in read.examples], read.bad, {})
    files = find_files([Path(plain)])
    found: list[Asked] = []
    for file in files:
        if file.stat().st_size or len(files) == 1:
            found += _of_file(file, predictor, mapping)
    if part is not None:
        found = _sliced(found, part, plain)
    if not found:
        raise DataError("{path}: there is nothing to predict in it", "", "check the file", path=plain)
    return found


def _of_file(path: Path, predictor: Predictor, mapping: dict[str, Any] | None) -> list[Asked]:
    form = kind_of(path)
    notes = Notes()
    if form == "lines" and not mapping:
        asked = [Asked(f"{path}:{number}", {"text": line}) for number, line in lines_of(path, notes) if line.strip()]
        return _with_bad(asked, notes.bad, {})
    if form == "binary":
        raise DataError("{path} is no text that can be read", "it holds other bytes", "name a text, CSV, TSV, JSON lines, CoNLL or parquet file", path=path)
    table = read_table(path, notes, form) if form in TABLES else None
    if table is not None and not table.named and mapping and not _names_columns(mapping, table.columns):
        table = read_table(path, notes, form, True)  # the mapping knows names that the reader took for values
    rows = {f"{path}:{number}": row for number, row in table.rows if isinstance(row, dict)} if table else {}
    objective, refusal = _objective(predictor), None
    if objective is not None:
        try:
            found = read_examples([path], objective.reads, mapping, answers=False)
        except LubanError as error:
            refusal = error
        else:
            records = Counter(example.source for example in found.examples)
            return _with_bad([_asked(example, objective, rows.get(example.source, {}), records[example.source] > 1) for example in found.examples], found.bad, rows)
    if refusal is not None and (table is None or not _names_columns(mapping, table.columns)):
        raise refusal
    if table is None:
        raise DataError("{path} holds {format}, not records", "", "records are read from jsonl, json, csv, tsv and parquet files", path=path, format=form)
    if not table.named and not mapping:  # without names nothing can be read: what looks like values may be a header
        table = read_table(path, notes, form, True)
        rows = {f"{path}:{number}": row for number, row in table.rows}
    return _with_bad([Asked(place, _renamed(row, mapping), row) for place, row in rows.items()], notes.bad, rows)


def _asked(example: Any, objective: TaskObjective, row: dict[str, Any], several: bool) -> Asked:
    """An example to predict. Of a record that holds several (SQuAD's passages) the columns are what each is made of, and its identity."""
    item = objective.item_of(example)
    own = {"id": example.identity, **item} if several and getattr(example, "identity", "") else dict(item)
    return Asked(example.source, item, own if several else row)


def _objective(predictor: Predictor) -> TaskObjective | None:
    try:
        found = load_objective(predictor.task)
    except LubanError:
        return None
    return found if isinstance(found, TaskObjective) else None


def _names_columns(mapping: dict[str, Any] | None, columns: list[str]) -> bool:
    """Whether a mapping, if there is one, names columns that are there: rows without answers are read as they are."""
    return all(not isinstance(column, str) or column in columns for column in (mapping or {}).values())


def _renamed(row: dict[str, Any], mapping: dict[str, Any] | None) -> dict[str, Any]:
    """A row with the columns that ``mapping`` names under the names the model reads."""
    return {**row, **{name: row[column] for name, column in (mapping or {}).items() if isinstance(column, str) and column in row}}


def _with_bad(asked: list[Asked], bad: list[BadLine], rows: dict[str, dict[str, Any]]) -> list[Asked]:
    """The items with the records that could not be read in their places; what concerns a whole file is said."""
    known = {one.place for one in asked}
    records: dict[str, str] = {}
    for line in bad:
        if line.line:
            records.setdefault(f"{line.file}:{line.line}", line.reason)
        else:
            warn("{place} is left out: {reason}", place=line.file, reason=line.reason)
    return sorted([*asked, *(Asked(place, None, rows.get(place, {}), reason) for place, reason in records.items() if place not in known)], key=_place_order) if records else asked


def _place_order(asked: Asked) -> tuple[str, int]:
    file, _, number = asked.place.rpartition(":")
    return (file, int(number)) if number.isdigit() else (asked.place, 0)


def _sliced(asked: list[Asked], part: Slice, path: str) -> list[Asked]:
    """The slice of the items, drawn by what they say."""
    readable = [one for one in asked if one.item is not None]
    examples = [LabeledText(json.dumps(one.item, ensure_ascii=False, sort_keys=True, default=str)) for one in readable]
    number_of = {id(example): number for number, example in enumerate(examples)}
    return [readable[number_of[id(example)]] for example in take(examples, part, path)]


# ---- lines as they come --------------------------------------------------------------------------------------------------


def item_of_line(line: str) -> dict[str, Any]:
    """A line: a JSON object, or a text."""
    try:
        found = json.loads(line) if line.lstrip().startswith("{") else None
    except (ValueError, RecursionError):  # a text that begins with a brace
        found = None
    return found if isinstance(found, dict) else {"text": line.rstrip("\r\n")}


def lines_as_they_come() -> Iterator[list[Asked]]:
    """Standard input, as many lines at a time as are there, so that a slow writer has each answer at once and a fast one whole batches."""
    if sys.stdin is None:
        raise DataError("there is no standard input", "", "name a file, or give a text with --text")
    if sys.stdin.isatty():
        say("reading lines from the terminal; Ctrl-D ends them")
    first = number = 0
    damaged = 0
    for lines in _raw_lines():
        asked = []
        for raw in lines:
            number += 1
            line = raw.decode("utf-8", "replace")
            damaged += "\ufffd" in line and "\ufffd".encode() not in raw
            line = line.removeprefix("\ufeff") if number == 1 else line
            if line.strip():
                item = item_of_line(line)
                asked.append(Asked(f"-:{number}", item, item))
        first += len(asked)
        if asked:
            yield asked
    if damaged:
        warn("{count} lines were not valid UTF-8; what could not be read stands as �", count=damaged)
    if not first:
        warn("there were no lines to predict")


def _raw_lines() -> Iterator[list[bytes]]:
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError):  # a stand-in, as in a notebook or a test
        yield [line.encode("utf-8", "surrogatepass") for line in sys.stdin]
        return
    rest = b""
    while some := os.read(descriptor, LINES_AT_ONCE):
        *lines, rest = (rest + some).split(b"\n") if b"\n" in some else [rest + some]
        if lines:
            yield lines
    if rest:
        yield [rest]


# ---- cleaning ------------------------------------------------------------------------------------------------------------


def whole_texts(value: Any) -> Any:
    """Plain data without halves of characters (lone surrogates, which JSON can hold and no tokenizer reads): � in their places."""
    if isinstance(value, str):
        return _HALF.sub("\ufffd", value) if _HALF.search(value) else value
    if isinstance(value, dict):
        return {whole_texts(name): whole_texts(part) for name, part in value.items()}
    if isinstance(value, list):
        return [whole_texts(part) for part in value]
    return None if isinstance(value, float) and value != value else value  # a data frame's empty cell


def chosen_columns(keep: tuple[str, ...], asked: list[Asked]) -> tuple[str, ...]:
    """The columns to keep: those named, or all of them. Raises ConfigError for a name that no row has."""
    known = dict.fromkeys(name for one in asked for name in one.row)
    if "all" in keep and "all" not in known:
        return tuple(known)
    for name in keep:
        if name not in known:
            raise ConfigError("--keep: there is no column {name!r}", "the input has: {known}", "", name=name, known=", ".join(known) or "–")
    return keep
