"""Filters: small pure functions of a text and its limits that return True, or False and the reason with its figure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from luban.corpus.limits import CHARACTERS_A_WORD, STOP_WORDS, UNSPACED, Limits

Verdict = bool | tuple[bool, str]

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f\U00020000-\U0003ffff"
_UNSPACED_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}_]+|[^\w\s]")
_ALPHANUMERIC = re.compile(r"[^\W_]")
_LETTER = re.compile(r"[^\W\d_]")
_SENTENCE_END = re.compile(r"[.!?](?=[\s\"'”’)]|$)|[。．！？…]")
_BULLET = re.compile(r"\s*(?:[-*•●‣▪◦・]|\d+[.)、])")
_PARAGRAPH = re.compile(r"\n{2,}")
_TERMINAL = tuple(".!?;:,。．！？；：，、…\"'”’」』）)")
_SHORT_LINE = 30  # characters; 15 where a word is a character


class Text:
    """A text with what the filters count in it, computed once."""

    def __init__(self, text: str, language: str):
        self.text, self.language = text, language
        self.unspaced = language in UNSPACED

    @cached_property
    def tokens(self) -> list[str]:
        """Words and signs: split at spaces, or where the script has none into characters."""
        return _UNSPACED_WORD.findall(self.text) if self.unspaced else self.text.split()

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each token occurs: what depends on a token alone is looked at once."""
        return Counter(self.tokens)

    @cached_property
    def words(self) -> list[str]:
        """Tokens that hold a letter or a digit."""
        wordlike = {token for token in self.counts if token.isalnum() or _ALPHANUMERIC.search(token)}
        return self.tokens if len(wordlike) == len(self.counts) else [token for token in self.tokens if token in wordlike]

    @cached_property
    def lines(self) -> list[str]:
        return [line for line in self.text.split("\n") if line.strip()]

    @cached_property
    def paragraphs(self) -> list[str]:
        return [paragraph for paragraph in _PARAGRAPH.split(self.text) if paragraph.strip()]

    @cached_property
    def grams(self) -> NGrams:
        return NGrams(self.words)


def gopher_quality(text: Text, limits: Limits) -> Verdict:
    """Length, mean word length, symbols, bullets, ellipses, alphabetic words, stop words (Gopher, table A1)."""
    lines = max(1, len(text.lines))

    def symbols() -> float:
        return (text.text.count("#") + text.text.count("…") + text.text.count("...")) / max(1, len(text.words))

    def alphabetic() -> float:
        letters = sum(count for token, count in text.counts.items() if token.isalpha() or _LETTER.search(token))
        return letters / max(1, len(text.words if text.unspaced else text.tokens))

    def stop_words() -> float:
        known = STOP_WORDS.get(text.language)
        return len(known.intersection(map(str.lower, text.counts))) if known else limits["minimum_stop_words"] or 0

    return within(
        limits,
        (
            ("words", lambda: len(text.words)),
            ("mean_word_length", lambda: text.grams.total / max(1, len(text.words))),
            ("symbols_per_word", symbols),
            ("bullet_lines", lambda: sum(bool(_BULLET.match(line)) for line in text.lines) / lines),
            ("ellipsis_lines", lambda: sum(line.rstrip().endswith(("...", "…")) for line in text.lines) / lines),
            ("alphabetic_words", alphabetic),
            ("stop_words", stop_words),
        ),
    )


def gopher_repetition(text: Text, limits: Limits) -> Verdict:
    """Repeated lines, paragraphs and n-grams, by number and by characters (Gopher, table A1)."""
    size = max(1, len(text.text))
    figures: list[tuple[str, Callable[[], float]]] = []
    for name, parts in (("line", lambda: text.lines), ("paragraph", lambda: text.paragraphs)):
        figures.append((f"duplicate_{name}s", lambda parts=parts: _repeated(parts())[0] / max(1, len(parts()))))
        figures.append((f"duplicate_{name}_characters", lambda parts=parts: _repeated(parts())[1] / size))
    scale = CHARACTERS_A_WORD if text.unspaced else 1
    figures += [(f"top_{n}gram", lambda n=n: text.grams.top(round(n * scale))) for n in (2, 3, 4)]
    figures += [(f"duplicate_{n}gram", lambda n=n: text.grams.duplicate(round(n * scale))) for n in range(5, 11)]
    return within(limits, figures)


def c4(text: Text, limits: Limits) -> Verdict:
    """Too few sentences, placeholder text, code (C4; its rule that lines end in punctuation is FineWeb's softer one)."""
    return within(
        limits,
        (
            ("sentences", lambda: len(_SENTENCE_END.findall(text.text))),
            ("lorem_ipsum", lambda: text.text.lower().count("lorem ipsum")),
            ("curly_brackets", lambda: text.text.count("{")),
        ),
    )


def fineweb(text: Text, limits: Limits) -> Verdict:
    """Lines without punctuation, short lines, repeated lines, lists (FineWeb, section 3.6)."""
    lines = text.lines
    if not lines:
        return True
    short = _SHORT_LINE // 2 if text.unspaced else _SHORT_LINE
    return within(
        limits,
        (
            ("punctuated_lines", lambda: sum(line.rstrip().endswith(_TERMINAL) for line in lines) / len(lines)),
            ("short_lines", lambda: sum(len(line) <= short for line in lines) / len(lines)),
            ("repeated_line_characters", lambda: _repeated(lines)[1] / max(1, len(text.text.replace("\n", "")))),
            ("newlines_per_word", lambda: text.text.count("\n") / max(1, len(text.words))),
        ),
    )


FILTERS: tuple[Callable[[Text, Limits], Verdict], ...] = (gopher_quality, gopher_repetition, c4, fineweb)
RULES = tuple(function.__name__ for function in FILTERS)


def judge(text: str, language: str, limits: Limits) -> Verdict:
    """The first verdict against the text, as ``"gopher_quality: words 12 < 50"``, or True."""
    if not limits:
        return True
    counted = Text(text, language)
    for function in FILTERS:
        verdict = function(counted, limits)
        if verdict is not True:
            assert isinstance(verdict, tuple)
            return False, f"{function.__name__}: {verdict[1]}"
    return True


def within(limits: Limits, figures: Sequence[tuple[str, Callable[[], float]]]) -> Verdict:
    """True if every figure keeps its minimum and maximum; a figure without a limit is not computed."""
    for name, compute in figures:
        least, most = limits.get(f"minimum_{name}"), limits.get(f"maximum_{name}")
        if least is None and most is None:
            continue
        figure = compute()
        if least is not None and figure < least:
            return False, f"{name} {figure:.4g} < {least:g}"
        if most is not None and figure > most:
            return False, f"{name} {figure:.4g} > {most:g}"
    return True


def _repeated(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts came before in the text, and the characters in them."""
    seen: set[str] = set()
    repeated = characters = 0
    for part in parts:
        if part in seen:
            repeated += 1
            characters += len(part)
        else:
            seen.add(part)
    return repeated, characters


class NGrams:
    """Shares of the words' characters in n-grams that repeat; rolling hashes of word numbers, so that long texts stay fast."""

    def __init__(self, words: Sequence[str]):
        numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
        self.ids = np.fromiter(map(numbers.__getitem__, words), dtype=np.uint64, count=len(words))
        self.lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        self.total = int(self.lengths.sum())
        self.none_from = len(words) + 1  # no n-gram from this length on repeats, as far as is known

    def _hashes(self, n: int) -> np.ndarray:
        count = len(self.ids) - n + 1
        hashes = np.zeros(count, dtype=np.uint64)
        for offset in range(n):
            hashes = (hashes + self.ids[offset : offset + count] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
            hashes ^= hashes >> np.uint64(29)
        return hashes

    def top(self, n: int) -> float:
        """Share of the characters that the most frequent n-gram takes; of equally frequent ones the longest. 0 if none repeats."""
        if len(self.ids) < n:
            return 0.0
        _, first, counts = np.unique(self._hashes(n), return_index=True, return_counts=True)
        most = int(counts.max())
        if most < 2:
            return 0.0
        sums = np.convolve(self.lengths, np.ones(n, dtype=np.int64), "valid")
        return min(1.0, float(sums[first[counts == most]].max() * most / max(1, self.total)))

    def duplicate(self, n: int) -> float:
        """Share of the characters inside n-grams that came before in the text, each character counted once."""
        count = len(self.ids) - n + 1
        if count < 2 or n >= self.none_from:
            return 0.0
        _, first = np.unique(self._hashes(n), return_index=True)
        if len(first) == count:
            self.none_from = n
            return 0.0
        again = np.ones(count, dtype=np.int64)
        again[first] = 0
        edges = np.zeros(len(self.ids) + 1, dtype=np.int64)
        np.add.at(edges, np.flatnonzero(again), 1)
        np.add.at(edges, np.flatnonzero(again) + n, -1)
        covered = np.cumsum(edges[:-1]) > 0
        return float(self.lengths[covered].sum() / max(1, self.total))
