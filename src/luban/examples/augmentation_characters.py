"""Noise below the word: letters lost, swapped or mistyped, and Chinese characters taken for others of the same sound or a similar shape."""

from __future__ import annotations

import re
from collections.abc import Sequence

from luban.examples.augmentation_edits import Draws, Edit, Locks, marks_follow
from luban.examples.augmentation_lexicons import Homophones, Lookup, is_letter

_LATIN = re.compile(r"[^\W\d_]+")
_SHORTEST = 4  # letters of a word in which one may be wrong: shorter ones turn into other words
_ROWS = (("qwertyuiop", 0.0), ("asdfghjkl", 0.25), ("zxcvbnm", 0.75))  # keys of a row and how far it is set in, in keys


def _neighbours() -> dict[str, str]:
    """Letter to the letters whose keys touch its key: those of its row beside it, and of the next rows less than a key aside."""
    keys = {letter: (row, column + inset) for row, (letters, inset) in enumerate(_ROWS) for column, letter in enumerate(letters)}
    return {
        letter: "".join(
            other
            for other, (other_row, other_column) in keys.items()
            if other != letter and abs(row - other_row) <= 1 and abs(column - other_column) <= (1 if row == other_row else 0.99)
        )
        for letter, (row, column) in keys.items()
    }


NEIGHBOURS = _neighbours()


def _letters(text: str, locks: Locks, *, chinese: bool, latin: bool) -> list[int]:
    """Places of characters that may be changed: Chinese ones, and letters inside words of four letters and more, but for the first."""
    found = []
    for match in _LATIN.finditer(text):
        start = match.start()
        stretches = re.finditer(r"[\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+|[^\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+", match[0])
        for stretch in stretches:
            places = range(start + stretch.start(), start + stretch.end())
            if is_letter(stretch[0][0]):
                found += places if chinese else []
            elif latin and len(places) >= _SHORTEST:
                found += places[1:]
    return [place for place in found if locks.free(place, place + 1) and not marks_follow(text, place) and not marks_follow(text, place + 1)]


def _count(strength: float, places: Sequence[int]) -> int:
    return max(1, int(strength * len(places)))


def noise_edits(text: str, locks: Locks, strength: float, draws: Draws) -> list[Edit]:
    """Characters left out, or changed with the one behind them; never all of a text."""
    places = _letters(text, locks, chinese=True, latin=True)
    if len(places) < 2:
        return []
    able, used = set(places), set()
    edits: list[Edit] = []
    for place in draws.sample(places, _count(strength, places)):
        if place in used:
            continue
        swapped = place + 1 in able and place + 1 not in used and text[place] != text[place + 1] and draws.unit() < 0.5
        end = place + (2 if swapped else 1)
        used.update(range(place, end))
        edits.append(Edit(place, end, text[place + 1] + text[place] if swapped else ""))
    return edits[:-1] if len(used) >= len(text.strip()) else edits


def typo_edits(text: str, locks: Locks, strength: float, draws: Draws) -> list[Edit]:
    """Latin letters replaced by ones whose keys lie beside theirs, in the same case."""
    places = [place for place in _letters(text, locks, chinese=False, latin=True) if text[place].lower() in NEIGHBOURS]
    edits = []
    for place in draws.sample(places, _count(strength, places)):
        wrong = draws.choice(NEIGHBOURS[text[place].lower()])
        edits.append(Edit(place, place + 1, wrong.upper() if text[place].isupper() else wrong))
    return edits


def alike_edits(text: str, locks: Locks, strength: float, alike: Lookup | Homophones, draws: Draws) -> list[Edit]:
    """Chinese characters replaced by ones that sound or look like them; the share is of those that have such."""
    table = alike.alike(text) if isinstance(alike, Homophones) else [alike(letter) for letter in text]
    places = [place for place in _letters(text, locks, chinese=True, latin=False) if table[place]]
    return [Edit(place, place + 1, draws.choice(table[place])) for place in draws.sample(places, _count(strength, places))]
