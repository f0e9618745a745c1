"""Texts as sequences of units that mean the same in every language: words, and single characters where no spaces stand.

Text is first brought to NFKC and lower case: full-width letters and digits, ligatures and composed accents count as what
they look like. A Han or kana character is a unit; elsewhere a unit is a run of letters, digits and the marks on them (so
Hindi, Arabic and Korean keep whole words). Punctuation, symbols and spaces only separate.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

_HAN = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF), (0x3005, 0x3007))
_KANA = ((0x3040, 0x30FF), (0x31F0, 0x31FF))


@lru_cache(maxsize=100_000)
def kind(character: str) -> str:
    """``"han"``, ``"kana"``, ``"word"`` (letter, digit, mark) or ``""`` (anything that separates)."""
    code = ord(character)
    if any(low <= code <= high for low, high in _HAN):
        return "han"
    if unicodedata.category(character)[0] not in "LNM":
        return ""
    return "kana" if any(low <= code <= high for low, high in _KANA) else "word"


def units(text: str, lower: bool = True) -> list[str]:
    """The words and characters of a text, in order."""
    text = unicodedata.normalize("NFKC", text)
    found, word = [], []
    for character in text.lower() if lower else text:
        what = kind(character)
        if what == "word":
            word.append(character)
            continue
        if word:
            found.append("".join(word))
            word = []
        if what:
            found.append(character)
    if word:
        found.append("".join(word))
    return found


def characters(text: str) -> int:
    """How many characters a person counts: no spaces, no punctuation; marks belong to their letter."""
    return sum(bool(kind(character)) and unicodedata.category(character)[0] != "M" for character in unicodedata.normalize("NFC", text))


def language_of(texts: Iterable[str]) -> str:
    """``"zh"``, ``"ja"`` or ``"other"`` by script: kana among the Han makes it Japanese, Han among the letters Chinese.

    A Chinese character says about as much as four letters; it is weighed so.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(kind(character) for character in text)
    if counts["kana"] > 0.1 * counts["han"] and 4 * (counts["kana"] + counts["han"]) > counts["word"]:
        return "ja"
    return "zh" if counts["han"] and 4 * counts["han"] > counts["word"] else "other"


def resolve_language(language: str, texts: Iterable[str]) -> str:
    """The language itself (``zh-CN`` → ``zh``), or what the texts look like for ``"auto"``."""
    return language_of(texts) if language in ("auto", "") else language.replace("_", "-").split("-")[0].lower()


def ngrams(sequence: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """How often each run of ``order`` units occurs."""
    return Counter(zip(*(sequence[start:] for start in range(order)), strict=False)) if order else Counter()
