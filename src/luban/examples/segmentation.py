"""Words of a text with their places, and stop words, for methods that want them: n-grams, TF-IDF, word vectors, whole-word masks.

Chinese is cut by jieba (the extra ``tasks``), or into characters; everything else at spaces and punctuation. Nothing is dropped unless
asked: pretraining and tuning keep stop words, because a model of language has to learn them, and because "not" is one of them.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from luban.examples.notes import is_han
from luban.foundation.errors import ConfigError, missing_extra

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# A run of Han; a word with its apostrophes and hyphens inside ("don't", "state-of-the-art"); a number ("3.14", "1,000"); one sign.
_PIECES = re.compile(rf"[{_HAN}]+|\d+(?:[.,:]\d+)*%?|[^\W\d_{_HAN}][^\W_{_HAN}]*(?:['’\-][^\W_{_HAN}]+)*|[^\s]")
_LONGEST = 5000  # characters of Han given to jieba at once; a longer run is cut there
METHODS = ("jieba", "characters", "spaces")


@lru_cache(maxsize=1)
def _jieba() -> Any:
    try:
        import jieba
    except ImportError:
        raise missing_extra("jieba", "tasks") from None
    import logging

    jieba.setLogLevel(logging.WARNING)
    cutter = jieba.Tokenizer()
    with tempfile.TemporaryDirectory() as folder:  # its cache would else be loaded from a folder that everybody may write to
        cutter.tmp_dir = folder
        cutter.initialize()
    return cutter


def word_spans(text: str, method: str = "jieba") -> list[tuple[int, int]]:
    """(start, end) of every word and every punctuation mark, in order; what lies between them is white space.

    ``method``: ``jieba`` or ``characters`` for the Chinese parts, or ``spaces`` for text that was cut before.
    Raises ConfigError for another method, LubanError where jieba is wanted and not installed.
    """
    if method not in METHODS:
        raise ConfigError("{method!r} is no way to find words", "", "choose one of {methods}", method=method, methods=", ".join(METHODS))
    if method == "spaces":
        return [match.span() for match in re.finditer(r"\S+", text)]
    found: list[tuple[int, int]] = []
    for match in _PIECES.finditer(text):
        start, end = match.span()
        if not is_han(match[0][0]) or end - start == 1:
            found.append((start, end))
        elif method == "characters":
            found += [(place, place + 1) for place in range(start, end)]
        else:
            for piece in range(start, end, _LONGEST):
                position = piece
                for word in _jieba().cut(text[piece : min(end, piece + _LONGEST)], HMM=True):
                    found.append((position, position + len(word)))
                    position += len(word)
    return found


def words(text: str, method: str = "jieba", *, lower: bool = True, punctuation: bool = False, stop: Iterable[str] = ()) -> list[str]:
    """The words of a text. Signs without a letter or digit are left out unless ``punctuation``; so are the words of ``stop``."""
    without = stop if isinstance(stop, frozenset | set) else frozenset(stop)
    pieces = [text[start:end] for start, end in word_spans(text, method)]
    pieces = [piece.lower() for piece in pieces] if lower else pieces
    return [piece for piece in pieces if piece not in without and (punctuation or any(letter.isalnum() for letter in piece))]


@lru_cache(maxsize=4)
def stop_words(language: str = "all") -> frozenset[str]:
    """Function words of ``en``, ``zh`` or ``all`` of them, lower case: Luban's own short lists, under Luban's licence.

    Words that turn a meaning round (not, no, never, 不, 没, 没有) are not among them.
    """
    lists = json.loads(Path(__file__).with_name("stop_words.json").read_text(encoding="utf-8"))
    if language != "all" and language not in lists:
        raise ConfigError(
            "there is no list of stop words for {language!r}",
            "",
            "choose one of {languages}",
            language=language,
            languages=", ".join([*lists, "all"]),
        )
    return frozenset(word for name, text in lists.items() if language in (name, "all") for word in text.split())
