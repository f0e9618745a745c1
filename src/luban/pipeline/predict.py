"""Predictions for the rows of files, or for lines as they come: what `luban predict` prints and ``luban.predict`` returns."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from luban.foundation.console import track, warn
from luban.foundation.errors import DataError, LubanError
from luban.foundation.paths import named_files
from luban.inference.items import plain
from luban.inference.predictor import STREAMED, Predictor
from luban.pipeline.prediction_input import Asked, chosen_columns, item_of_line, items_of, lines_as_they_come, whole_texts

_NUMBER = re.compile("^(item 1: |第 1 项：)")
LONGEST_PATH = 4096  # characters; what is longer is a text


def predict(model: str | Path | Predictor, data: Any, *, mapping: dict[str, Any] | None = None, rows: int = 32) -> list[dict[str, Any]]:
    """What a model says of each item: a file's path, one text, a list of texts or mappings, or a data frame.

    Raises DataError, naming the item (of a file: its line), where one cannot be predicted.
    """
    predictor = model if isinstance(model, Predictor) else Predictor.load(model)
    if isinstance(data, Path) or (isinstance(data, str) and _is_path(data)):
        asked = items_of(Path(data), predictor, mapping)
        for one in asked:
            if one.item is None:
                raise DataError("{place}: {reason}", place=one.place, reason=one.problem)
        return _predicted(predictor, asked, rows)
    if isinstance(data, str):
        data = [data]
    elif hasattr(data, "to_dict") and hasattr(data, "columns"):
        data = data.to_dict(orient="records")
    elif isinstance(data, dict):
        raise DataError("the data is a mapping, not a list of them", "", "put it into a list: [{{…}}]")
    named = [whole_texts(_renamed(item, mapping)) for item in data]
    return [plain(said) for said in predictor.predict(named, rows=rows)]


def _is_path(text: str) -> bool:
    plain_path = text.rpartition("#")[0] or text
    return len(text) <= LONGEST_PATH and "\n" not in text and "\0" not in text and any(_exists(one) for path in (text, plain_path) for one in (Path(path), *named_files(path)))


def _exists(path: Path) -> bool:
    try:
        return path.exists() and str(path) not in (".", "..", "")
    except OSError:  # a name that is too long is a text
        return False


def _renamed(item: Any, mapping: dict[str, Any] | None) -> Any:
    if not mapping or not isinstance(item, dict):
        return item
    return {**item, **{name: item[column] for name, column in mapping.items() if isinstance(column, str) and column in item}}


def _predicted(predictor: Predictor, asked: Sequence[Asked], rows: int) -> list[dict[str, Any]]:
    """Predictions of items, a bounded number at a time; an error names the place of its item."""
    found: list[dict[str, Any]] = []
    for start in range(0, len(asked), STREAMED):
        some = asked[start : start + STREAMED]
        try:
            found += [plain(said) for said in predictor.predict([whole_texts(one.item) for one in some], rows=rows)]
        except LubanError as error:
            raise _placed(error, some) from None
    return found


def _placed(error: LubanError, asked: Sequence[Asked]) -> LubanError:
    """The error with the place of the item it names."""
    number = error.values.get("number")
    if not isinstance(number, int) or not 1 <= number <= len(asked):
        return error
    return DataError("{place}: {reason}", place=asked[number - 1].place, reason=error.text())


# ---- for files and streams of any size -----------------------------------------------------------------------------------


class Records:
    """Predictions one by one, with what was counted on the way. An item that cannot be predicted has a record with its error."""

    def __init__(self, predictor: Predictor, *, rows: int = 32, keep: tuple[str, ...] = (), mapping: dict[str, Any] | None = None):
        self.predictor, self.rows, self.keep, self.mapping = predictor, rows, keep, mapping
        self.count = self.failed = self.cut = 0
        self.first_error = ""

    def of_file(self, path: Path, progress: bool = False) -> Iterator[dict[str, Any]]:
        """Records of a file or folder, in its order. Raises DataError where not one of its items can be predicted."""
        asked = items_of(path, self.predictor, self.mapping)
        self.keep = chosen_columns(self.keep, asked)
        records = self._of(asked)
        yield from track(records, "predicting {path}", total=len(asked), path=path) if progress else records

    def of_texts(self, texts: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Records of texts, or of items written as JSON."""
        yield from self._of([Asked(f"--text:{number}", item_of_line(text)) for number, text in enumerate(texts, start=1)])

    def of_lines(self) -> Iterator[dict[str, Any]]:
        """Records of standard input, as its lines come."""
        for asked in lines_as_they_come():
            if self.mapping:
                asked = [Asked(one.place, _renamed(one.item, self.mapping), one.row) for one in asked]
            if self.keep == ("all",):
                for one in asked:
                    yield from self._of([one], tuple(one.row), patient=True)
            else:
                yield from self._of(asked, patient=True)

    def _of(self, asked: Sequence[Asked], keep: tuple[str, ...] | None = None, patient: bool = False) -> Iterator[dict[str, Any]]:
        for start in range(0, len(asked), STREAMED):
            some = list(self._some(asked[start : start + STREAMED]))
            failed = [f"{one.place}: {said['error']}" for one, said in some if "error" in said]
            if not patient and start == 0 and len(failed) == len(some) > 1:
                raise DataError("none of the first {count} items can be predicted; {first}", "", "say which column holds what, such as --mapping '{{text: COLUMN}}'", count=len(some), first=failed[0])
            self.first_error = self.first_error or next(iter(failed), "")
            self.count, self.failed = self.count + len(some), self.failed + len(failed)
            for one, said in some:
                self.cut += bool(said.get("cut_tokens"))
                yield {"source": one.place, **_kept(one, self.keep if keep is None else keep, said), **said}

    def _some(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, dict[str, Any]]]:
        """Some items with their predictions; where they cannot be predicted together, the bad ones are set apart."""
        waiting = [list(asked)]
        while waiting:
            some = waiting.pop()
            good = [one for one in some if one.item is not None]
            try:
                said = iter(self.predictor.predict([whole_texts(one.item) for one in good], rows=self.rows) if good else [])
            except LubanError as error:
                if len(some) == 1:
                    yield some[0], {"error": _brief(error)}
                    continue
                number = error.values.get("number")
                place = some.index(good[number - 1]) if isinstance(number, int) and 1 <= number <= len(good) else len(some) // 2
                waiting += [part for part in (some[place + 1 :], some[place : place + 1], some[:place]) if part]
                continue
            for one in some:
                yield one, plain(next(said)) if one.item is not None else {"error": one.problem}

    def say_rest(self) -> None:
        """Say what was counted. Raises DataError where some items could not be predicted: their records hold the reasons."""
        if self.cut:
            warn("{count} of {total} items are longer than the model reads: cut_tokens says by how many tokens", count=self.cut, total=self.count)
        if self.failed:
            raise DataError("{failed} of {count} items could not be predicted; the first: {first}", "their records hold the reason under error", "", failed=self.failed, count=self.count, first=self.first_error)


def _brief(error: LubanError) -> str:
    """An error of one item on one line, without the number it had among those predicted with it."""
    return _NUMBER.sub("", error.text().replace("\n", "; "))


def _kept(asked: Asked, keep: tuple[str, ...], said: dict[str, Any]) -> dict[str, Any]:
    """Columns of the input; one whose name the prediction or its place takes is called ``input_…``."""
    row = whole_texts(asked.row)
    return {f"input_{name}" if name in said or name == "source" else name: row[name] for name in keep if name in row}


def json_line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, default=str)


def csv_lines(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A table of all records: probabilities in columns of their own (``probabilities.good``), lists as JSON."""
    flat = [_flat(record) for record in records]
    columns = list(dict.fromkeys(name for record in flat for name in record))
    for values in [columns, *([record.get(name, "") for name in columns] for record in flat)]:
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(values)
        yield line.getvalue()


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict) and all(isinstance(part, str | int | float | None) for part in value.values()):
            found |= {f"{name}.{inner}": part for inner, part in value.items()}
        else:
            found[name] = json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else value
    return found
