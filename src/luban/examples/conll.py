"""Words in columns, a line each, with a tag in the last: BIO, IOB1, BIOES, BILOU, BMES, IO and parts of speech.

Sentences end at a blank line; ``-DOCSTART-`` lines and comments (``# …``) are passed over. The format is that of the CoNLL shared
tasks (Tjong Kim Sang and De Meulder, 2003, https://aclanthology.org/W03-0419).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luban.examples.notes import Notes, check_text, word_ranges
from luban.examples.records import lines_of
from luban.examples.tables import rename
from luban.examples.tasks import Span, TaggedText
from luban.foundation.errors import ConfigError

PARTS = ("words", "tags", "labels")
_BEGIN, _INSIDE, _END, _SINGLE = "B", "IM", "EL", "SUW"


def examples(path: Path, mapping: dict[str, Any], notes: Notes) -> list[TaggedText]:
    """The sentences of a file. ``words`` and ``tags`` of the mapping are columns counted from 1, or from the end with -1."""
    word_column, tag_column = (_place(mapping.get(part), default, part) for part, default in (("words", 0), ("tags", -1)))
    lines = lines_of(path, notes)
    broken = {bad.line for bad in notes.bad if bad.file == str(path)}
    tabs = sum("\t" in line for _, line in lines) * 2 >= sum(bool(line.strip()) for _, line in lines)
    tag_set = {cells[tag_column].strip() for _, line in lines if len(cells := _split(line, tabs)) >= 2 and len(cells) > tag_column}
    scheme = Scheme(tag_set)
    found = []
    for sentence in _sentences(lines, tabs, tag_set):
        first, last = sentence[0][0], sentence[-1][0]
        try:
            if lost := [line for line in range(first, last + 1) if line in broken]:
                raise ValueError(f"line {lost[0]} of the sentence cannot be read")
            words, tags = [], []
            for line, cells in sentence:
                if (
                    len(cells) < 2
                    or len(cells) <= tag_column
                    or len(cells) <= word_column
                    or not cells[word_column].strip()
                    or not cells[tag_column].strip()
                ):
                    raise ValueError(f"line {line} of the sentence has no word or no tag")
                words.append(cells[word_column])
                tags.append(cells[tag_column].strip())
            text, ranges = word_ranges(words)
            check_text(text)
        except ValueError as error:
            notes.set_aside(path, first, str(error), " ".join(cells[0] for _, cells in sentence))
            continue
        spans = scheme.spans(tags, ranges, notes, mapping.get("labels") or {})
        notes.count("spans empty", int(not spans))
        found.append(TaggedText(text, spans, words=ranges, source=f"{path}:{first}"))
    return found


def _place(value: Any, default: int, part: str) -> int:
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value == 0:
        raise ConfigError(
            "mapping: {part}: {value!r} is no column of a CoNLL file", "", "count from 1, or from the end with -1", part=part, value=value
        )
    return value - 1 if value > 0 else value


def _split(line: str, tabs: bool) -> list[str]:
    return line.split("\t") if tabs and "\t" in line else line.split()


def _sentences(lines: list[tuple[int, str]], tabs: bool, tag_set: set[str]) -> Iterator[list[tuple[int, list[str]]]]:
    sentence: list[tuple[int, list[str]]] = []
    for number, line in lines:
        cells = _split(line, tabs)
        comment = line.startswith("#") and (len(cells) < 2 or " " in cells[0] or line.startswith("# ") and not tabs)
        if not line.strip() or line.startswith("-DOCSTART-"):
            if sentence:
                yield sentence
            sentence = []
        elif not comment:
            sentence.append((number, cells))
    if sentence:
        yield sentence


class Scheme:
    """How the tags of a file mark entities, found out from all tags together."""

    def __init__(self, tags: set[str]):
        heads = {tag[0] for tag in tags if len(tag) > 1 and tag[1] in "-_" or len(tag) == 1}
        self.prefixed = (
            any(len(tag) > 2 and tag[1] in "-_" and tag[0] in "BIESLUMW" for tag in tags)
            or bool(tags & {"B", "S"})
            and tags <= set("BIOESLUMW")
        )
        self.begins = bool(heads & set("BSUW"))  # IO tags have no B
        self.outside = "O" in tags
        typed = [tag for tag in tags if tag != "O"]
        self.suffixed = (
            not self.prefixed and bool(typed) and all(tag[-2:-1] in ("-", "_") and tag[-1] in "BIESLUMW" for tag in typed)
        )  # PER-B
        self.prefixed = self.prefixed or self.suffixed
        self.begins = self.begins or self.suffixed and any(tag[-1] in "BS" for tag in typed)

    def split(self, tag: str) -> tuple[str, str]:
        """(prefix, type) of a tag; the prefix of a tag that has none is I."""
        if tag == "O":
            return "O", ""
        if not self.prefixed:
            return "I", tag
        if self.suffixed:
            return tag[-1], tag[:-2]
        if len(tag) == 1:
            return tag, "entity"
        return (tag[0], tag[2:]) if tag[1] in "-_" else ("I", tag)

    def spans(self, tags: list[str], ranges: list[tuple[int, int]], notes: Notes | None = None, names: dict | None = None) -> list[Span]:
        """Entities of one sentence. A tag that goes on with nothing begins an entity; that is counted where the scheme has a B."""
        found: list[Span] = []
        opened: str | None = None
        for tag, (start, end) in zip(tags, ranges, strict=True):
            prefix, label = self.split(tag)
            if prefix == "O":
                opened = None
                continue
            goes_on = prefix in _INSIDE + _END and opened == label and not (not self.prefixed and not self.outside)
            if goes_on:
                found[-1].end = end
            else:
                if prefix in _INSIDE + _END and self.begins and notes is not None:
                    notes.count("tags repaired")
                found.append(Span(start, end, rename(label, names or {})))
            opened = None if prefix in _END + _SINGLE else label
        return found


def from_rows(words: list[str], tags: list[str], scheme: Scheme, names: dict, notes: Notes, source: str) -> TaggedText:
    """A row with a list of words and a list of tags. ValueError gives the reason where they do not fit."""
    if len(words) != len(tags):
        raise ValueError(f"{len(words)} words and {len(tags)} tags")
    if any(not word.strip() for word in words):
        raise ValueError("a word is empty")
    text, ranges = word_ranges(words)
    spans = scheme.spans(tags, ranges, notes, names)
    notes.count("spans empty", int(not spans))
    return TaggedText(check_text(text), spans, words=ranges, source=source)
