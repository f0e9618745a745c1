"""Changes of a text as edits with places, so that entities and relations stay on their words; examples with a changed text.

An edit never touches a locked range (an entity, a word of negation). What a model wrote anew has no edits: there entities are looked
for, and an example whose entities cannot be told with certainty is given up.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import xxhash

from luban.examples.notes import is_han
from luban.examples.splitting import normalised
from luban.examples.tasks import LabeledText, RelationText, Span, TaggedText, TextPair

Range = tuple[int, int]
NEGATIONS = (
    *("not", "no", "never", "none", "nobody", "nothing", "neither", "nor", "without", "cannot", "n't"),
    *"不没无未非勿莫别",
)


@dataclass(frozen=True)
class Edit:
    """Characters ``start`` to ``end`` (exclusive; equal for an insertion) become ``text``."""

    start: int
    end: int
    text: str


class Draws:
    """Random numbers that depend on what they were seeded with alone: the same text is changed the same way wherever it stands."""

    def __init__(self, *seeds: object):
        # xxhash rather than random.Random's own seeding and shuffling, which Python may change.
        self.key = "\x1f".join(map(str, seeds)).encode("utf-8", "replace")
        self.count = 0

    def unit(self) -> float:
        """The next number in [0, 1)."""
        self.count += 1
        return xxhash.xxh3_64_intdigest(self.key, seed=self.count) / 2**64

    def below(self, number: int) -> int:
        """A whole number in [0, number)."""
        return min(int(self.unit() * number), number - 1)

    def choice(self, items: Sequence[Any]) -> Any:
        return items[self.below(len(items))]

    def sample(self, items: Sequence[Any], number: int) -> list[Any]:
        """``number`` different places' items, in the order drawn: Fisher–Yates, in which only the places that changed are kept."""
        moved: dict[int, int] = {}
        found = []
        for place in range(min(number, len(items))):
            other = place + self.below(len(items) - place)
            found.append(items[moved.get(other, other)])
            moved[other] = moved.get(place, place)
        return found


def apply(text: str, edits: Iterable[Edit]) -> str:
    """The text with the edits made; they must not overlap."""
    pieces, position = [], 0
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
        assert edit.start >= position and edit.end <= len(text), f"{edit} overlaps another edit or lies outside the text"
        pieces += [text[position : edit.start], edit.text]
        position = edit.end
    return "".join([*pieces, text[position:]])


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Overlapping and touching ranges as one, in order."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


class Locks:
    """Ranges of a text that stay as they are."""

    def __init__(self, text: str, ranges: Iterable[Range], kept: re.Pattern[str] | None = None):
        words = [match.span() for match in kept.finditer(text)] if kept else []
        # Touching ranges stay apart: between two entities something may be inserted.
        self.ranges: list[Range] = []
        for start, end in sorted([*ranges, *words]):
            if self.ranges and start < self.ranges[-1][1]:
                self.ranges[-1] = (self.ranges[-1][0], max(self.ranges[-1][1], end))
            else:
                self.ranges.append((start, end))
        self._starts = [start for start, _ in self.ranges]

    def free(self, start: int, end: int) -> bool:
        """Whether nothing of characters ``start`` to ``end`` is locked; for an empty range, whether something may be inserted there."""
        before = bisect_right(self._starts, start if start == end else end - 1) - 1
        while before >= 0 and self.ranges[before][0] == start == end:
            before -= 1
        return before < 0 or self.ranges[before][1] <= start


def kept_words(words: Sequence[str]) -> re.Pattern[str] | None:
    """Finds words that are not to be changed: Chinese ones anywhere, others as whole words in any case; ``n't`` as an ending."""
    if not words:
        return None
    parts = []
    for word in sorted(set(words), key=lambda word: (-len(word), word)):
        plain = re.escape(word).replace("'", "['’]")
        parts.append(plain if is_han(word) else rf"\w+{plain}(?!\w)" if word == "n't" else rf"(?<!\w){plain}(?!\w)")
    return re.compile("|".join(parts), re.IGNORECASE)


def marks_follow(text: str, place: int) -> bool:
    """Whether the character at ``place`` carries marks (accents, joiners, variation selectors) and is part of a larger one."""
    if place >= len(text):
        return False
    letter = text[place]
    return bool(unicodedata.combining(letter)) or "\ufe00" <= letter <= "\ufe0f" or letter == "\u200d" or "\U000e0100" <= letter <= "\U000e01ef"


# ------------------------------------------------------------------------------------------------------ examples


def parts_of(example: Any) -> list[str]:
    """Names of the texts of an example that may be changed."""
    if isinstance(example, TextPair):
        return ["input"]
    return ["text", "pair"] if isinstance(example, LabeledText) and example.pair else ["text"]


def locked_ranges(example: Any) -> list[Range]:
    """Where the entities of an example stand in its text."""
    if isinstance(example, TaggedText):
        return [(span.start, span.end) for span in example.spans]
    if isinstance(example, RelationText):
        return [(span.start, span.end) for span in (example.head, example.tail)]
    return []


def edited(example: Any, part: str, edits: Sequence[Edit]) -> Any | None:
    """The example with edits made to one of its texts; None where a span would no longer spell the same."""
    before = getattr(example, part)
    after = apply(before, edits)
    ordered = sorted(edits, key=lambda edit: (edit.start, edit.end))

    def moved(span: Span) -> Span | None:
        # An insertion right before the span shifts it; one right behind it does not belong to it.
        shift = sum(len(edit.text) - (edit.end - edit.start) for edit in ordered if edit.end <= span.start)
        found = replace(span, start=span.start + shift, end=span.end + shift)
        return found if after[found.start : found.end] == before[span.start : span.end] else None

    return _with_text(example, part, after, moved)


def rewritten(example: Any, part: str, after: str) -> Any | None:
    """The example with a text that was written anew; None where its spans are not certain to be found again.

    They are where every surface stands as often in the new text as it is marked in the old one, with one label.
    """
    if not after.strip():
        return None
    before = getattr(example, part)
    spans = example.spans if isinstance(example, TaggedText) else [example.head, example.tail] if isinstance(example, RelationText) else []
    places: dict[str, list[int]] = {}
    found: dict[tuple[int, int], int] = {}
    for span in sorted({(span.start, span.end, span.label): span for span in spans}.values(), key=lambda span: (span.start, span.end)):
        words = before[span.start : span.end]
        marked = [other for other in spans if before[other.start : other.end] == words]
        distinct = sorted({(other.start, other.end) for other in marked})
        places[words] = places.get(words) or [match.start() for match in re.finditer(f"(?={re.escape(words)})", after)]
        several_kinds = len({other.label for other in marked}) > 1 or isinstance(example, RelationText) or bool(getattr(example, "relations", None))
        if len(places[words]) != len(distinct) or (several_kinds and len(distinct) > 1) or not _whole_words(after, places[words], words):
            return None
        found[span.start, span.end] = places[words][distinct.index((span.start, span.end))]

    def moved(span: Span) -> Span | None:
        start = found[span.start, span.end]
        return replace(span, start=start, end=start + span.end - span.start)

    return _with_text(example, part, after, moved)


def _whole_words(text: str, places: list[int], words: str) -> bool:
    """Whether the words do not begin or end inside longer ones, as "Ann" does in "Annual"."""
    for place in places:
        end = place + len(words)
        if (place and joins(text[place - 1], words[0])) or (end < len(text) and joins(words[-1], text[end])):
            return False
    return True


def joins(left: str, right: str) -> bool:
    """Whether two characters side by side would read as one word: letters and digits of scripts that set spaces."""
    return left.isalnum() and right.isalnum() and not is_han(left) and not is_han(right)


def _with_text(example: Any, part: str, after: str, moved: Any) -> Any | None:
    if isinstance(example, TaggedText):
        spans = [moved(span) for span in example.spans]
        return None if None in spans else replace(example, text=after, spans=spans, words=None)
    if isinstance(example, RelationText):
        head, tail = moved(example.head), moved(example.tail)
        return None if head is None or tail is None else replace(example, text=after, head=head, tail=tail)
    return replace(example, **{part: after})


# ---------------------------------------------------------------------------------------------------------- rows


def row_of(example: Any, task: str, source: str, made_by: str) -> dict[str, Any]:
    """An example as a row that `read_examples` recognises for the task, with where it comes from."""
    about = {"source": source, "made_by": made_by}
    if isinstance(example, LabeledText):
        label = {} if example.label is None else {"labels" if task == "multi_label" else "label": example.label}
        return {"text": example.text, **({"text_pair": example.pair} if example.pair else {}), **label, **about}
    if isinstance(example, TaggedText):
        spans = [[span.start, span.end, span.label] for span in example.spans]
        relations = {"relations": [[head, label, tail] for head, tail, label in example.relations]} if task == "joint_relation" else {}
        return {"text": example.text, "spans": spans, **relations, **about}
    if isinstance(example, RelationText):
        ends = {
            name: {"text": example.text[span.start : span.end], "start": span.start, "end": span.end, **({"type": span.label} if span.label else {})}
            for name, span in (("head", example.head), ("tail", example.tail))
        }
        return {"text": example.text, **ends, **({} if example.label is None else {"relation": example.label}), **about}
    return {**example.controls, "input": example.input, "output": example.output, **about}


def mapping_of(task: str, examples: Sequence[Any]) -> dict[str, Any]:
    """The mapping with which the rows are read without guessing."""
    if task in ("tagging", "joint_relation"):
        return {"text": "text", "spans": "spans", **({"relations": "relations"} if task == "joint_relation" else {})}
    if task == "relation":
        return {"text": "text", "head": "head", "tail": "tail", "label": "relation"}
    if task == "text_pairs":
        controls = sorted({name for example in examples for name in example.controls})
        return {"input": "input", "output": "output", **({"controls": controls} if controls else {})}
    pair = any(example.pair for example in examples)
    labelled = any(example.label is not None for example in examples)
    label = {"label": "labels" if task == "multi_label" else "label"} if labelled else {}
    return {"text": "text", **({"pair": "text_pair"} if pair else {}), **label}


def key_of(example: Any) -> int:
    """A number for what an example says: texts compared without case, width, spaces and punctuation."""
    if isinstance(example, TextPair):
        texts = [example.input]
    elif isinstance(example, LabeledText):
        texts = [example.text, example.pair]
    else:
        texts = [example.text]
    return xxhash.xxh3_64_intdigest("\x1e".join(map(normalised, texts)).encode("utf-8", "replace"))
