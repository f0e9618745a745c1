"""Finding the answer in a text and comparing it with the right one: numbers by value, letters of choices, other answers by their letters and digits."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from luban.examples.splitting import normalised

CLOSE = Fraction(1, 10**6)  # relative difference of two decimal numbers that are the same answer
LONGEST = 20000  # characters of an answer's end that are looked at
MOST_DIGITS = 200  # of a number; what is longer is no answer
_AFTER = re.compile(r"(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is\b|:|=)\s*:?|(?:正确|最终|最后)?(?:答案|选项)(?:应该|应当)?(?:是|为|选|[:：])[:：]?|####", re.IGNORECASE)
_DIGITS = {"零": 0, "〇": 0, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9} | {"壹": 1, "贰": 2, "叁": 3, "肆": 4, "伍": 5, "陆": 6, "柒": 7, "捌": 8, "玖": 9}
_TENS = {"十": 10, "百": 100, "千": 1000, "拾": 10, "佰": 100, "仟": 1000}
_GROUPS = {"万": 10**4, "亿": 10**8}
_HAN = "".join([*_DIGITS, *_TENS, *_GROUPS])
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_PLAIN = rf"{_WHOLE}(?:\.\d+)?(?:[eE][+-]?\d{{1,3}}(?!\d))?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w.)%])[-−+]\s*)?[$¥€£]?\s*(?:\\[dt]?frac\s*\{{\s*(?P<over>{_PLAIN})\s*\}}\s*\{{\s*(?P<under>{_PLAIN})\s*\}}"
    rf"|(?P<top>{_PLAIN})\s*/\s*(?P<bottom>{_PLAIN})|(?P<plain>{_PLAIN}))\s*(?P<unit>\\?%|[万亿])?"
)
_HAN_NUMBER = re.compile(rf"(?P<sign>负)?(?:(?P<percent>百分之)(?P<share>[{_HAN}]+(?:点[{_HAN}]+)?)|(?P<under>[{_HAN}]+)分之(?P<over>[{_HAN}]+)|(?P<plain>[{_HAN}]+(?:点[{_HAN}]+)?))")


def _plain(text: str) -> str:
    """Full-width letters and digits as usual ones, ½ as 1/2."""
    return unicodedata.normalize("NFKC", text).replace("\u2044", "/")


def right_answer(text: str, gold: Any, place: str = "auto") -> bool:
    """Whether a text gives the right answer, or one of several. ``place`` as of the reward ``answer``."""
    if isinstance(gold, list | tuple):
        return any(right_answer(text, one, place) for one in gold)
    wanted = _gold(gold)
    text = _plain(text)[-LONGEST:]
    if (value := number_in(wanted)) is not None:
        return any(_same(found, value) for found in _numbers_said(text, place))
    return bool(normalised(wanted)) and any(normalised(said) == normalised(wanted) for said in _said(text, place))


def _gold(gold: Any) -> str:
    """The right answer itself, of a cell that may hold its derivation before it (GSM8K's ``#### 42``) or a box around it."""
    text = _plain(str(gold)).strip()
    inside = boxed(text)
    return inside if inside is not None else text.rpartition("####")[2].strip()


def _said(text: str, place: str) -> list[str]:
    """Where the answer is looked for, the surest place alone."""
    if place == "whole":
        return [text]
    inside = boxed(text)
    if inside is not None or place == "boxed":
        return [] if inside is None else [inside]
    if place == "last_number":
        return [text]
    marks = list(_AFTER.finditer(text))
    if marks:
        after = text[marks[-1].end() :].strip()
        return [after, re.split(r"[\n。;；]|\.(?:\s|$)", after, maxsplit=1)[0]]
    lines = [line for line in text.splitlines() if line.strip()]
    return [text, lines[-1]] if lines else []


def _numbers_said(text: str, place: str) -> list[Fraction]:
    """The number that a text gives as its answer: the first after words that announce it, else the last."""
    if place == "whole":
        value = number_in(text)
        return [] if value is None else [value]
    inside = boxed(text)
    if inside is not None or place == "boxed":
        values = list(numbers(inside or ""))
        return values[-1:]
    marks = list(_AFTER.finditer(text)) if place == "auto" else []
    after = next(iter(re.split(r"[\n。;；]|\.(?:\s|$)", text[marks[-1].end() :].strip(), maxsplit=1)), "") if marks else ""
    values = list(numbers(after.rpartition("=")[2]))  # "the answer is 10 - 3 = 7"
    return values[:1] or list(numbers(text))[-1:]


def boxed(text: str) -> str | None:
    """What stands in the last ``\\boxed{…}``, braces inside it counted; None where there is none that is closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return text[begin:place].strip()
    return None


def number_in(text: str) -> Fraction | None:
    """The number that a text is, units and punctuation around it aside; None where it says more than one number or other words."""
    text = _plain(text).strip().rstrip("。.!！,， ")
    for pattern, value in ((_NUMBER, _value), (_HAN_NUMBER, _han_value)):
        if (match := pattern.fullmatch(text)) is not None:
            return value(match)
    return None


def numbers(text: str) -> Iterator[Fraction]:
    """The numbers in a text one after the other; Chinese numerals only where there is no digit, since 一 and 万一 are words too."""
    text = _plain(text)
    arabic = any("0" <= letter <= "9" for letter in text)
    for match in (_NUMBER if arabic else _HAN_NUMBER).finditer(text):
        value = (_value if arabic else _han_value)(match)
        if value is not None:
            yield value


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > MOST_DIGITS:
        return None

    def plain(name: str) -> Fraction:
        return Fraction(match[name].replace(",", ""))

    if match["plain"] is not None:
        value = plain("plain")
    else:
        above, below = (("over", "under") if match["over"] is not None else ("top", "bottom"))
        if not plain(below):
            return None
        value = plain(above) / plain(below)
    unit = match["unit"] or ""
    value = value / 100 if unit.endswith("%") else value * _GROUPS.get(unit, 1)
    return -value if (match["sign"] or "").strip() in ("-", "−") else value


def _han_value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > MOST_DIGITS:
        return None
    if match["percent"]:
        value = _han_decimal(match["share"])
        value = None if value is None else value / 100
    elif match["under"]:
        above, below = _han_whole(match["over"]), _han_whole(match["under"])
        value = None if above is None or not below else Fraction(above, below)
    else:
        value = _han_decimal(match["plain"])
    return -value if match["sign"] and value is not None else value


def _han_decimal(text: str) -> Fraction | None:
    whole, point, digits = text.partition("点")
    value = _han_whole(whole)
    if value is None or not point:
        return None if value is None else Fraction(value)
    if not digits or any(letter not in _DIGITS for letter in digits):
        return None
    return value + Fraction(int("".join(str(_DIGITS[letter]) for letter in digits)), 10 ** len(digits))


def _han_whole(text: str) -> int | None:
    """三百二十一, 一万零五十, 二〇二四; None where the characters make no number."""
    if all(letter in _DIGITS for letter in text):
        return int("".join(str(_DIGITS[letter]) for letter in text))
    total = group = 0
    digit: int | None = None
    for letter in text:
        if letter in _DIGITS:
            digit = _DIGITS[letter]
        elif letter in _TENS:
            group += (1 if digit is None else digit) * _TENS[letter]
            digit = None
        else:
            group += digit or 0
            if not group and not total:
                return None
            total = (total + group) * _GROUPS[letter] if letter == "亿" else total + group * _GROUPS[letter]
            group, digit = 0, None
    return total + group + (digit or 0)


def _same(found: Fraction, wanted: Fraction) -> bool:
    """Equal; of numbers that are no whole ones, to six digits."""
    if found == wanted:
        return True
    return (found.denominator > 1 or wanted.denominator > 1) and abs(found - wanted) <= CLOSE * max(abs(found), abs(wanted))


def letter_said(text: str, letters: str) -> str | None:
    """The letter that a text chooses: boxed, or after words that announce it, or at its beginning, or the only one that stands alone."""
    text = _plain(text)[-LONGEST:]
    known = re.escape(letters)
    alone = rf"(?<![A-Za-z])[(\[]?([{known}])(?![A-Za-z'’])[)\]]?"
    inside = boxed(text)
    if inside is not None:
        found = re.search(alone, inside)
        return found[1] if found else None
    announced = list(re.finditer(rf"(?:{_AFTER.pattern}|(?i:\boption|\bchoice|\bchoose)|选择?)\s*[:：]?\s*\**{alone}", text, re.IGNORECASE))
    announced = [match for match in announced if match[1] in letters]
    if announced:
        return announced[-1][1]
    if begun := re.match(rf"\s*\**{alone}\**\s*(?:[.:,;、)。]|$|\n)", text):
        return begun[1]
    # "A dog" begins with an article, no choice; "A or B" does not.
    lone = {match[1] for match in re.finditer(alone, text) if not (match[1] in "AI" and re.match(r"\s+(?!(?:or|and|is|because|since)\b)[a-z]", text[match.end() :]))}
    return lone.pop() if len(lone) == 1 else None


def letter_of(gold: Any, letters: str) -> str | None:
    """The right letter: a cell holds it, or its place counted from 0."""
    text = _plain(str(gold)).strip()
    if isinstance(gold, bool):
        return None
    if re.fullmatch(r"\d+(\.0)?", text):
        return letters[int(float(text))] if int(float(text)) < len(letters) else None
    text = text.strip("()[].:").upper()
    return text if len(text) == 1 and text in letters.upper() else None
