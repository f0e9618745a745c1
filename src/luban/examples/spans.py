"""Entities, and relations between them, written as positions in the text: the JSON shapes of annotation tools, and lists of words with tags.

Recognised: ``[start, end, label]`` lists (doccano, spaCy), dicts (``start``/``end``/``label`` and their other names, doccano's and Prodigy's
among them), ``{label: {words: [[start, end]]}}`` with inclusive ends (CLUE), Label Studio's export, ``tokens`` with ``ner_tags``, and
``spo_list`` or ``triple_list`` for entities with relations.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from luban.examples import columns as known
from luban.examples.conll import Scheme, from_rows
from luban.examples.notes import Notes, check_text, word_ranges
from luban.examples.records import Table, column, is_tag
from luban.examples.tables import listed, rename
from luban.examples.tasks import Span, TaggedText

PARTS = ("text", "spans", "words", "tags", "relations", "labels", "end")
_START = ("start", "start_offset", "start_idx", "begin", "from", "startindex", "start_index", "起始", "开始")
_END = ("end", "end_offset", "end_idx", "stop", "to", "endindex", "end_index", "结束")
_LABEL = ("label", "type", "entity_type", "entity_group", "tag", "category", "labels", "类型", "标签")
_WORDS = ("text", "word", "mention", "name", "surface", "value", "entity", "span", "文本", "实体")
_TRIPLES = ("spo_list", "triple_list", "triples", "relation_list", "三元组")


class SpanError(ValueError):
    """A span that cannot be used, as opposed to a whole row."""


def recognise(table: Table) -> dict[str, Any] | None:
    """Which columns hold the text and its spans, or the words and their tags."""
    rows = table.sample(50)

    def holding(names: tuple[str, ...], test: Any) -> str | None:
        return known.by_name([name for name in table.columns if any(test(row.get(name)) for row in rows)], names)

    relations = holding((*_TRIPLES, "relations", "relationmentions"), lambda value: isinstance(value, list) and bool(value))
    if table.format not in ("csv", "tsv"):
        words = holding(known.WORDS, lambda value: isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value))
        tags = holding(
            known.TAGS, lambda value: isinstance(value, list) and bool(value) and all(isinstance(item, str | int) for item in value)
        )
        entities = holding(known.ENTITIES, lambda value: isinstance(value, list) and bool(value) and isinstance(value[0], dict))
        if words and tags and words != tags:
            return {"words": words, "tags": tags}
        if words and entities:
            return {"words": words, "spans": entities} | ({"relations": relations} if relations else {})
    elif pair := _spaced(table, rows):
        return {"words": pair[0], "tags": pair[1]}
    studio = holding(
        ("annotations", "completions"),
        lambda value: isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "result" in value[0],
    )
    if studio and "data" in table.columns:
        return {"text": "data", "spans": studio}
    text = holding(known.TEXTS, lambda value: isinstance(value, str) and bool(value))
    spans = holding(known.ENTITIES, _looks_like_spans)
    if text and (spans or relations):
        found = {"text": text} | ({"spans": spans} if spans else {}) | ({"relations": relations} if relations else {})
        found |= _ends(rows, text, spans) if spans else {}
        return found
    return None


def _spaced(table: Table, rows: list[dict]) -> tuple[str, str] | None:
    """Columns of a csv file that hold as many words as tags, with spaces between them or as lists."""
    for words in table.columns:
        for tags in table.columns:
            if words != tags and rows:
                cells = [(listed(row.get(words), " "), listed(row.get(tags), " ")) for row in rows]
                if (
                    all(len(one) == len(two) for one, two in cells)
                    and sum(len(two) for _, two in cells) > len(cells)
                    and all(is_tag(tag) for _, two in cells for tag in two)
                ):
                    return words, tags
    return None


def _looks_like_spans(value: Any) -> bool:
    if isinstance(value, str):
        value = listed(value, "")
    if isinstance(value, dict):
        return bool(value) and all(isinstance(inner, dict | list) for inner in value.values())
    if not isinstance(value, list) or not value:
        return False
    first = value[0]
    if isinstance(first, dict):
        return field_of(first, _LABEL) is not None or field_of(first, _START) is not None or "entity" in first
    return (
        isinstance(first, list | tuple)
        and len(first) >= 3
        and sum(isinstance(item, int) and not isinstance(item, bool) for item in first) >= 2
    )


def field_of(item: dict, names: tuple[str, ...]) -> Any:
    """The first filled value under one of the names, in any case."""
    present = {known.normalised(name): value for name, value in item.items()}
    return next((present[name] for name in names if present.get(name) is not None), None)


def _ends(rows: list[dict], text: str, spans: str) -> dict[str, str]:
    """``{"end": "inclusive"}`` in CLUE's form, and where the words that stand beside the positions say so."""
    if any(isinstance(row.get(spans), dict) for row in rows):
        return {"end": "inclusive"}
    inclusive = exclusive = 0
    for row in rows:
        for item in row.get(spans) if isinstance(row.get(spans), list) else []:
            try:
                start, end, _, words = _parts(item)
            except SpanError:
                continue
            if isinstance(words, str) and isinstance(start, int) and isinstance(end, int):
                inclusive += str(row.get(text))[start : end + 1] == words
                exclusive += str(row.get(text))[start:end] == words
    return {"end": "inclusive"} if inclusive > exclusive else {}


def _parts(item: Any) -> tuple[Any, Any, str, str | None]:
    """(start, end, label, words or None) of a span in any of the shapes."""
    if isinstance(item, dict):
        label, start, end, words = field_of(item, _LABEL), field_of(item, _START), field_of(item, _END), field_of(item, _WORDS)
        if label is None and isinstance(item.get("entity"), str) and words == item["entity"]:
            label, words = item["entity"], None  # {"start": 0, "end": 2, "entity": "PER"}
        place = next(
            (item[name] for name in ("pos", "position", "offsets", "offset", "span") if isinstance(item.get(name), list | tuple)), None
        )
        if start is None and place:
            place = place[0] if isinstance(place[0], list | tuple) and len(place) == 1 else place
            if len(place) != 2 or isinstance(place[0], list | tuple):
                raise SpanError(f"a span in several pieces ({place}) is not supported")
            start, end = place
        if end is None and start is None and isinstance(item.get("offset"), int) and isinstance(item.get("length"), int):
            start, end = item["offset"], item["offset"] + item["length"]
        label = label[0] if isinstance(label, list) and label else label
        words = words if isinstance(words, str) else None
    elif isinstance(item, list | tuple):
        figures = [value for value in item if isinstance(value, int) and not isinstance(value, bool)]
        names = [value for value in item if isinstance(value, str)]
        if len(figures) != 2 or not names:
            raise SpanError(f"{str(item)[:60]} is no span: [start, end, label] is one")
        start, end, label, words = *figures, names[0], names[1] if len(names) > 1 else None
    else:
        raise SpanError(f"{str(item)[:60]} is no span")
    if not isinstance(label, str | int) or not str(label).strip():
        raise SpanError("a span without a label")
    return start, end, str(label).strip(), words


def fit(text: str, start: Any, end: Any, label: str, words: str | None, notes: Notes) -> Span:
    """The span, moved to where its words are if it does not hold them, and widened if it cuts a character.

    SpanError gives the reason where it lies outside the text, is empty, or its words are not to be found at one place.
    """
    figures = [known.number(value) for value in (start, end)]
    if any(value is None or value != int(value) for value in figures):
        if words and start is None:
            return _searched(text, label, words, notes)
        raise SpanError(f"the span {str(start)[:20]}–{str(end)[:20]} ({label}) has no whole numbers")
    start, end = int(figures[0]), int(figures[1])
    holds = 0 <= start < end <= len(text) and (words is None or _same(text[start:end], words))
    if not holds and words is not None:
        if (units := _from_utf16(text, start, end)) and _same(text[units[0] : units[1]], words):
            notes.count("spans repaired")
            start, end = units
        else:
            return _searched(text, label, words, notes)
    elif not holds:
        raise SpanError(
            f"the span {start}–{end} ({label}) is empty"
            if start >= end
            else f"the span {start}–{end} ({label}) lies outside the text of {len(text)} characters"
        )
    return _whole(text, start, end, label, notes)


def _same(one: str, two: str) -> bool:
    return one == two or " ".join(one.split()) == " ".join(two.split())


def _searched(text: str, label: str, words: str, notes: Notes) -> Span:
    found = text.find(words)
    if not words or found < 0 or text.find(words, found + 1) >= 0:
        raise SpanError(
            f"the words {words[:40]!r} ({label}) are not where the span says, and stand {'nowhere else' if found < 0 or not words else 'at several places'} in the text"
        )
    notes.count("spans repaired")
    return _whole(text, found, found + len(words), label, notes)


def _from_utf16(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Positions that were counted in UTF-16 units (as JavaScript does) as characters."""
    if not any(letter > "\uffff" for letter in text[:end]) or start < 0:
        return None
    units = text.encode("utf-16-le")
    try:
        return len(units[: 2 * start].decode("utf-16-le")), len(units[: 2 * end].decode("utf-16-le"))
    except UnicodeDecodeError:
        return None


def _joins(text: str, place: int) -> bool:
    """Whether a cut before this character would fall inside what people see as one."""
    if not 0 < place < len(text):
        return False
    letter, before = text[place], text[place - 1]
    return (
        bool(unicodedata.combining(letter))
        or "\ufe00" <= letter <= "\ufe0f"
        or letter == "\u200d"
        or before == "\u200d"
        or "\U0001f3fb" <= letter <= "\U0001f3ff"
    )


def _whole(text: str, start: int, end: int, label: str, notes: Notes) -> Span:
    before = (start, end)
    while _joins(text, start):
        start -= 1
    while _joins(text, end):
        end += 1
    notes.count("spans widened", int((start, end) != before))
    return Span(start, end, label)


def overlap(spans: list[Span]) -> int:
    """How many spans begin before an earlier one has ended."""
    furthest, count = 0, 0
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        count += span.start < furthest
        furthest = max(furthest, span.end)
    return count


def examples(table: Table, mapping: dict[str, Any], notes: Notes) -> list[TaggedText]:
    """Texts with spans and relations. A span that cannot be used is named and left out; its text stays."""
    names = mapping.get("labels") or {}
    columns = {
        part: column(table, mapping[part], part)
        for part in ("text", "spans", "words", "tags", "relations")
        if mapping.get(part) is not None
    }
    if "text" in columns and "spans" in columns and mapping.get("end") is None:
        mapping = {**mapping, **_ends(table.sample(50), columns["text"], columns["spans"])}
    scheme = None
    if "tags" in columns:
        scheme = Scheme({rename(str(tag), names) for _, row in table.rows for tag in listed(row.get(columns["tags"]), " ")})
    found = []
    for line, row in table.rows:
        source = f"{table.path}:{line}"
        try:
            if scheme is not None:
                words = [str(word) for word in listed(row.get(columns["words"]), " ")]
                tags = [rename(str(tag), names) for tag in listed(row.get(columns["tags"]), " ")]
                found.append(from_rows(words, tags, scheme, {}, notes, source))
                continue
            found.append(_one(row, columns, mapping, names, source, table, line, notes))
        except ValueError as error:
            notes.set_aside(table.path, line, str(error), row)
    if mapping.get("end") == "inclusive":
        notes.count("spans inclusive", sum(len(example.spans) for example in found))
    return found


def _one(row: dict, columns: dict[str, str], mapping: dict, names: dict, source: str, table: Table, line: int, notes: Notes) -> TaggedText:
    words = None
    if "words" in columns:
        text, words = word_ranges([str(word) for word in row.get(columns["words"]) or []])
    else:
        text = row.get(columns["text"])
        if isinstance(text, dict):  # Label Studio's data
            text = next((value for value in text.values() if isinstance(value, str)), None)
    text = check_text(text)
    example = TaggedText(text, [], words=words, source=source)
    places: dict[Any, int] = {}  # what relations may refer to: identity, or place in the list
    items = row.get(columns["spans"]) if "spans" in columns else []
    for place, (identity, item) in enumerate(_items(items)):
        try:
            start, end, label, surface = _parts(item)
            if mapping.get("end") == "inclusive" and known.number(end) is not None:
                end = int(known.number(end) or 0) + 1
            if words is not None:
                start, end, surface = _word_places(words, start, end, label)
            span = fit(text, start, end, rename(label, names), surface, notes)
        except SpanError as error:
            notes.set_aside(table.path, line, str(error), item)
            continue
        places[identity if identity is not None else place] = len(example.spans)
        example.spans.append(span)
    if "relations" in columns:
        from luban.examples.relations import add_relations

        add_relations(
            example,
            row.get(columns["relations"]),
            places,
            names,
            lambda reason, item: notes.set_aside(table.path, line, reason, item),
            notes,
        )
    notes.count("spans empty", int(not example.spans))
    notes.count("spans overlapping", overlap(example.spans))
    return example


def _word_places(words: list[tuple[int, int]], start: Any, end: Any, label: str) -> tuple[int, int, None]:
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end <= len(words):
        raise SpanError(f"the span of words {start}–{end} ({label}) lies outside the {len(words)} words")
    return words[start][0], words[end - 1][1], None


def _items(value: Any) -> list[tuple[Any, Any]]:
    """(identity or None, span) of each span in any container."""
    if isinstance(value, str):
        value = listed(value, "")
    if isinstance(value, dict):  # CLUE: {label: {words: [[start, end], …]}}; or {label: [[start, end], …]} or {label: [words, …]}
        found: list[tuple[Any, Any]] = []
        for label, inner in value.items():
            if isinstance(inner, dict):
                found += [(None, _labelled(place, label, words)) for words, places in inner.items() for place in _several(places)]
            else:
                found += [(None, {"label": label, "text": item} if isinstance(item, str) else _labelled(item, label)) for item in _several(inner)]
        return found
    if not isinstance(value, list):
        return []
    found = []
    for item in value:
        if isinstance(item, dict) and isinstance(item.get("result"), list):  # Label Studio
            found += [
                (part.get("id"), {**part["value"], "id": part.get("id")})
                for part in item["result"]
                if isinstance(part.get("value"), dict) and "labels" in part["value"]
            ]
        else:
            found.append((item.get("id") if isinstance(item, dict) else None, item))
    return found


def _several(value: Any) -> list[Any]:
    """The items of a list; anything else is one item, which is then refused with its reason."""
    return value if isinstance(value, list) else [value]


def _labelled(place: Any, *rest: Any) -> Any:
    """``[start, end]`` with its label behind it; what is no list stays as it is."""
    return [*place, *rest] if isinstance(place, list) else place
