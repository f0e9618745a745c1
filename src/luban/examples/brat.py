"""brat's standoff: a text and, beside it, an ``.ann`` file of entities (``T``) and relations (``R``) (https://brat.nlplab.org/standoff.html)."""

from __future__ import annotations

import re
from pathlib import Path

from luban.corpus.readers import READ_ERRORS, open_stream, recognise
from luban.examples.notes import Notes, check_text
from luban.examples.records import lines_of
from luban.examples.spans import SpanError, fit, overlap
from luban.examples.tables import rename
from luban.examples.tasks import TaggedText
from luban.foundation.errors import DataError

PARTS = ("labels",)
_ENTITY = re.compile(r"(T\S+)\t(\S+) ([\d ;]+)(?:\t(.*))?$")
_RELATION = re.compile(r"(R\S+)\t(\S+) \S+?:(\S+) \S+?:(\S+)\s*$")


def example(path: Path, names: dict, notes: Notes) -> list[TaggedText]:
    """The document of a ``.txt`` or ``.ann`` file, as one example. Spans in several pieces are refused by name; the text stays."""
    text_path, marks = path.with_suffix(".txt"), path.with_suffix(".ann")
    for file in (text_path, marks):
        if not file.exists():
            raise DataError(
                "{path}: its other half {file} is missing",
                "brat writes a text and its annotations side by side",
                "put it beside",
                path=path,
                file=file.name,
            )
    try:
        with open_stream(text_path) as stream:
            raw = stream.read().decode(recognise(text_path).encoding).removeprefix("\ufeff")
        text = check_text(raw)
    except (*READ_ERRORS, UnicodeDecodeError, ValueError) as error:
        notes.set_aside(text_path, 1, str(error))
        return []
    lines = lines_of(marks, notes)
    if "\r\n" in text and not _agree(text, lines) and _agree(text.replace("\r\n", "\n"), lines):
        text = text.replace("\r\n", "\n")  # the positions were counted with one character a line end
    found = TaggedText(text, [], source=str(text_path))
    places: dict[str, int] = {}
    for number, line in lines:
        if not (matched := _ENTITY.match(line)):
            if line.startswith("T"):
                notes.set_aside(marks, number, "not an entity as brat writes one", line)
            continue
        identity, label, where, words = matched.groups()
        try:
            if ";" in where:
                raise SpanError(f"the span {identity} ({label}) is in several pieces ({where}), which tags cannot hold")
            start, _, end = where.strip().partition(" ")
            span = fit(text, start, end, rename(label, names), words or None, notes)
        except SpanError as error:
            notes.set_aside(marks, number, str(error), line)
            continue
        places[identity] = len(found.spans)
        found.spans.append(span)
    _relations(found, lines, places, names, marks, notes)
    notes.count("annotations unused", sum(line[:1] in set("EAMN#*") for _, line in lines))
    notes.count("spans empty", int(not found.spans))
    notes.count("spans overlapping", overlap(found.spans))
    return [found]


def _relations(found: TaggedText, lines: list[tuple[int, str]], places: dict[str, int], names: dict, marks: Path, notes: Notes) -> None:
    known = {matched[1] for _, line in lines if (matched := re.match(r"(T\S+)\t", line))}
    for number, line in lines:
        if not line.startswith("R"):
            continue
        matched = _RELATION.match(line)
        if not matched or not {matched[3], matched[4]} <= known:
            notes.set_aside(
                marks,
                number,
                "a relation between entities that the file does not have" if matched else "not a relation as brat writes one",
                line,
            )
        elif matched[3] in places and matched[4] in places:
            found.relations.append((places[matched[3]], places[matched[4]], rename(matched[2], names)))
        else:
            notes.count("relations lost")


def _agree(text: str, lines: list[tuple[int, str]]) -> bool:
    """Whether the first spans hold their words."""
    found = [matched.groups() for _, line in lines if (matched := _ENTITY.match(line)) and ";" not in matched[3] and matched[4]][:50]
    return bool(found) and all(
        text[int(where.split()[0]) : int(where.split()[1])].replace("\n", " ") == words for _, _, where, words in found
    )
