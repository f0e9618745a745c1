"""The language of a text: by its script first, by py3langid where a script serves many languages."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

SAMPLE_CHARACTERS = 600
UNDETERMINED = "und"
_SCRIPTS = {
    "han": re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"),
    "kana": re.compile("[\u3041-\u3096\u30a1-\u30fa]"),
    "hangul": re.compile("[\u1100-\u11ff\uac00-\ud7a3]"),
    "thai": re.compile("[\u0e01-\u0e4e]"),
}
_LETTER = re.compile(r"[^\W\d_]")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
_LETTERS_IN_A_WORD = 5  # a Latin word weighs as much as one Han character


def identify(text: str, minimum_confidence: float = 0.5) -> str:
    """The two-letter code of the text's language, or ``und`` where it is too short or too mixed to tell.

    Looks at the first and the middle part of a long text.
    """
    if len(text) > SAMPLE_CHARACTERS:
        middle, half = len(text) // 2, SAMPLE_CHARACTERS // 2
        text = text[:half] + "\n" + text[middle : middle + half]
    letters = len(_LETTER.findall(text))
    if letters < 2:
        return UNDETERMINED
    if not text.isascii():
        counts = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
        other = max(0, letters - sum(counts.values())) / _LETTERS_IN_A_WORD  # Thai vowels are no letters to Unicode
        if counts["hangul"] > other + counts["han"] + counts["kana"]:
            return "ko"
        if counts["thai"] > other + counts["han"]:
            return "th"
        if counts["han"] + counts["kana"] > other:
            return "ja" if counts["kana"] > 0.1 * (counts["han"] + counts["kana"]) else "zh"
    if letters < 12:  # measured: below this py3langid is no better than a guess
        return UNDETERMINED
    language, confidence = _classifier().classify(" ".join(text.split()))
    return language if confidence >= minimum_confidence else UNDETERMINED


def script_share(text: str, script: str) -> float | None:
    """Share of a text that is written in a script, ``han`` or ``latin``; Latin letters weigh as much as their words. None where it has no letters."""
    letters, latin = len(_LETTER.findall(text)), len(_LATIN.findall(text))
    words = latin / _LETTERS_IN_A_WORD
    return (len(_SCRIPTS["han"].findall(text)) if script == "han" else words) / (letters - latin + words) if letters else None


@lru_cache(maxsize=1)
def _classifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
