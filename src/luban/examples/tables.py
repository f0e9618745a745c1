"""Texts with a class, several classes or a number: from tables, from one file a class, and from lines that start with ``__label__``."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luban.examples import columns as known
from luban.examples.notes import Notes, check_text
from luban.examples.records import Table, column, lines_of
from luban.examples.tasks import LabeledText

PARTS = ("text", "pair", "label", "labels", "separator")
_SEPARATORS = ("|", ";", "；", ",", "，", "、")
_MISSING = {"", "-", "nan", "none", "null", "n/a", "<na>"}


def recognise(table: Table, task: str) -> dict[str, Any] | None:
    """Which columns hold the text, the second text and the label, or None where there is no text."""
    rows = table.sample()
    facts = known.facts_of(rows, table.columns)
    pair = known.pair_by_name(table.columns, known.PAIRS)
    found: dict[str, Any] = {}
    if pair and all(_is_text(facts[name]) for name in pair):
        found |= {"text": pair[0], "pair": pair[1]}
    else:
        named = known.by_name([name for name in table.columns if _is_text(facts[name])], known.TEXTS)
        text = named or known.longest_text(facts, *(name for name in table.columns if known.normalised(name) in known.LABELS))
        if text is None:
            return None
        found["text"] = text
    used = tuple(found.values())
    if label := _label_column(table, facts, rows, task, used):
        found["label"] = label
    return found


def _is_text(fact: known.Facts) -> bool:
    return fact.texts * 2 >= max(1, fact.filled) and fact.length > 0


def _label_column(table: Table, facts: dict[str, known.Facts], rows: list[dict], task: str, used: tuple[str, ...]) -> Any:
    free = [name for name in table.columns if name not in used and facts[name].filled]
    if task == "regression":
        numeric = [name for name in free if facts[name].numbers == facts[name].filled]
        named = known.by_name(numeric, known.SCORES)
        others = [name for name in numeric if not (facts[name].running and facts[name].filled > 10 and facts[name].whole)]
        return named or (others[-1] if others else None)
    if task == "multi_label":
        named = known.by_name(free, ("labels", *known.LABELS))
        if named is None:
            flags = [
                name
                for name in free
                if facts[name].numbers == facts[name].filled and {known.number(row.get(name)) for row in rows} <= {0.0, 1.0, None}
            ]
            if len(flags) > 1:
                return flags
        return named or known.class_column(facts, len(rows), *used)
    plain = [name for name in free if not any(isinstance(row.get(name), dict) for row in rows[:20])]
    named = known.by_name(plain, known.LABELS)
    if named and facts[named].distinct > 0.5 * facts[named].filled and facts[named].filled > 20:
        return known.class_column(facts, len(rows), *used) or named  # a name such as "title" or "target" over free text
    return named or known.class_column(facts, len(rows), *used)


def examples(table: Table, mapping: dict[str, Any], task: str, notes: Notes) -> list[LabeledText]:
    """Texts with their labels. Rows without a text, or without a label where the file has labels, are set aside."""
    texts = [column(table, name, "text") for name in (mapping["text"] if isinstance(mapping["text"], list) else [mapping["text"]])]
    pair = column(table, mapping["pair"], "pair") if mapping.get("pair") else None
    label = mapping.get("label")
    labels = [column(table, name, "label") for name in (label if isinstance(label, list) else [label])] if label is not None else []
    separator = (mapping.get("separator") or _separator(table, labels)) if task == "multi_label" else ""
    found = []
    for line, row in table.rows:
        try:
            parts = [check_text(row.get(name)) for name in texts if len(texts) == 1 or str(row.get(name) or "").strip()]
            text = check_text("\n".join(parts)).strip()
            second = check_text(row.get(pair), "second text").strip() if pair else ""
            value = notes.answer(lambda row=row: _target(row, labels, task, separator, mapping.get("labels") or {})) if labels else None
        except ValueError as error:
            notes.set_aside(table.path, line, str(error), row)
            continue
        found.append(LabeledText(text, second, value, f"{table.path}:{line}"))
    return found


def _target(row: dict, labels: list[str], task: str, separator: str, names: dict) -> str | float | list[str]:
    if task == "regression":
        value = known.number(row.get(labels[0]))
        if value is None:
            raise ValueError(
                f"the target {str(row.get(labels[0]))[:40]!r} is no number" if is_filled(row.get(labels[0])) else "the target is missing"
            )
        return value
    if task == "multi_label":
        if len(labels) > 1:  # one column a class
            return [rename(name, names) for name in labels if known.number(row.get(name)) not in (None, 0.0) or row.get(name) is True]
        return [name for item in listed(row.get(labels[0]), separator) if (name := class_name(item, names)) is not None]
    value = row.get(labels[0])
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list | dict):
        raise ValueError(f"the label is a {type(value).__name__}, not one class (several classes are the task multi_label)")
    name = class_name(value, names)
    if name is None:
        raise ValueError("the label is missing")
    return name


def is_filled(value: Any) -> bool:
    """Whether a cell holds something that could be a label."""
    return value is not None and str(value).strip().lower() not in _MISSING


def class_name(value: Any, names: dict | None = None) -> str | None:
    """A label as text: whole numbers without a decimal point, renamed as the mapping says; None where it is missing."""
    if not is_filled(value):
        return None
    if isinstance(value, bool):
        name = "true" if value else "false"
    elif (figure := known.number(value)) is not None and figure == int(figure) and ("." in str(value) or not isinstance(value, str)):
        name = str(int(figure))
    else:
        name = str(value).strip()
    return rename(name, names or {})


def rename(name: str, names: dict) -> str:
    """The name that the mapping's ``labels`` give to a label; keys may be numbers."""
    for key, new in names.items():
        if str(key) == name:
            return str(new)
    return name


def listed(value: Any, separator: str) -> list[Any]:
    """A cell as a list: a list, JSON or Python text of one, or names with a separator between them."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, dict):  # {"label": true}
        return [name for name, flag in value.items() if flag]
    text = str(value).strip()
    if text[:1] in "[(" and text[-1:] in "])":
        for parse in (json.loads, ast.literal_eval):
            try:
                parsed = parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(parsed, list | tuple):
                return list(parsed)
    return [part.strip() for part in text.split(separator)] if separator else [text]


def _separator(table: Table, labels: list[str]) -> str:
    """The mark that splits cells into names which come back elsewhere; the first in the usual order."""
    if len(labels) != 1:
        return ""
    cells = [str(row.get(labels[0])) for row in table.sample(1000) if isinstance(row.get(labels[0]), str)]
    whole = set(cells)
    for mark in _SEPARATORS:
        parts = [part.strip() for cell in cells if mark in cell for part in cell.split(mark)]
        if parts and (len(set(parts)) < len(parts) or set(parts) & whole or len(cells) < 5):
            return mark
    return ""


def from_sentences(path: Path, task: str, names: dict, notes: Notes) -> list[LabeledText]:
    """fastText's lines: ``__label__name text``."""
    found = []
    for line, text in lines_of(path, notes):
        if not text.strip():
            continue
        marks = re.match(r"((?:__label__\S+\s*)+)", text)
        try:
            if not marks:
                raise ValueError("the line does not start with __label__")
            labels = [rename(name, names) for name in re.findall(r"__label__(\S+)", marks[1])]
            if task != "multi_label" and len(labels) > 1:
                raise ValueError("the line has several labels (the task multi_label takes them)")
            rest = check_text(text[marks.end() :]).strip()
        except ValueError as error:
            notes.set_aside(path, line, str(error), text)
            continue
        found.append(LabeledText(rest, "", labels if task == "multi_label" else labels[0], f"{path}:{line}"))
    return found


def class_of_files(files: Sequence[Path]) -> dict[Path, str]:
    """The class that each of several text files stands for: its folder, else what tells its name apart from the others'."""
    folders = {file.parent.name for file in files}
    if len(folders) > 1 and len(files) > len(folders):
        return {file: file.parent.name for file in files}
    plain = {file: Path(file.name.removesuffix(".gz").removesuffix(".zst")) for file in files}
    for choose in (lambda name: name.suffix.lstrip("."), lambda name: name.stem):
        labels = {file: choose(name) for file, name in plain.items()}
        if len(set(labels.values())) == len(files) and all(labels.values()):
            return labels
    return {file: f"{file.parent.name}/{plain[file].stem}" for file in files}


def from_lines(path: Path, label: str | None, notes: Notes, whole: bool) -> list[LabeledText]:
    """Each line of a file (the whole file if ``whole``) as a text of one class."""
    lines = lines_of(path, notes)
    if whole:
        lines = [(1, "\n".join(text for _, text in lines))]
    found = []
    for line, text in lines:
        if not whole and not text.strip():
            continue  # empty lines between texts hold nothing
        try:
            found.append(LabeledText(check_text(text).strip(), "", label, f"{path}:{line}"))
        except ValueError as error:
            notes.set_aside(path, line, str(error), text)
    return found
