"""The limits of the quality rules, per language and preset. ``None`` switches a rule off.

From Gopher (Rae et al. 2021, table A1), C4 (Raffel et al. 2020), FineWeb (Penedo et al. 2024), and for Chinese
FineWeb-2's configs/cmn_Hani.yml. Chinese, Japanese and Thai have no spaces: there a word is one character
(a run of Latin letters or digits is one word too), and an n-gram of words is 1.6 n characters long.
"""

from __future__ import annotations

from collections.abc import Mapping

from luban.foundation.errors import nearest

Limits = Mapping[str, float | None]

_WEB: dict[str, float | None] = {
    # Gopher, quality
    "minimum_words": 50, "maximum_words": 100_000, "minimum_mean_word_length": 3, "maximum_mean_word_length": 10,
    "maximum_symbols_per_word": 0.1, "maximum_bullet_lines": 0.9, "maximum_ellipsis_lines": 0.3,
    "minimum_alphabetic_words": 0.8, "minimum_stop_words": 2,
    # Gopher, repetition
    "maximum_duplicate_lines": 0.3, "maximum_duplicate_paragraphs": 0.3, "maximum_duplicate_line_characters": 0.2, "maximum_duplicate_paragraph_characters": 0.2,
    "maximum_top_2gram": 0.20, "maximum_top_3gram": 0.18, "maximum_top_4gram": 0.16,
    "maximum_duplicate_5gram": 0.15, "maximum_duplicate_6gram": 0.14, "maximum_duplicate_7gram": 0.13,
    "maximum_duplicate_8gram": 0.12, "maximum_duplicate_9gram": 0.11, "maximum_duplicate_10gram": 0.10,
    # C4 without its rule on line ends, as FineWeb uses it
    "minimum_sentences": 3, "maximum_lorem_ipsum": 0, "maximum_curly_brackets": 0,
    # FineWeb
    "minimum_punctuated_lines": 0.12, "maximum_short_lines": 0.67, "maximum_repeated_line_characters": 0.01, "maximum_newlines_per_word": 0.3,
}  # fmt: skip
LIMITS = tuple(_WEB)

_CHINESE: dict[str, float | None] = {
    "minimum_mean_word_length": 1, "maximum_mean_word_length": 5, "minimum_alphabetic_words": 0.735, "minimum_punctuated_lines": 0.106, "maximum_newlines_per_word": 0.178,
    "maximum_top_2gram": 0.256, "maximum_top_3gram": 0.201, "maximum_top_4gram": 0.171,
    "maximum_duplicate_5gram": 0.198, "maximum_duplicate_6gram": 0.182, "maximum_duplicate_7gram": 0.167,
    "maximum_duplicate_8gram": 0.154, "maximum_duplicate_9gram": 0.14, "maximum_duplicate_10gram": 0.127,
}  # fmt: skip
_UNSPACED = _CHINESE | {"minimum_stop_words": None}
_OTHER = {"minimum_mean_word_length": 2, "maximum_mean_word_length": 14, "minimum_alphabetic_words": 0.7, "minimum_stop_words": None}
_BY_LANGUAGE: dict[str, dict[str, float | None]] = {"en": {}, "zh": _CHINESE, "ja": _UNSPACED, "th": _UNSPACED, "*": _OTHER}

# Against damage only. No rule counts lines: verse, plays and lists are made of short and repeated ones.
_PROSE: dict[str, float | None] = {
    "maximum_symbols_per_word": 0.5, "minimum_alphabetic_words": 0.4, "maximum_top_4gram": 0.4, "maximum_duplicate_10gram": 0.6, "maximum_lorem_ipsum": 0,
}  # fmt: skip

# FineWeb-2 counted n-grams of segmented words, which have about 1.6 characters: its 5-grams are 8 characters here.
CHARACTERS_A_WORD = 1.6
UNSPACED = ("zh", "ja", "th")
STOP_WORDS: dict[str, frozenset[str]] = {
    "en": frozenset(["the", "be", "to", "of", "and", "that", "have", "with"]),
    "zh": frozenset(["的", "年", "在", "月", "是", "和", "日", "了", "於", "·", "為", "有", "被", "人", "中", "为", "他", "與", "後", "也", "而", "由"]),
}


def limits_for(preset: str, language: str, overrides: Mapping[str, Limits]) -> Limits:
    """Every limit that holds for one language under a preset (``web``, ``prose`` or ``off``)."""
    base: dict[str, float | None] = {}
    if preset == "web":
        base = _WEB | _BY_LANGUAGE.get(language, _BY_LANGUAGE["*"])
    elif preset == "prose":
        base = dict(_PROSE)
    merged = {**base, **overrides.get("*", {}), **overrides.get(language, {})}
    return {name: limit for name, limit in merged.items() if limit is not None}


def check_limits(overrides: Mapping[str, Limits], known: tuple[str, ...]) -> None:
    """Raise ValueError for the name of a limit that does not exist."""
    for language, limits in overrides.items():
        for name in limits:
            if name not in known:
                guess = nearest(name, known)
                raise ValueError(f"{language}: no limit is called {name!r}" + (f"; did you mean {guess}?" if guess else f"; there are {', '.join(known)}"))
