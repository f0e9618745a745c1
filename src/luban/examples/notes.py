"""What a reader has to tell beside the examples: records set aside with their reason, and whatever it repaired or noticed, counted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from luban.corpus.readers import BadLine
from luban.foundation.console import say, warn
from luban.foundation.messages import t

Answer = TypeVar("Answer")
_MOST_TEXT = 2000  # characters of a record set aside that are kept
_HALF = re.compile("[\ud800-\udfff]")


def show_bad(bad: Sequence[BadLine]) -> None:
    """Say which files were not read at all, and the first of the records that were set aside."""
    whole = [Path(item.file).name for item in bad if not item.line]
    if whole:
        say("files that were not read: {files}", files=", ".join(whole[:8]) + (" …" if len(whole) > 8 else ""))
    records = [item for item in bad if item.line]
    if records:
        warn("{count} records were set aside; the first ones:", count=len(records))
        for item in records[:5]:
            say("  {place}: {reason}", place=f"{item.file}:{item.line}", reason=item.reason)


def note_text(kind: str, count: int) -> str:
    """A count as a sentence in the reader's language."""
    return {
        "repeated": lambda: t("{count} examples repeat an earlier one with the same answer (kept)", count=count),
        "contradictory": lambda: t("{count} examples have the text of an earlier one and another answer (kept: look at them)", count=count),
        "unlabelled": lambda: t("{count} examples have no label", count=count),
        "spans repaired": lambda: t("{count} spans did not hold their own words and were moved to the one place that does", count=count),
        "spans widened": lambda: t(
            "{count} spans cut a character in two (combining mark, emoji sequence) and were widened to hold it whole", count=count
        ),
        "spans inclusive": lambda: t("{count} spans name their last character, not the one after it", count=count),
        "spans overlapping": lambda: t("{count} spans overlap another one; tags of words can hold only one of them", count=count),
        "spans empty": lambda: t("{count} texts hold no span", count=count),
        "tags repaired": lambda: t("{count} tags go on with an entity that was never begun, and begin one", count=count),
        "relations lost": lambda: t("{count} relations belong to a span that was set aside, and went with it", count=count),
        "mentions chosen": lambda: t(
            "{count} examples name an entity that stands several times in the text; the two nearest were taken", count=count
        ),
        "answers repaired": lambda: t(
            "{count} answers stood elsewhere than said and were found at the one place that holds them", count=count
        ),
        "answers searched": lambda: t(
            "{count} answers came without a position, stand several times in the context, and were taken at the first", count=count
        ),
        "unanswerable": lambda: t("{count} questions have no answer in their context", count=count),
        "several outputs": lambda: t("{count} inputs come with several outputs; each pair is an example", count=count),
        "annotations unused": lambda: t(
            "{count} annotations are neither entities nor relations (events, attributes, notes) and are not used", count=count
        ),
        "sliced away": lambda: t("{count} examples are outside the slice that was asked for", count=count),
        "upsampled": lambda: t("{count} examples were added by weights above 1", count=count),
        "weighted away": lambda: t("{count} examples were left out by weights below 1", count=count),
        "turns joined": lambda: t("{count} turns of a speaker who goes on were joined to the turn before", count=count),
        "many speakers": lambda: t("{count} conversations have more than two speakers; their turns are user and assistant alternately", count=count),
        "unanswered": lambda: t("{count} conversations end with a turn of the user, which is not learned", count=count),
        "one class": lambda: t("there is only one class, so there is nothing to tell apart"),
    }[kind]()


@dataclass
class Notes:
    """Records set aside (``bad``) and counts of what was noticed (``counts``, see `note_text`). Without ``answers`` a record whose label, grade or answer
    is missing or damaged is read as one that has none."""

    answers: bool = True
    bad: list[BadLine] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)

    def count(self, kind: str, number: int = 1) -> None:
        """Add to a count."""
        if number:
            self.counts[kind] = self.counts.get(kind, 0) + number

    def answer(self, read: Callable[[], Answer]) -> Answer | None:
        """The answer that ``read`` gives; None in the place of its ValueError where none is asked for."""
        try:
            return read()
        except ValueError:
            if self.answers:
                raise
            return None

    def set_aside(self, file: Any, line: int, reason: str, text: Any = "") -> None:
        """Keep a record that makes no example, with its reason."""
        self.bad.append(BadLine(str(file), line, reason, str(text)[:_MOST_TEXT]))


def check_text(text: Any, what: str = "text") -> str:
    """The text, if it is one that can be encoded and holds something. ValueError gives the reason otherwise."""
    if text is None or (isinstance(text, float) and text != text):
        raise ValueError(f"the {what} is missing")
    if isinstance(text, list) and all(isinstance(part, str) for part in text):
        text = join_words(text)
    if isinstance(text, dict | list | tuple):
        raise ValueError(f"the {what} is a {type(text).__name__}, not a text")
    text = text if isinstance(text, str) else str(text)
    if not text.strip():
        raise ValueError(f"the {what} is empty")
    if _HALF.search(text):
        raise ValueError(f"the {what} holds half a character (a lone surrogate at {_HALF.search(text).start()})")
    return text


def is_han(text: str) -> bool:
    """Whether a character of the text is written without spaces around it (Chinese, kana, their punctuation)."""
    return any(
        "\u2e80" <= letter <= "\u9fff"
        or "\uf900" <= letter <= "\ufaff"
        or "\uff00" <= letter <= "\uff60"
        or letter >= "\U00020000"
        and letter < "\U00040000"
        for letter in text
    )


def join_words(words: list[str]) -> str:
    """Words or sentences as one text, as `word_ranges` places them."""
    return word_ranges(words)[0]


def word_ranges(words: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """The text that words make and where each stands: a space between them, none where the text is Chinese.

    In a Chinese text two Latin words or numbers keep their space, single letters and digits (texts cut into characters) do not.
    """
    chinese = sum(is_han(word) for word in words) * 4 > len(words)
    text, ranges = [], []
    position, before = 0, ""
    for word in words:
        if before and not (chinese and (is_han(word[:1]) or is_han(before[-1:]) or min(len(word), len(before)) == 1)):
            text.append(" ")
            position += 1
        text.append(word)
        ranges.append((position, position + len(word)))
        position += len(word)
        before = word
    return "".join(text), ranges
