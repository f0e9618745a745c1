"""Easy data augmentation (Wei and Zou, 2019, arXiv:1901.11196) for English and Chinese: each function gives edits of a text.

As in the paper, ``max(1, strength × words)`` words are replaced, inserted or swapped, and each word is deleted with probability
``strength``. Otherwise than there, entities and words of negation stay, one word at least is deleted and one at least remains, and
the text keeps its spaces and punctuation.
"""

from __future__ import annotations

from collections.abc import Sequence

from luban.examples.augmentation_edits import Draws, Edit, Locks, Range, joins, merged
from luban.examples.augmentation_lexicons import Lookup
from luban.examples.segmentation import stop_words, word_spans


class Words:
    """A text cut into words, and which of them may be changed."""

    def __init__(self, text: str, locks: Locks, segmentation: str = "jieba"):
        self.text, self.locks = text, locks
        spans = word_spans(text, segmentation)
        self.starts = [start for start, _ in spans]
        self.spans = [(start, end) for start, end in spans if any(letter.isalnum() for letter in text[start:end])]
        self.free = [span for span in self.spans if locks.free(*span)]

    def __getitem__(self, span: Range) -> str:
        return self.text[span[0] : span[1]]

    def count(self, strength: float) -> int:
        """How many words are to be changed: the share of all, one at least."""
        return max(1, int(strength * len(self.spans)))


def synonym_edits(words: Words, strength: float, synonyms: Lookup, draws: Draws) -> list[Edit]:
    """Up to n different words, wherever they stand, each replaced by one of its synonyms. Stop words stay."""
    places: dict[str, list[Range]] = {}
    for span in words.free:
        places.setdefault(words[span].lower(), []).append(span)
    candidates = [word for word in places if word not in stop_words() and any(letter.isalpha() for letter in word)]
    edits: list[Edit] = []
    left = words.count(strength)
    for word in draws.sample(candidates, len(candidates)):
        if not left:
            break
        if not (known := [other for other in synonyms(word) if other.lower() != word]):
            continue
        chosen = draws.choice(known)
        edits += [Edit(*span, _cased(chosen, words[span])) for span in places[word]]
        left -= 1
    return edits


def insertion_edits(words: Words, strength: float, synonyms: Lookup, draws: Draws) -> list[Edit]:
    """Up to n times a synonym of a random word, that is no stop word, put at a random place between words."""
    sources = [span for span in words.free if words[span].lower() not in stop_words() and synonyms(words[span])]
    places = [place for place in [*words.starts, len(words.text)] if words.locks.free(place, place)]
    if not sources or not places:
        return []
    inserted: dict[int, list[str]] = {}
    for _ in range(words.count(strength)):
        word = draws.choice(synonyms(words[draws.choice(sources)]))
        inserted.setdefault(draws.choice(places), []).append(word)
    return [Edit(place, place, _spaced(words.text, place, found)) for place, found in sorted(inserted.items())]


def swap_edits(words: Words, strength: float, draws: Draws) -> list[Edit]:
    """n times two random words change places."""
    if len(words.free) < 2:
        return []
    order = list(range(len(words.free)))
    for _ in range(words.count(strength)):
        one, two = draws.sample(range(len(order)), 2)
        order[one], order[two] = order[two], order[one]
    moved = [(span, words[words.free[source]]) for span, source in zip(words.free, order, strict=True)]
    return [Edit(*span, word) for span, word in moved if word != words[span]]


def deletion_edits(words: Words, strength: float, draws: Draws) -> list[Edit]:
    """Each word left out with the probability ``strength``; one at least goes, one at least stays."""
    if not words.free or len(words.spans) < 2:
        return []
    gone = [span for span in words.free if draws.unit() < strength] or [draws.choice(words.free)]
    if len(gone) == len(words.spans):
        gone.remove(draws.choice(gone))
    text = words.text
    runs: list[Range] = []
    for start, end in gone:  # neighbours go with the spaces between them
        if runs and text[runs[-1][1] : start].isspace() and words.locks.free(runs[-1][1], start):
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    ranges = merged(_with_space(words, run) for run in runs)
    return [Edit(start, end, " " if start > 0 and end < len(text) and joins(text[start - 1], text[end]) else "") for start, end in ranges]


def _with_space(words: Words, span: Range) -> Range:
    """Words with one of the spaces beside them, so that two do not remain."""
    start, end = span
    text = words.text
    if end < len(text) and text[end] == " " and (start == 0 or text[start - 1].isspace()) and words.locks.free(end, end + 1):
        return start, end + 1
    if start > 0 and text[start - 1] == " " and (end == len(text) or not text[end].isalnum()) and words.locks.free(start - 1, start):
        return start - 1, end
    return span


def _cased(word: str, like: str) -> str:
    """A word in the case of the one that it replaces."""
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def _spaced(text: str, place: int, words: Sequence[str]) -> str:
    """Words to be inserted, with the spaces that they need."""
    found = ""
    for word in words:
        before = found[-1:] or text[place - 1 : place]
        found += (" " if before and joins(before, word[0]) or (before and before in ",.;:!?" and word[0].isascii()) else "") + word
    after = text[place : place + 1]
    return found + (" " if after and joins(found[-1], after) else "")
