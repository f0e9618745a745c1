"""The relation between two marked stretches of a text: markers put in, what is too long cut around both, the label read.

Markers: "Matching the Blanks" (Baldini Soares et al. 2019, arXiv:1906.03158); types written beside them: Zhou and Chen 2022,
"An Improved Baseline for Sentence-level Relation Extraction" (arXiv:2102.01373).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from luban.foundation.errors import ConfigError, DataError
from luban.inference.padding import padded_batches
from luban.inference.predictor import wanted
from luban.inference.spans import WHOLE, settings_of
from luban.models.base import Model
from luban.tokenizer.framing import Framed, frame
from luban.tokenizer.special import ENTITY_MARKERS
from luban.tokenizer.tokenizer import Tokenizer

_MARKER, _ENTITY, _BETWEEN, _AROUND = range(4)  # what is kept first where not everything can be


@dataclass
class Marked:
    """A framed text with markers in it. ``markers``: places of the two opening ones. ``cut``: tokens of the entities themselves were
    left out; ``misaligned``: entities that begin or end inside a token (all of it is marked)."""

    framed: Framed
    markers: tuple[int, int]
    cut: bool
    misaligned: int


@dataclass
class _Piece:
    """A token on its way into the frame, and why it is there."""

    id: int
    offset: tuple[int, int]
    special: bool
    zone: int = _AROUND
    marks: int = -1  # 0 or 1: the opening marker of the head or the tail


def mark(tokenizer: Tokenizer, text: str, head: tuple[int, int, str], tail: tuple[int, int, str], settings: Mapping[str, Any]) -> Marked:
    """A text with markers around two entities (first character, end, type).

    Markers stand between tokens of the plain text: a text that spells one holds none. Where the whole is longer than ``maximum_tokens``,
    what is far from both entities goes first, then what is between them. Raises ConfigError where not even the markers fit.
    """
    ids = [tokenizer.special_ids[name] for name in settings.get("markers", ENTITY_MARKERS)]
    framed = frame(tokenizer, text, maximum=WHOLE)
    tokens = [index for index, part in enumerate(framed.parts) if part == 0]
    first = tokens[0] if tokens else next(index for index, slot in enumerate(tokenizer.layout.single) if slot.part == 0)
    stop = tokens[-1] + 1 if tokens else first
    ranges = [_tokens_of(framed.offsets[first:stop], start, end) for start, end, _ in (head, tail)]
    types = [_type_ids(tokenizer, kind) if settings.get("entity_types") else [] for _, _, kind in (head, tail)]
    pieces = _pieces([(framed.ids[index], framed.offsets[index]) for index in range(first, stop)], ranges, types, ids)
    around = len(framed.ids) - (stop - first)
    kept, cut = _fit(pieces, settings.get("maximum_tokens", 512) - around)
    before = [_Piece(framed.ids[index], (0, 0), True) for index in range(first)]
    behind = [_Piece(framed.ids[index], (0, 0), True) for index in range(stop, len(framed.ids))]
    whole = [*before, *kept, *behind]
    kind = framed.types[0] if framed.types else 0
    places = {piece.marks: index for index, piece in enumerate(whole) if piece.marks >= 0}
    made = Framed([piece.id for piece in whole], [kind] * len(whole), [piece.offset for piece in whole], [-1 if piece.special else 0 for piece in whole], len(pieces) - len(kept), [])
    misaligned = sum(_is_misaligned(framed.offsets[first:stop], found, start, end) for found, (start, end, _) in zip(ranges, (head, tail), strict=True))
    return Marked(made, (places[0], places[1]), cut, misaligned)


def _type_ids(tokenizer: Tokenizer, kind: str) -> list[int]:
    """A type as words: ``* organisation *``."""
    name = kind.replace("_", " ").strip()
    return [index for index, part in zip(*_plain(tokenizer, f"* {name} *"), strict=True) if part == 0] if name else []


def _plain(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    framed = frame(tokenizer, text, maximum=WHOLE)
    return framed.ids, framed.parts


def _tokens_of(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The tokens (first, end) that hold characters ``start`` to ``end``; an empty range at its place for a stretch that has none."""
    inside = [index for index, (left, right) in enumerate(offsets) if left < right and left < end and right > start] if start < end else []
    if inside:
        return inside[0], inside[-1] + 1
    place = sum(left < right <= start for left, right in offsets)
    return place, place


def _is_misaligned(offsets: Sequence[tuple[int, int]], found: tuple[int, int], start: int, end: int) -> bool:
    if found[0] == found[1]:
        return True
    inside = offsets[found[0] : found[1]]
    return inside[0][0] < start or max(right for _, right in inside) > end


def _pieces(tokens: list[tuple[int, tuple[int, int]]], ranges: list[tuple[int, int]], types: list[list[int]], ids: list[int]) -> list[_Piece]:
    """The tokens with markers and types put in: at one place first what ends (the inner entity first), then what begins (the outer first)."""
    gaps: dict[int, tuple[list[tuple], list[tuple]]] = {}
    for number, (start, end) in enumerate(ranges):
        opening = [_Piece(ids[2 * number], (0, 0), True, _MARKER, number), *(_Piece(index, (0, 0), True, _ENTITY) for index in types[number])]
        closing = [_Piece(ids[2 * number + 1], (0, 0), True, _MARKER)]
        if start == end:
            opening, closing = [*opening, *closing], []
        gaps.setdefault(start, ([], []))[1].append((start - end, number, opening))
        gaps.setdefault(end, ([], []))[0].append((-start, -number, closing))
    low, high = min(end for _, end in ranges), max(start for start, _ in ranges)
    pieces: list[_Piece] = []
    for place in range(len(tokens) + 1):
        ends, begins = gaps.get(place, ((), ()))
        for _, _, put in (*sorted(ends, key=lambda one: one[:2]), *sorted(begins, key=lambda one: one[:2])):
            pieces += put
        if place < len(tokens):
            index, offset = tokens[place]
            inside = any(start <= place < end for start, end in ranges)
            pieces.append(_Piece(index, offset, False, _ENTITY if inside else _BETWEEN if low <= place < high else _AROUND))
    return pieces


def _fit(pieces: list[_Piece], room: int) -> tuple[list[_Piece], bool]:
    """As many pieces as there is room for, in their order, and whether an entity lost some of its own."""
    if room < sum(piece.zone == _MARKER for piece in pieces):
        raise ConfigError("maximum: {maximum} tokens are too few", "the markers of two entities alone take four", "raise sequence_length", maximum=room)
    if len(pieces) <= room:
        return pieces, False
    anchors = [index for index, piece in enumerate(pieces) if piece.zone == _MARKER]
    near = {_ENTITY: [index for index, piece in enumerate(pieces) if piece.marks >= 0]}
    order = sorted(range(len(pieces)), key=lambda index: (pieces[index].zone, min(abs(index - anchor) for anchor in near.get(pieces[index].zone, anchors)), index))
    kept = sorted(order[:room])
    return [pieces[index] for index in kept], any(pieces[index].zone == _ENTITY for index in order[room:])


def marked_item(tokenizer: Tokenizer, item: Mapping[str, Any], number: int, settings: Mapping[str, Any]) -> Marked:
    """An item ``{"text", "head": {"start", "end", "label"}, "tail": …}``. Raises DataError, naming the item, where an entity is none."""
    text, found = wanted(dict(item), "text", number), []
    for name in ("head", "tail"):
        span = item.get(name)
        start, end = (span.get("start"), span.get("end")) if isinstance(span, Mapping) else (None, None)
        if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start <= end <= len(text):
            raise DataError(
                "item {number}: {name} is no stretch of the text: {value}", "this model reads the relation of two entities",
                "give it as {{\"start\": 0, \"end\": 5}}, in characters, end exclusive", number=number + 1, name=name, value=str(span)[:80],
            )  # fmt: skip
        found.append((start, end, str(span.get("label") or "")))
    return mark(tokenizer, text, *found, settings)


def relate(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """``{"label", "probabilities"}`` for each item."""
    settings = settings_of(model)
    marked = [marked_item(tokenizer, item, number, settings) for number, item in enumerate(items)]
    found: list[dict[str, Any]] = [{}] * len(items)
    for batch in padded_batches([one.framed for one in marked], tokenizer.pad_id, rows, model.device):
        markers = torch.tensor([marked[number].markers for number in batch.numbers], device=model.device)  # [rows, 2]
        for number, values in zip(batch.numbers, batch.scores(model, markers=markers).float().softmax(-1).cpu(), strict=True):
            found[number] = {"label": model.head.labels[int(values.argmax())], "probabilities": dict(zip(model.head.labels, values.tolist(), strict=True))}
    return found
