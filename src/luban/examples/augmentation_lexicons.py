"""Where synonyms, sounds and shapes come from: the user's files, word vectors fitted to the user's text, and pypinyin's readings.

Luban ships no thesaurus and no table of look-alikes: those that are good enough come under licences of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from luban.examples.notes import Notes, is_han
from luban.examples.records import lines_of
from luban.foundation.errors import DataError, missing_extra
from luban.models.vector_files import read_vectors

_CILIN = re.compile(r"^[A-Z][a-z]\d\d[A-Z]\d\d([=#@])\s+")
_MYTHES = re.compile(r"^[^|]+\|\d+$")
_LIST = re.compile(r"\s*[\t,;|，、；]\s*")
_DESCRIPTION = "\u2ff0-\u2fff\u31ef"  # operators of ideographic description sequences
_LARGEST_FAMILY = 15  # characters that share a part; larger families share a radical alone and do not look alike

Lookup = Callable[[str], Sequence[str]]


def nothing(word: str) -> Sequence[str]:
    """The lookup of a lexicon that is not there."""
    return ()


# ------------------------------------------------------------------------------------------------------ synonyms


class Synonyms:
    """Synonyms of a word, from files first and from the nearest word vectors where they have none; in any case of letters."""

    def __init__(self, files: Sequence[Path] = (), vectors: Path | None = None, *, neighbours: int = 5, minimum_similarity: float = 0.6):
        self.groups = read_synonyms(files)
        self.vectors = read_vectors(vectors) if vectors is not None else None
        self.neighbours, self.minimum = neighbours, minimum_similarity
        self._near: dict[str, list[str]] = {}

    def __call__(self, word: str) -> Sequence[str]:
        """Other words for ``word``, in a fixed order; none where nothing is known."""
        known = self.groups.get(word.lower())
        if known or self.vectors is None:
            return known or ()
        if word.lower() not in self._near:
            name = next((name for name in (word, word.lower()) if name in self.vectors), None)
            near = self.vectors.nearest(name, 2 * self.neighbours) if name else []
            self._near[word.lower()] = [
                other for other, cosine in near if cosine >= self.minimum and other.lower() != word.lower() and any(letter.isalpha() for letter in other)
            ][: self.neighbours]
        return self._near[word.lower()]


def read_synonyms(files: Iterable[Path]) -> dict[str, list[str]]:
    """Word in lower case to its synonyms, in the order of the files.

    Forms: words of a line between commas, tabs, semicolons, bars or (where there are none) spaces; Cilin's lines (``Aa01A01= 人 士 人物``:
    only ``=`` says that the words mean the same); MyThes (``happy|2`` and a line a meaning). Raises DataError where a file holds none.
    """
    found: dict[str, dict[str, None]] = {}
    for file in files:
        notes = Notes()
        lines = [line.strip() for _, line in lines_of(Path(file), notes) if line.strip()]
        mythes = len(lines) > 1 and bool(_MYTHES.match(lines[0]) or _MYTHES.match(lines[1]))
        groups = list(_mythes(lines) if mythes else _groups(lines))
        if not groups:
            raise DataError(
                "{path} holds no synonyms", "no line has two words", "write words that mean the same in one line, with commas between them", path=file
            )
        for head, others in groups:
            for word in (head, *others) if not mythes else (head,):
                own = found.setdefault(word.lower(), {})
                own |= dict.fromkeys(other for other in (head, *others) if other.lower() != word.lower())
    return {word: list(others) for word, others in found.items() if others}


def _groups(lines: list[str]) -> Iterable[tuple[str, list[str]]]:
    for line in lines:
        code = _CILIN.match(line)
        if line.startswith("//") or (line.startswith("#") and not code) or (code and code[1] != "="):
            continue
        words = line[code.end() :].split() if code else _LIST.split(line) if _LIST.search(line) else line.split()
        words = [word for word in dict.fromkeys(words) if word]
        if len(words) > 1:
            yield words[0], words[1:]


def _mythes(lines: list[str]) -> Iterable[tuple[str, list[str]]]:
    """``word|meanings`` and for each meaning ``(noun)|word|other word``; generic, related and opposite words are no synonyms."""
    head, left = "", 0
    for line in lines:
        if left:
            left -= 1
            words = [word.strip() for word in line.split("|")[1:]]
            words = [re.sub(r" \(similar term\)$", "", word) for word in words]
            same = [word for word in words if word and not word.endswith(")")]
            if same:
                yield head, same
        elif _MYTHES.match(line):
            head, _, number = line.rpartition("|")
            left = int(number)


# --------------------------------------------------------------------------------------------- characters in groups


def read_characters(file: Path) -> Lookup:
    """Characters that are alike, from a file of groups, or of the parts that characters are made of.

    Groups: the characters of a line, perhaps with spaces or commas between them; ``字:形近字`` gives the ones that are like the first.
    Parts: ``字<tab>⿰木目`` (perhaps with a code point before), or JSON lines with ``character`` and ``decomposition``: alike are two
    characters of the same arrangement that differ in one part and share what at most fifteen characters share. Raises DataError for
    a file that holds neither.
    """
    notes = Notes()
    lines = [line.strip() for _, line in lines_of(Path(file), notes) if line.strip() and not line.startswith(("#", ";"))]
    parts = [found for line in lines if (found := _parts_of(line))]
    if len(parts) * 2 > len(lines):
        alike = _by_parts(dict(parts))
    else:
        alike = {}
        for line in lines:
            first, colon, rest = line.replace("：", ":").partition(":")
            letters = [letter for letter in dict.fromkeys(first + rest) if is_letter(letter)]
            for letter in letters[:1] if colon else letters:
                alike.setdefault(letter, {}).update(dict.fromkeys(other for other in letters if other != letter))
    table = {letter: list(others) for letter, others in alike.items() if others}
    if not table:
        raise DataError(
            "{path} holds no characters that are alike",
            "neither groups of characters nor descriptions of their parts were found",
            "write characters that are alike in one line, such as 未末 or 己已巳",
            path=file,
        )
    return lambda letter: table.get(letter, ())


def is_letter(letter: str) -> bool:
    """Whether a character is a Chinese one, and no punctuation."""
    return is_han(letter) and letter.isalpha()


def _parts_of(line: str) -> tuple[str, tuple[str, ...]] | None:
    """(character, its arrangement and parts) of a line that describes one; None for another line."""
    if line.startswith("{"):
        try:
            said = json.loads(line)
            character, description = said["character"], said["decomposition"]
        except (ValueError, KeyError, TypeError):
            return None
    else:
        cells = [cell for cell in line.split("\t") if not re.fullmatch(r"U\+[0-9A-Fa-f]+", cell)]
        if len(cells) < 2:
            return None
        character, description = cells[0], cells[1]
    description = re.sub(r"\[.*?\]|\^|\$|\(.*?\)|\s", "", str(description))
    if len(str(character)) != 1 or len(description) < 3 or not re.match(f"[{_DESCRIPTION}]", description):
        return None
    return character, tuple(description)


def _by_parts(described: dict[str, tuple[str, ...]]) -> dict[str, dict[str, None]]:
    families: dict[tuple[str, ...], list[str]] = {}
    for character, pieces in described.items():
        if not is_letter(character) or not is_common(character):
            continue
        for place, piece in enumerate(pieces):
            if not re.match(f"[{_DESCRIPTION}]", piece):
                families.setdefault((*pieces[:place], "", *pieces[place + 1 :]), []).append(character)
    alike: dict[str, dict[str, None]] = {}
    for family in sorted((members for members in families.values() if 1 < len(members) <= _LARGEST_FAMILY), key=len):
        for character in family:
            alike.setdefault(character, {}).update(dict.fromkeys(other for other in family if other != character))
    return alike


# -------------------------------------------------------------------------------------------------------- sounds


@lru_cache(maxsize=2)
def common_characters(traditional: bool = False) -> tuple[str, ...]:
    """The characters of everyday writing: GB 2312's first level (3755), or Big5's (5401) for traditional text."""
    if traditional:
        codes = [bytes((high, low)) for high in range(0xA4, 0xC7) for low in (*range(0x40, 0x7F), *range(0xA1, 0xFF)) if (high, low) <= (0xC6, 0x7E)]
        return tuple(letter for code in codes if (letter := code.decode("big5", "ignore")) and is_letter(letter))
    codes = [bytes((high, low)) for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF)]
    return tuple(letter for code in codes if (letter := code.decode("gb2312", "ignore")) and is_letter(letter))


def is_common(letter: str) -> bool:
    """Whether a character stands in GB 2312 or Big5."""
    return _encodes(letter, "gb2312") or _encodes(letter, "big5")


def _encodes(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def is_traditional(text: str) -> bool:
    """Whether a text has a character that only traditional writing has."""
    return any(is_letter(letter) and not _encodes(letter, "gb2312") and _encodes(letter, "big5") for letter in text)


class Homophones:
    """Common characters of the same sound as one in a text. pypinyin reads the text, so that 行 in 银行 sounds like 航."""

    def __init__(self, tones: bool = True):
        """Raises LubanError where pypinyin is not installed."""
        try:
            import pypinyin
        except ImportError:
            raise missing_extra("pypinyin", "augment") from None
        self._pinyin: Any = pypinyin
        self._style = pypinyin.Style.TONE3 if tones else pypinyin.Style.NORMAL
        self._pools: dict[bool, dict[str, list[str]]] = {}

    def readings(self, text: str) -> list[str]:
        """One reading for each character, "" for what has none."""
        found: list[str] = []
        for match in re.finditer(r"[^\W\d_a-zA-Z]+|.", text, re.DOTALL):
            run = match[0]
            said = self._pinyin.lazy_pinyin(run, style=self._style, errors=lambda letters: [""] * len(letters)) if is_han(run) else [""] * len(run)
            if len(said) != len(run):  # a reading for several characters at once cannot be told apart
                said = [self._pinyin.lazy_pinyin(letter, style=self._style, errors=lambda _: [""])[0] for letter in run]
            found += said
        return found

    def alike(self, text: str) -> list[Sequence[str]]:
        """For each character of the text the common ones that sound as it does there."""
        traditional = is_traditional(text)
        if traditional not in self._pools:
            pool: dict[str, list[str]] = {}
            for letter in common_characters(traditional):
                pool.setdefault(self.readings(letter)[0], []).append(letter)
            self._pools[traditional] = pool
        pool = self._pools[traditional]
        return [[other for other in pool.get(reading, ()) if other != letter] if reading else () for letter, reading in zip(text, self.readings(text), strict=True)]
