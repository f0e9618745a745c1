"""Relations between two entities of a text: tables that name them, sentences that mark them, and triples beside a text."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luban.examples import columns as known
from luban.examples.notes import Notes, check_text, word_ranges
from luban.examples.records import Table, column, lines_of
from luban.examples.spans import SpanError, field_of, fit
from luban.examples.tables import class_name, listed, rename
from luban.examples.tasks import RelationText, Span, TaggedText

PARTS = ("text", "words", "head", "tail", "label", "labels")
_MARKS = (
    ("<e1>", "</e1>", "<e2>", "</e2>"),
    ("[E1]", "[/E1]", "[E2]", "[/E2]"),
    ("<head>", "</head>", "<tail>", "</tail>"),
    ("[H]", "[/H]", "[T]", "[/T]"),
    ("<subj>", "</subj>", "<obj>", "</obj>"),
)


def recognise(table: Table) -> dict[str, Any] | None:
    """Which columns hold the text, the two entities and the relation, by name and by what is in them."""
    rows = table.sample()
    facts = known.facts_of(rows, table.columns)
    words = known.by_name(
        [name for name in table.columns if any(isinstance(row.get(name), list) for row in rows[:20])], ("token", "tokens", "words")
    )
    text = known.by_name(table.columns, ("text", "sentence", "content", "文本", "句子", "内容", "原文")) or known.longest_text(facts)
    base = {"words": words} if words else {"text": text} if text else None
    if base is None:
        return None
    if {"subj_start", "subj_end", "obj_start", "obj_end", "relation"} <= set(table.columns):  # TACRED
        return {**base, "head": "subj", "tail": "obj", "label": "relation"}
    head, tail = known.by_name(table.columns, known.HEADS), known.by_name(table.columns, known.TAILS)
    if head and tail:
        label = known.by_name(table.columns, known.RELATIONS) or known.class_column(facts, len(rows), text, head, tail)
        return {**base, "head": head, "tail": tail} | ({"label": label} if label else {})
    if text is None or words:
        return None
    if any(marks[0] in str(row.get(text)) and marks[2] in str(row.get(text)) for marks in _MARKS for row in rows[:20]):
        label = known.by_name(table.columns, known.RELATIONS) or known.class_column(facts, len(rows), text)
        return {"text": text} | ({"label": label} if label else {})
    inside = [
        name
        for name in table.columns
        if name != text
        and rows
        and sum(bool(row.get(name)) and str(row[name]) in str(row.get(text)) for row in rows) >= 0.7 * len(rows)
        and facts[name].distinct > 1
    ]
    label = known.class_column(facts, len(rows), text, *inside[:2])
    if len(inside) >= 2:
        return {"text": text, "head": inside[0], "tail": inside[1]} | ({"label": label} if label else {})
    return None


def examples(table: Table, mapping: dict[str, Any], notes: Notes) -> list[RelationText]:
    """Texts with two entities and their relation."""
    columns = {part: column(table, mapping[part], part) for part in ("text", "words", "label") if mapping.get(part) is not None}
    for part in ("head", "tail"):
        if mapping.get(part) is not None and f"{mapping[part]}_start" not in table.columns:
            columns[part] = column(table, mapping[part], part)
    names = mapping.get("labels") or {}
    found = []
    for line, row in table.rows:
        try:
            ranges = None
            if "words" in columns:
                text, ranges = word_ranges([str(word) for word in listed(row.get(columns["words"]), " ")])
            else:
                text = row.get(columns["text"])
            text = check_text(text)
            if mapping.get("head") is None:
                text, head, tail = marked(text)
            elif "head" not in columns:  # TACRED: places of words, the end inclusive
                head, tail = (_words(row, str(mapping[part]), ranges, text) for part in ("head", "tail"))
            else:
                head, tail = _entities(text, row.get(columns["head"]), row.get(columns["tail"]), ranges, notes)
            label = class_name(row.get(columns["label"]), names) if "label" in columns else None
            if "label" in columns and label is None and notes.answers:
                raise ValueError("the label is missing")
        except ValueError as error:
            notes.set_aside(table.path, line, str(error), row)
            continue
        found.append(RelationText(text, head, tail, label, f"{table.path}:{line}"))
    return found


def _words(row: dict, name: str, ranges: list[tuple[int, int]] | None, text: str) -> Span:
    start, end = row.get(f"{name}_start"), row.get(f"{name}_end")
    if not isinstance(start, int) or not isinstance(end, int):
        raise ValueError(f"{name}_start and {name}_end are no whole numbers")
    if ranges is None:
        if not 0 <= start < end <= len(text):
            raise ValueError(f"the span {start}–{end} ({name}) lies outside the text of {len(text)} characters")
        return Span(start, end, str(row.get(f"{name}_type") or ""))
    if not 0 <= start <= end < len(ranges):
        raise ValueError(f"the span of words {start}–{end} ({name}) lies outside the {len(ranges)} words")
    return Span(ranges[start][0], ranges[end][1], str(row.get(f"{name}_type") or ""))


def _entities(text: str, head: Any, tail: Any, ranges: list[tuple[int, int]] | None, notes: Notes) -> tuple[Span, Span]:
    found = []
    for item in (head, tail):
        if isinstance(item, dict):
            name, place = item.get("name") or item.get("text") or item.get("word"), item.get("pos") or item.get("span") or [item.get("start"), item.get("end")]
            label = str(field_of(item, ("type", "label")) or "")
            if isinstance(place, list) and len(place) == 2 and all(isinstance(value, int) for value in place):
                if ranges is not None and 0 <= place[0] < place[1] <= len(ranges):
                    place = [ranges[place[0]][0], ranges[place[1] - 1][1]]
                    name = None
                if isinstance(name, str) and place[1] < len(text) and text[place[0] : place[1] + 1] == name:
                    place = [place[0], place[1] + 1]  # the last character was named
                found.append([fit(text, *place, label, name, notes)])
                continue
            item = name
        words = str(item or "").strip()
        places = [match.start() for match in re.finditer(f"(?={re.escape(words)})", text)] if words else []
        if not places:
            raise ValueError(f"the entity {words[:40]!r} is not in the text" if words else "an entity is missing")
        found.append([Span(place, place + len(words), "") for place in places])
    pairs = (
        [(one, two) for one in found[0] for two in found[1] if (one.start, one.end) != (two.start, two.end)]
        if max(map(len, found)) <= 50
        else [(found[0][0], found[1][-1])]
    )
    if not pairs:
        return found[0][0], found[1][0]  # both names stand at the same single place
    notes.count("mentions chosen", int(len(pairs) > 1))
    return min(pairs, key=lambda pair: (_apart(*pair) < 0, abs(_apart(*pair)), pair[0].start))


def _apart(one: Span, two: Span) -> int:
    """Characters between two spans; negative where they overlap."""
    return max(one.start, two.start) - min(one.end, two.end)


def marked(text: str) -> tuple[str, Span, Span]:
    """The text without the marks around its two entities, and where they are. ValueError if there are not two marked ones."""
    for marks in _MARKS:
        if all(text.count(mark) == 1 for mark in marks):
            break
    else:
        raise ValueError("two marked entities such as <e1>…</e1> and <e2>…</e2> were expected")
    plain, places, position = [], {}, 0
    for piece in re.split("(" + "|".join(map(re.escape, marks)) + ")", text):
        if piece in marks:
            places[piece] = position
        else:
            plain.append(piece)
            position += len(piece)
    spans = [Span(places[opening], places[closing], "") for opening, closing in (marks[:2], marks[2:])]
    if any(span.start >= span.end for span in spans):
        raise ValueError("a marked entity is empty or its marks are in the wrong order")
    return "".join(plain), spans[0], spans[1]


def from_semeval(path: Path, names: dict, notes: Notes) -> list[RelationText]:
    """SemEval-2010 task 8 (Hendrickx et al., 2010): a numbered, quoted sentence with marks, its relation, a comment, an empty line."""
    found, sentence = [], None
    for line, text in [*lines_of(path, notes), (0, "")]:
        numbered = re.match(r'\s*\d+\t"?(.*?)"?\s*$', text)
        if sentence and (numbered or not text.strip()):
            notes.set_aside(path, sentence[0], "a sentence without its relation", sentence[1])
            sentence = None
        if numbered:
            sentence = (line, numbered[1])
        elif sentence and text.strip():
            try:
                plain, head, tail = marked(sentence[1])
                found.append(RelationText(check_text(plain), head, tail, rename(text.strip(), names), f"{path}:{sentence[0]}"))
            except ValueError as error:
                notes.set_aside(path, sentence[0], str(error), sentence[1])
            sentence = None
        elif text.strip() and not text.startswith("Comment"):
            notes.set_aside(path, line, "neither a sentence, nor a relation, nor a comment", text)
    return found


def from_tagged(tagged: list[TaggedText]) -> list[RelationText]:
    """One example for each relation of texts with entities and relations."""
    return [
        RelationText(example.text, example.spans[head], example.spans[tail], label, example.source)
        for example in tagged
        for head, tail, label in example.relations
    ]


def add_relations(
    example: TaggedText, value: Any, places: dict[Any, int], names: dict, bad: Callable[[str, Any], None], notes: Notes
) -> None:
    """Add a row's relations: dicts that refer to spans by identity or place, or triples of words that are searched in the text."""
    for item in value if isinstance(value, list) else []:
        try:
            head, label, tail = _triple(item)
            if isinstance(head, str | dict) and head not in (places if isinstance(head, str) else ()):
                ends = [_mention(example, end, kind, notes) for end, kind in ((head, "head"), (tail, "tail"))]
            elif head in places and tail in places:
                ends = [places[head], places[tail]]
            else:
                notes.count("relations lost")
                continue
            example.relations.append((ends[0], ends[1], rename(str(label), names)))
        except (SpanError, ValueError) as error:
            bad(str(error), item)


def _triple(item: Any) -> tuple[Any, str, Any]:
    if isinstance(item, list | tuple) and len(item) == 3:
        return item[0], str(item[1]), item[2]
    if not isinstance(item, dict):
        raise ValueError(f"{str(item)[:60]} is no relation")
    label = field_of(item, ("predicate", "relation", "type", "label", "关系"))
    head = field_of(item, ("from_id", "head", "subject", "h", "from", "source", "em1text", "arg1", "头实体"))
    tail = field_of(item, ("to_id", "tail", "object", "t", "to", "target", "em2text", "arg2", "尾实体"))
    if isinstance(tail, dict) and "@value" in tail:  # DuIE 2
        tail = tail["@value"]
    if label is None or head is None or tail is None:
        raise ValueError(f"{str(item)[:60]} lacks a head, a tail or a relation")
    kinds = {}
    for end, words in (("subject", head), ("object", tail)):
        kind = item.get(f"{end}_type")
        kind = kind.get("@value") if isinstance(kind, dict) else kind
        kinds[end] = {"text": words, "label": kind} if isinstance(words, str) and kind else words
    return kinds["subject"], str(label), kinds["object"]


def _mention(example: TaggedText, end: Any, default: str, notes: Notes) -> int:
    """The place of a span that holds the words, added if there is none yet: their first place in the text."""
    words, label = (
        (str(end.get("text") or end.get("name") or ""), str(end.get("label") or end.get("type") or default))
        if isinstance(end, dict)
        else (str(end), default)
    )
    for place, span in enumerate(example.spans):
        if example.text[span.start : span.end] == words and (label in (span.label, default)):
            return place
    start = example.text.find(words) if words.strip() else -1
    if start < 0:
        raise SpanError(f"the entity {words[:40]!r} is not in the text")
    notes.count("mentions chosen", int(example.text.find(words, start + 1) >= 0))
    example.spans.append(Span(start, start + len(words), label))
    return len(example.spans) - 1
