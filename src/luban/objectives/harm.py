"""A penalty for abuse, threats and sweeping judgements of groups of people: a small list of patterns of Luban's own, and a classifier where one is named.

The patterns see words, not meaning: they miss whatever is said politely, indirectly or in other words, and they find what is only quoted.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")


@cache
def shipped_patterns() -> tuple[re.Pattern[str], ...]:
    """Luban's own patterns, English and Chinese."""
    known = json.loads(Path(__file__).with_name("harm.json").read_text(encoding="utf-8"))
    return tuple(re.compile(pattern, re.IGNORECASE | re.DOTALL) for patterns in known.values() for pattern in patterns)


def found_in(text: str, patterns: Sequence[re.Pattern[str]]) -> str:
    """The first stretch of a text that one of the patterns finds; nothing where none does. Full-width letters, invisible characters and
    typographic apostrophes hide nothing."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).replace("’", "'")
    return next((match[0] for pattern in patterns if (match := pattern.search(text))), "")
