"""Spans of characters to tags on tokens and back: BIO (Ramshaw and Marcus 1995, with a B- at every beginning) and BIOES.

Tokens and spans need not meet: a span may cut a token, end behind what was cut off, or overlap another. Each such span is listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from luban.foundation.errors import DataError
from luban.tokenizer.framing import Framed

Scheme = Literal["BIO", "BIOES"]
OUTSIDE = "O"
IGNORED = -100  # the target that no loss counts


class Labelled(Protocol):
    """Characters ``start`` to ``end`` (exclusive) of a text, with a label."""

    start: int
    end: int
    label: str


@dataclass
class Aligned:
    """Tags of a frame's tokens: ``""`` for special tokens and for other texts than the one that was asked for.

    The lists hold numbers of spans: ``misaligned`` those that cut a token (tagged nonetheless), ``cut`` those that are
    seen in part (tagged as far as seen), ``overlapping`` those that cannot be written beside another, and ``lost`` those without any token
    (cut off, empty, or outside the text); the last two are not tagged.
    """

    tags: list[str]
    misaligned: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    overlapping: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class FoundSpan:
    """A span read from tags: characters ``start`` to ``end`` and tokens ``first`` to ``last``, ends exclusive."""

    start: int
    end: int
    label: str
    first: int
    last: int


def tag_names(labels: Iterable[str], scheme: Scheme = "BIO") -> list[str]:
    """Every tag of some labels: O first, then label by label in their order."""
    kinds = "BI" if scheme == "BIO" else "BIES"
    return [OUTSIDE, *(f"{kind}-{label}" for label in dict.fromkeys(labels) for kind in kinds)]


def tag_ids(tags: Sequence[str], names: Sequence[str], ignored: int = IGNORED) -> list[int]:
    """Numbers of tags; ``ignored`` for tokens that have none. Raises DataError for a tag outside ``names``."""
    numbers = {name: index for index, name in enumerate(names)}
    for tag in tags:
        if tag and tag not in numbers:
            raise DataError(
                "the label of {tag} is not among those the model learns", "", "it knows: {known}", tag=tag, known=", ".join(names[:20])
            )
    return [numbers[tag] if tag else ignored for tag in tags]


def align_spans(
    framed: Framed, spans: Sequence[Labelled], *, scheme: Scheme = "BIO", part: int = 0, misaligned: Literal["widen", "shrink"] = "widen"
) -> Aligned:
    """Tags of the tokens of text ``part`` for spans of its characters.

    A span that cuts a token is widened to the whole token, or shrunk to the tokens that lie within it (lost where there is none).
    Of overlapping spans the one that starts first is tagged, of those the longest. Two spans that only share a token (and
    no character) are both tagged: the token goes to the first.
    """
    aligned = Aligned([OUTSIDE if number == part else "" for number in framed.parts])
    places = [index for index, number in enumerate(framed.parts) if number == part and framed.offsets[index][0] < framed.offsets[index][1]]
    seen = framed.visible[part] if part < len(framed.visible) else (0, 0)
    begin = 0  # tokens before this one end before every span to come
    reach: int | None = None  # where the spans tagged so far end
    for number in sorted(range(len(spans)), key=lambda index: (spans[index].start, -spans[index].end, index)):
        span = spans[number]
        while begin < len(places) and framed.offsets[places[begin]][1] <= span.start:
            begin += 1
        touched = []
        for index in places[begin:]:
            if framed.offsets[index][0] >= span.end:
                break
            touched.append(index)
        if not touched or span.start >= span.end:
            aligned.lost.append(number)
            continue
        if reach is not None and span.start < reach:
            aligned.overlapping.append(number)
            continue
        whole = [index for index in touched if span.start <= framed.offsets[index][0] and framed.offsets[index][1] <= span.end]
        chosen = touched if misaligned == "widen" else whole
        chosen = [index for index in chosen if aligned.tags[index] == OUTSIDE]
        if len(whole) < len(touched):
            aligned.misaligned.append(number)
        if not chosen:
            aligned.lost.append(number)
            continue
        if span.start < seen[0] or span.end > seen[1]:
            aligned.cut.append(number)
        reach = span.end
        _write(aligned.tags, chosen, span.label, scheme)
    for problems in (aligned.misaligned, aligned.cut, aligned.overlapping, aligned.lost):
        problems.sort()
    return aligned


def _write(tags: list[str], places: list[int], label: str, scheme: Scheme) -> None:
    # Tokens of white space between two words lie between first and last: they belong to the span.
    run = range(places[0], places[-1] + 1)
    for index in run:
        tags[index] = f"I-{label}"
    tags[run[0]] = f"B-{label}"
    if scheme == "BIOES":
        tags[run[-1]] = f"E-{label}" if len(run) > 1 else f"S-{label}"


def spans_from_tags(framed: Framed, tags: Sequence[str], *, part: int = 0) -> list[FoundSpan]:
    """Spans that tags of either scheme spell, first to last; tags that follow no rule are read as conlleval does.

    A span begins at B- and S-, and at an I- or E- that continues no span of its label; it ends behind E- and S-, and before
    anything that does not continue it. Where two spans meet inside one character (byte-level tokens), it belongs to the first.
    """
    if len(tags) != len(framed.ids):
        raise ValueError(f"{len(tags)} tags for {len(framed.ids)} tokens")
    runs: list[tuple[str, list[int]]] = []
    going = False  # whether the last run may go on
    for index, tag in enumerate(tags):
        if framed.parts[index] != part or not tag or tag == OUTSIDE:
            going = False
            continue
        kind, _, label = tag.partition("-")
        if not (going and kind in "IE" and runs[-1][0] == label):
            runs.append((label, []))
        runs[-1][1].append(index)
        going = kind in "BI"
    found: list[FoundSpan] = []
    for label, run in runs:
        offsets = [framed.offsets[index] for index in run if framed.offsets[index][0] < framed.offsets[index][1]]
        start, end = (offsets[0][0], offsets[-1][1]) if offsets else (0, 0)
        if found:
            start = max(start, found[-1].end)
        if start < end:
            found.append(FoundSpan(start, end, label, run[0], run[-1] + 1))
    return found
