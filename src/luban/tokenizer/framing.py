"""Texts and pairs of texts to the ids a model expects: its special tokens put in, what is too long cut, every token traced to its characters.

Training and prediction frame through here, so that both see the same ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tokenizers import Tokenizer as Core

from luban.foundation.errors import ConfigError

if TYPE_CHECKING:
    from luban.tokenizer.tokenizer import Tokenizer

Truncate = Literal["first", "second", "longest"]
Offsets = list[tuple[int, int]]
_BATCH = 1024  # texts encoded at a time; bounds what the library holds
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKS = re.compile("[\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u064b-\u065f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\u3099\u309a\ufe00-\ufe0f]+")


@dataclass
class Framed:
    """One input of a model. ``ids``, ``types``, ``offsets`` and ``parts`` have one entry a token.

    ``offsets``: characters of the part's text, end exclusive, without the white space around; (0, 0) for special tokens.
    ``parts``: 0 first text, 1 second text, -1 special token. ``truncated``: how many tokens of the texts were cut off.
    ``visible``: for each part the characters that the frame shows, end exclusive: all of them unless something was cut.
    """

    ids: list[int]
    types: list[int]
    offsets: Offsets
    parts: list[int]
    truncated: int = 0
    visible: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Slot:
    """A place in a layout: the tokens of text ``part``, or (part -1) the special token ``id``."""

    part: int
    type: int
    id: int = -1


@dataclass(frozen=True)
class Layout:
    """What stands around one text and around two."""

    single: tuple[Slot, ...]
    pair: tuple[Slot, ...]


@dataclass
class _Part:
    """An encoded text."""

    length: int  # characters
    ids: list[int]
    offsets: Offsets

    def cut(self, start: int, stop: int) -> _Part:
        return _Part(self.length, self.ids[start:stop], self.offsets[start:stop])


def frame(
    tokenizer: Tokenizer,
    first: str,
    second: str | None = None,
    *,
    maximum: int,
    truncate: Truncate = "longest",
    allow_special: bool = False,
) -> Framed:
    """One text, or a pair of them, as at most ``maximum`` ids with the special tokens of the tokenizer's family.

    BERT: [CLS] a [SEP] b [SEP] with types 0 and 1; RoBERTa and BART: <s> a </s></s> b </s>; T5: a </s> b </s>; in general what the
    tokenizer's own post-processor adds. Decoders that add nothing behind a text: begin of text, a, a line break, b, end of text.
    An empty second text counts as none. ``truncate`` names the text that loses its end; each text that has tokens keeps one at least, so
    that the other is cut too where that must be. Special tokens spelt in a text are text unless ``allow_special``. Raises
    ConfigError where ``maximum`` leaves no room.
    """
    return frame_batch(tokenizer, [first], [second], maximum=maximum, truncate=truncate, allow_special=allow_special)[0]


def frame_batch(
    tokenizer: Tokenizer,
    firsts: Sequence[str],
    seconds: Sequence[str | None] | None = None,
    *,
    maximum: int,
    truncate: Truncate = "longest",
    allow_special: bool = False,
) -> list[Framed]:
    """``frame`` for many texts, encoded on all cores."""
    seconds = [None] * len(firsts) if seconds is None else seconds
    if len(firsts) != len(seconds):
        raise ValueError(f"{len(firsts)} first texts and {len(seconds)} second texts")
    core = tokenizer.core if allow_special else tokenizer._plain
    layout = tokenizer.layout
    framed: list[Framed] = []
    for start in range(0, len(firsts), _BATCH):
        pairs = list(zip(firsts[start : start + _BATCH], seconds[start : start + _BATCH], strict=True))
        parts = iter(_encode(core, [text for first, second in pairs for text in ((first, second) if second else (first,))]))
        for _, second in pairs:
            texts = [next(parts), next(parts)] if second else [next(parts)]
            framed.append(_fit(layout.pair if second else layout.single, texts, maximum, truncate))
    return framed


def frame_windows(
    tokenizer: Tokenizer, question: str, context: str, *, maximum: int, stride: int, allow_special: bool = False
) -> list[Framed]:
    """A long context in overlapping windows, each framed behind the question (or alone where the question is empty).

    Neighbouring windows share ``stride`` tokens of the context; the last one ends with it. A question longer than half the room
    is cut to that half (counted in ``truncated``). Raises ConfigError where ``stride`` leaves no room for new tokens.
    """
    layout = tokenizer.layout.pair if question else tokenizer.layout.single
    budget = maximum - sum(slot.part < 0 for slot in layout)
    half = budget // 2 if question else 0
    if budget - half <= stride or stride < 0:
        raise ConfigError(
            "stride: {stride} tokens of overlap do not fit into windows of {maximum}",
            "beside special tokens and a question there may be room for only {room} tokens of text",
            "take a smaller stride or a larger maximum", stride=stride, maximum=maximum, room=max(budget - half, 0),
        )  # fmt: skip
    core = tokenizer.core if allow_special else tokenizer._plain
    *asked, text = _encode(core, [question, context] if question else [context])
    cut = max(len(asked[0].ids) - half, 0) if asked else 0
    before = [asked[0].cut(0, len(asked[0].ids) - cut)] if asked else []
    room = budget - sum(len(part.ids) for part in before)
    windows: list[Framed] = []
    for start in range(0, max(len(text.ids), 1), room - stride):
        windows.append(_compose(layout, [*before, text.cut(start, start + room)], cut, [*asked, text], start))
        if start + room >= len(text.ids):
            break
    return windows


def find_layout(tokenizer: Tokenizer) -> Layout:
    """How a tokenizer's family writes one text and two: by its post-processor, else by its named special tokens, else as a decoder."""
    single, pair = probed(tokenizer.core, 1), probed(tokenizer.core, 2)
    if single and pair and single[-1].part < 0:
        return Layout(single, pair)
    start, end = tokenizer.cls_id, tokenizer.sep_id
    if start is not None and end is not None:
        return _classifier_layout(start, end, separate_types=tokenizer.special_tokens["sep_token"] == "[SEP]")
    end = tokenizer.end_of_text_id
    if tokenizer.sentinel_ids and tokenizer.begin_of_text_id is None:  # T5 whose post-processor is lost
        return Layout((Slot(0, 0), Slot(-1, 0, end)), (Slot(0, 0), Slot(-1, 0, end), Slot(1, 0), Slot(-1, 0, end)))
    begin = () if tokenizer.begin_of_text_id is None else (Slot(-1, 0, tokenizer.begin_of_text_id),)
    line = tokenizer.encode("\n")
    if not line or tokenizer.unk_id in line:  # a vocabulary of words may know no line break
        line = [end]
    between = tuple(Slot(-1, 0, index) for index in line)
    return Layout((*begin, Slot(0, 0), Slot(-1, 0, end)), (*begin, Slot(0, 0), *between, Slot(1, 0), Slot(-1, 0, end)))


def _classifier_layout(start: int, end: int, separate_types: bool) -> Layout:
    """BERT's layout, or RoBERTa's, which sets two ends between the texts and knows one type."""
    single = (Slot(-1, 0, start), Slot(0, 0), Slot(-1, 0, end))
    if separate_types:
        return Layout(single, (*single, Slot(1, 1), Slot(-1, 1, end)))
    return Layout(single, (*single, Slot(-1, 0, end), Slot(1, 0), Slot(-1, 0, end)))


def probed(core: Core, texts: int) -> tuple[Slot, ...]:
    """The layout that the post-processor writes around one text or two, read from a framed probe; () where nothing can be encoded."""
    for probe in ("a", "中", *list(core.get_vocab(with_added_tokens=False))[:1000]):
        encoding = core.encode(probe, *[probe] * (texts - 1), add_special_tokens=True)
        slots: list[Slot] = []
        for index, type_id, part in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
            if part is None:
                slots.append(Slot(-1, type_id, index))
            elif not slots or slots[-1].part != part:
                slots.append(Slot(part, type_id))
        if sum(slot.part >= 0 for slot in slots) == texts:
            return tuple(slots)
    return ()


def _encode(core: Core, texts: list[str]) -> list[_Part]:
    """Ids and offsets of texts. Half surrogate pairs become U+FFFD, and whole ones one character; offsets still count the given text."""
    maps = [_surrogate_map(text) if _SURROGATE.search(text) else None for text in texts]
    valid = [
        text if found is None else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        for text, found in zip(texts, maps, strict=True)
    ]
    parts = []
    for given, text, found, encoding in zip(texts, valid, maps, core.encode_batch(valid, add_special_tokens=False), strict=True):
        offsets = _tidy(text, encoding.offsets)
        if found is not None:
            offsets = [(found[start], found[end]) for start, end in offsets]
        parts.append(_Part(len(given), encoding.ids, offsets))
    return parts


def _surrogate_map(text: str) -> list[int]:
    """For each character of the repaired text, and its end, the place in the given one."""
    places, place = [], 0
    while place < len(text):
        places.append(place)
        whole = "\ud800" <= text[place] <= "\udbff" and "\udc00" <= text[place + 1 : place + 2] <= "\udfff"
        place += 2 if whole else 1
    return [*places, len(text)]


def _tidy(text: str, offsets: Offsets) -> Offsets:
    """Offsets without the white space that some tokenizers count to a word, and with the accents that others strip from it."""
    tidy = []
    for start, end in offsets:
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        tidy.append((start, end))
    if not text.isascii() and _MARKS.search(text):
        _take_marks(text, tidy)
    return tidy


def _take_marks(text: str, offsets: Offsets) -> None:
    """Give combining marks that no token holds to the token before them. In place; offsets never go back."""
    marks = {match.start(): match.end() for match in _MARKS.finditer(text)}
    ahead = following = len(text)  # where the next token behind the present character starts; where the token just seen started
    last = len(text) + 1
    for index in range(len(offsets) - 1, -1, -1):
        start, end = offsets[index]
        if end < last:
            ahead, last = following, end
        if start < end and end in marks and ahead > end:
            offsets[index] = (start, min(marks[end], ahead))
        following = start


def _fit(layout: tuple[Slot, ...], texts: list[_Part], maximum: int, truncate: Truncate) -> Framed:
    """Cut the texts to the room that the special tokens leave, and put them into the layout."""
    budget = maximum - sum(slot.part < 0 for slot in layout)
    lengths = [len(text.ids) for text in texts]
    if budget < sum(length > 0 for length in lengths) or budget < 0:
        raise ConfigError(
            "maximum: {maximum} tokens are too few", "special tokens alone take {special}", "give more tokens",
            maximum=maximum, special=maximum - budget,
        )  # fmt: skip
    kept = _shares(lengths, budget, truncate)
    return _compose(layout, [text.cut(0, keep) for text, keep in zip(texts, kept, strict=True)], sum(lengths) - sum(kept), texts, 0)


def _shares(lengths: list[int], budget: int, truncate: Truncate) -> list[int]:
    """How many tokens each text keeps."""
    if sum(lengths) <= budget:
        return lengths
    if len(lengths) == 1:
        return [budget]
    first, second = lengths
    if truncate == "first":
        second = min(second, budget - min(first, 1))
        return [budget - second, second]
    if truncate == "second":
        first = min(first, budget - min(second, 1))
        return [first, budget - first]
    if first <= second:
        first = min(first, budget // 2)
        return [first, budget - first]
    second = min(second, budget // 2)
    return [budget - second, second]


def _compose(layout: tuple[Slot, ...], texts: list[_Part], truncated: int, whole: list[_Part], start: int) -> Framed:
    """``texts`` are what is left of ``whole``; the last of them begins at token ``start`` of its whole."""
    framed = Framed([], [], [], [], truncated)
    for slot in layout:
        if slot.part < 0:
            framed.ids.append(slot.id)
            framed.types.append(slot.type)
            framed.offsets.append((0, 0))
            framed.parts.append(-1)
            continue
        text = texts[slot.part]
        framed.ids += text.ids
        framed.types += [slot.type] * len(text.ids)
        framed.offsets += text.offsets
        framed.parts += [slot.part] * len(text.ids)
    for number, (text, full) in enumerate(zip(texts, whole, strict=True)):
        begun = start if number == len(texts) - 1 else 0
        left = text.offsets[0][0] if begun and text.ids else 0
        ended = begun + len(text.ids) >= len(full.ids)
        framed.visible.append((left, text.length if ended else text.offsets[-1][1] if text.ids else left))
    return framed
