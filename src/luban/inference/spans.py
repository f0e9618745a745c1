"""Labelled spans of texts: what tagging reads of a text, in training and in prediction, and the best tags that make sense together.

A text of any length is read whole: in overlapping windows, where each unit is judged in the window that shows most around it, once.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luban.inference.padding import padded_batches
from luban.inference.predictor import wanted
from luban.models.base import Model
from luban.models.heads import Head
from luban.tokenizer.alignment import OUTSIDE, spans_from_tags
from luban.tokenizer.framing import Framed, frame_batch
from luban.tokenizer.tokenizer import Tokenizer

Words = Sequence[tuple[int, int]] | None
WHOLE = 1 << 40  # tokens: no limit
_DENSE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7a3]")


@dataclass
class Reading:
    """A text as tagging reads it.

    ``units`` has one entry for each stretch that gets one tag (a word, or a token where ``subwords`` is "all"), its offsets in the text;
    ``places`` says where it is judged: window, and place of its first token in the window. ``shown`` lists for each window all units that
    it shows: unit, and place of its first token.
    """

    units: Framed
    windows: list[Framed]
    places: list[tuple[int, int]]
    shown: list[list[tuple[int, int]]]


def read_texts(tokenizer: Tokenizer, texts: Sequence[str], words: Sequence[Words], settings: Mapping[str, Any]) -> list[Reading]:
    """Texts in units and windows. ``words`` are the character ranges of the words where they are known: no token crosses their bounds."""
    maximum = settings.get("maximum_tokens", 512)
    whole = frame_batch(tokenizer, texts, maximum=WHOLE)
    return [_reading(tokenizer, text, known, framed, settings, maximum) for text, known, framed in zip(texts, words, whole, strict=True)]


def _reading(tokenizer: Tokenizer, text: str, words: Words, framed: Framed, settings: Mapping[str, Any], maximum: int) -> Reading:
    if words:
        framed = cut_at(tokenizer, text, framed, {place for start, end in words for place in (start, end)})
    tokens = [index for index, part in enumerate(framed.parts) if part == 0]
    first, stop = (tokens[0], tokens[-1] + 1) if tokens else (_gap(tokenizer), _gap(tokenizer))
    each = settings.get("subwords", "first") == "all"
    starts = None if not words else {start for start, _ in words}
    groups = unit_groups(framed.offsets[first:stop], text, each, starts)
    bounds = [group[0] for group in groups]
    ranges = window_ranges(stop - first, maximum - (len(framed.ids) - (stop - first)), settings.get("stride", maximum // 4), bounds)
    offsets = framed.offsets[first:stop]
    windows = [_window(framed, first, stop, start, end, len(text)) for start, end in ranges]
    shown = [[(unit, first + bounds[unit] - start) for unit in range(bisect_left(bounds, start), bisect_left(bounds, end))] for start, end in ranges]
    owners = [owner(ranges, token) for token in bounds]
    places = [(window, first + token - ranges[window][0]) for window, token in zip(owners, bounds, strict=True)]
    stretches = [(offsets[group[0]][0], max(offsets[index][1] for index in group)) for group in groups]
    units = Framed([framed.ids[first + group[0]] for group in groups], [0] * len(groups), stretches, [0] * len(groups), 0, [(0, len(text))])
    return Reading(units, windows, places, shown)


def _gap(tokenizer: Tokenizer) -> int:
    """Where the tokens of a text would stand, for a text that has none."""
    return next(index for index, slot in enumerate(tokenizer.layout.single) if slot.part == 0)


def _window(framed: Framed, first: int, stop: int, start: int, end: int, length: int) -> Framed:
    """The special tokens of a frame around some of its text's tokens."""
    chosen = [*range(first), *range(first + start, first + end), *range(stop, len(framed.ids))]
    seen = (framed.offsets[first + start][0] if start else 0, length if first + end == stop else framed.offsets[first + end - 1][1])
    return Framed([framed.ids[i] for i in chosen], [framed.types[i] for i in chosen], [framed.offsets[i] for i in chosen], [framed.parts[i] for i in chosen], 0, [seen])


def cut_at(tokenizer: Tokenizer, text: str, framed: Framed, bounds: set[int]) -> Framed:
    """The frame with every token that crosses a bound replaced by the tokens of its pieces."""
    known = sorted(bounds)
    made = Framed([], [], [], [], framed.truncated, framed.visible)
    for index, (start, end) in enumerate(framed.offsets):
        inner = known[bisect_right(known, start) : bisect_left(known, end)] if framed.parts[index] == 0 else []
        if not inner:
            pieces = [(framed.ids[index], (start, end))]
        else:
            pieces = []
            for left, right in zip([start, *inner], [*inner, end], strict=True):
                piece = frame_batch(tokenizer, [text[left:right]], maximum=WHOLE)[0]
                pieces += [(token, (left + a, left + b)) for token, (a, b), part in zip(piece.ids, piece.offsets, piece.parts, strict=True) if part == 0]
        for token, offset in pieces:
            made.ids.append(token)
            made.types.append(framed.types[index])
            made.offsets.append(offset)
            made.parts.append(framed.parts[index])
    return made


def unit_groups(offsets: Sequence[tuple[int, int]], text: str, each: bool, starts: set[int] | None) -> list[list[int]]:
    """Tokens (by number) of each unit. Tokens that share a character are one unit; tokens of white space belong to none.

    ``each``: otherwise every token is a unit. Else a unit is a word: it begins at one of ``starts``, or, where no words are known, at
    anything but a letter or digit behind another; characters of scripts without spaces are words.
    """
    groups: list[list[int]] = []
    reach = -1
    for index, (start, end) in enumerate(offsets):
        if start >= end:
            continue
        goes_on = not each and groups and (start not in starts if starts is not None else _joined(text, start))
        if groups and (start < reach or goes_on):
            groups[-1].append(index)
        else:
            groups.append([index])
        reach = max(reach, end)
    return groups


def _joined(text: str, place: int) -> bool:
    before, after = text[place - 1 : place], text[place]
    return before.isalnum() and after.isalnum() and not _DENSE.match(before) and not _DENSE.match(after)


def window_ranges(count: int, room: int, stride: int, bounds: Sequence[int]) -> list[tuple[int, int]]:
    """Windows (first token, end) of ``count`` tokens, at most ``room`` each, neighbours sharing about ``stride``; one for no tokens.

    A window begins at one of ``bounds`` (sorted), where one is near enough.
    """
    room = max(room, 1)
    stride = min(stride, room - 1)
    ranges = [(0, min(room, count))]
    while ranges[-1][1] < count:
        latest = ranges[-1][1] - stride
        place = bisect_right(bounds, latest) - 1
        start = bounds[place] if place >= 0 and bounds[place] > max(ranges[-1][0], latest - room // 4) else latest
        ranges.append((start, min(start + room, count)))
    return ranges


def owner(ranges: Sequence[tuple[int, int]], token: int) -> int:
    """The window in which a token stands farthest from an edge that cuts the text; the first of those."""
    last = len(ranges) - 1
    best, most = 0, -1
    for number in range(bisect_right([start for start, _ in ranges], token)):
        start, end = ranges[number]
        if start <= token < end:
            before = WHOLE if number == 0 else token - start
            after = WHOLE if number == last else end - 1 - token
            if min(before, after) > most:
                best, most = number, min(before, after)
    return best


# ---- decoding --------------------------------------------------------------------------------------------------------------


def transitions(tags: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which tags may follow each other [tags, tags], begin [tags] and end [tags] a text, as bools.

    BIO: I- only behind B- or I- of its label. BIOES (known by its E- and S-): I- and E- only behind B- or I- of their label, which must go on.
    """
    parts = [(tag[0], tag[2:]) if tag[1:2] == "-" and tag[0] in "BIES" else ("O", "") for tag in tags]
    closed = any(kind in "ES" for kind, _ in parts)
    inner = np.array([kind in "IE" for kind, _ in parts])
    opens = np.array([kind in "BI" for kind, _ in parts])
    same = np.array([[one[1] == other[1] for other in parts] for one in parts])
    goes_on = opens[:, None] & same & inner[None, :]
    if closed:
        return goes_on | (~opens[:, None] & ~inner[None, :]), ~inner, ~opens
    return goes_on | np.broadcast_to(~inner[None, :], same.shape), ~inner, np.ones(len(parts), bool)


def best_path(values: np.ndarray, allowed: np.ndarray, begin: np.ndarray, end: np.ndarray) -> list[int]:
    """The tags [units] of the highest summed ``values`` [units, tags] among those that follow the rules (Viterbi 1967); of equal ones
    the tag with the lower number."""
    if not len(values):
        return []
    barred = np.where(allowed, 0.0, -np.inf)  # [from, to]
    score = values[0] + np.where(begin, 0.0, -np.inf)
    back = np.zeros(values.shape, np.int64)
    for place in range(1, len(values)):
        paths = score[:, None] + barred
        back[place] = paths.argmax(0)
        score = paths.max(0) + values[place]
    tag = int((score + np.where(end, 0.0, -np.inf)).argmax())
    path = [tag]
    for place in range(len(values) - 1, 0, -1):
        tag = int(back[place, tag])
        path.append(tag)
    return path[::-1]


def decode(values: np.ndarray, tags: Sequence[str], units: Framed, text: str, rules: tuple[np.ndarray, np.ndarray, np.ndarray] | None) -> list[dict[str, Any]]:
    """Spans from log-probabilities [units, tags]. ``rules`` as :func:`transitions` gives them; None takes each unit's likeliest tag.

    ``score`` is the probability of the span's least sure tag. ``first`` and ``last`` (exclusive) are its units.
    """
    path = best_path(values, *rules) if rules is not None else values.argmax(1).tolist() if len(values) else []
    sure = [float(np.exp(values[place, tag])) for place, tag in enumerate(path)]
    named = [tag if tag == OUTSIDE or (tag[1:2] == "-" and tag[0] in "BIES") else f"I-{tag}" for tag in (tags[number] for number in path)]
    return [
        {"start": span.start, "end": span.end, "label": span.label, "text": text[span.start : span.end], "score": min(sure[span.first : span.last]), "first": span.first, "last": span.last}
        for span in spans_from_tags(units, named)
    ]


def rules_of(head: Head, tags: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Rules for a head that Luban trained; none for another's, whose scheme may let I- begin a span."""
    return transitions(tags) if "scheme" in head.settings else None


def collect(reading: Reading, first: int, scores: Mapping[int, np.ndarray]) -> np.ndarray:
    """[units, …] what was scored at each unit's place; ``scores`` by window, those of this text from number ``first`` on."""
    return np.stack([scores[first + window][place] for window, place in reading.places])


def read_items(tokenizer: Tokenizer, items: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> list[Reading]:
    """The ``text`` of each item (and its ``words``, where it has them) as tagging reads it."""
    texts = [wanted(item, "text", number) for number, item in enumerate(items)]
    return read_texts(tokenizer, texts, [item.get("words") for item in items], settings)


def settings_of(model: Model) -> dict[str, Any]:
    """The head's settings, with a length that the model can read."""
    longest = getattr(model.shape, "maximum_positions", None)
    known = {"maximum_tokens": min(512, longest) if isinstance(longest, int) else 512}
    return known | dict(model.head.settings)


def tag(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """``{"spans": [{"start", "end", "label", "text", "score"}]}`` for each item, in characters of its text."""
    readings = read_items(tokenizer, items, settings_of(model))
    windows = [window for reading in readings for window in reading.windows]
    scores: dict[int, np.ndarray] = {}
    for batch in padded_batches(windows, tokenizer.pad_id, rows, model.device):
        for number, row in zip(batch.numbers, batch.scores(model).float().log_softmax(-1).cpu().numpy(), strict=True):
            scores[number] = row
    rules = rules_of(model.head, model.head.labels)
    found, first = [], 0
    for reading, item in zip(readings, items, strict=True):
        values = collect(reading, first, scores) if reading.places else np.zeros((0, len(model.head.labels)))
        spans = decode(values, model.head.labels, reading.units, item["text"], rules)
        found.append({"spans": [{key: value for key, value in span.items() if key not in ("first", "last")} for span in spans]})
        first += len(reading.windows)
    return found
