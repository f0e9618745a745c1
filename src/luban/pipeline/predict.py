"""Predictions for the rows of files, or for lines as they come: what `luban predict` prints and ``luban.predict`` returns."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from luban.corpus.readers import BadLine, read_rows
from luban.examples.reading import read_examples
from luban.foundation.console import warn
from luban.foundation.errors import DataError, LubanError
from luban.inference.predictor import Predictor
from luban.objectives.base import load_objective
from luban.objectives.tasks import TaskObjective

TEXTS = (".txt", ".text", ".md")


def predict(model: str | Path | Predictor, data: Any, *, mapping: dict[str, Any] | None = None, rows: int = 32) -> list[dict[str, Any]]:
    """What a model says of each item: a file's path, one text, a list of texts or mappings, or a data frame."""
    predictor = model if isinstance(model, Predictor) else Predictor.load(model)
    if isinstance(data, Path) or (isinstance(data, str) and Path(data).is_file()):
        return predictor.predict([item for _, item in items_of(Path(data), predictor, mapping)], rows=rows)
    if isinstance(data, str):
        return predictor.predict([data], rows=rows)
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        data = data.to_dict(orient="records")
    return predictor.predict(data, rows=rows)


def predict_lines(predictor: Predictor, source: str, mapping: dict[str, Any] | None = None, rows: int = 32) -> Iterator[str]:
    """JSON lines, one an item, in order: ``{"source": "file.csv:2", …}``. ``-`` reads standard input line by line."""
    if source == "-":
        for number, line in enumerate(sys.stdin, start=1):
            if line.strip():
                yield json_line(f"-:{number}", predictor.predict([_item(line)], rows=1)[0])
        return
    pairs = items_of(Path(source), predictor, mapping)
    for (place, _), said in zip(pairs, predictor.stream((item for _, item in pairs), rows=rows), strict=True):
        yield json_line(place, said)


def json_line(place: str, said: dict[str, Any]) -> str:
    return json.dumps({"source": place, **said}, ensure_ascii=False)


def _item(line: str) -> dict[str, Any]:
    """A line of standard input: a JSON object, or text."""
    try:
        found = json.loads(line) if line.lstrip().startswith("{") else None
    except ValueError:  # a text that begins with a brace
        found = None
    return found if isinstance(found, dict) else {"text": line.rstrip("\r\n")}


def items_of(path: Path, predictor: Predictor, mapping: dict[str, Any] | None = None) -> list[tuple[str, dict[str, Any]]]:
    """(place, item) of everything in a file: read as the task's training data is, or else its rows as they are."""
    plain = Path(str(path).partition("#")[0])
    if not plain.exists():
        raise DataError("{path}: no such file", "", "check the path", path=plain)
    if plain.suffix in TEXTS and mapping is None:
        lines = plain.read_text(encoding="utf-8", errors="replace").split("\n")
        return [(f"{plain.name}:{number}", {"text": line}) for number, line in enumerate(lines, start=1) if line.strip()]
    objective = _objective(predictor)
    if objective is not None:
        try:
            found = read_examples([path], objective.reads, mapping)
        except LubanError:
            if mapping:
                raise
        else:
            _say_bad(found.bad)
            return [(example.source, objective.item_of(example)) for example in found.examples]
    bad: list[BadLine] = []
    rows = [(f"{plain.name}:{number}", _renamed(row, mapping)) for number, row in read_rows(plain, on_bad=bad.append)]
    _say_bad(bad)
    return rows


def _objective(predictor: Predictor) -> TaskObjective | None:
    try:
        found = load_objective(predictor.task)
    except LubanError:
        return None
    return found if isinstance(found, TaskObjective) else None


def _renamed(row: dict[str, Any], mapping: dict[str, Any] | None) -> dict[str, Any]:
    """A row with the columns that ``mapping`` names under the names the model reads."""
    return {**row, **{name: row[column] for name, column in (mapping or {}).items() if isinstance(column, str) and column in row}}


def _say_bad(bad: Sequence[BadLine] | Iterable[BadLine]) -> None:
    for line in list(bad)[:5]:
        warn("{place} is left out: {reason}", place=f"{line.file}:{line.line}", reason=line.reason)
