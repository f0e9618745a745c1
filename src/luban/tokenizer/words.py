"""Which tokens of a sequence form one word: what whole-word masking hides together.

Words are found in the text that the tokens spell, so that one rule serves every kind of tokenizer: WordPiece's ``##``, the space that
byte-level and ``▁`` tokens carry, whole words, characters. Scripts without spaces are cut by a segmenter that the caller gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from luban.tokenizer.decoding import decoder_kinds
from luban.tokenizer.sampling import UNSPACED
from luban.tokenizer.tokenizer import Tokenizer

Segment = Callable[[str], Sequence[str]]
# A run of a script without spaces; letters and digits with their marks, and an apostrophe between them; anything else but space, by itself.
_WORD = re.compile(f"(?P<unspaced>[{UNSPACED}]+)|(?:(?![{UNSPACED}])[^\\W_])(?:(?![{UNSPACED}])[^\\W_]|[\u0300-\u036f]|['’](?=[^\\W_]))*|\\S")


class WordGroups:
    """``groups(ids)``: the words of a sequence, each as the positions of its tokens, in order.

    ``segment`` cuts a run of Chinese (Japanese, Thai …) into words that join to the run again; without it every character of such a run is
    a word. Special tokens and unknown ones belong to no word, and end one. A token that holds the end of a word and the beginning of
    the next counts to the first; white space alone is a word of its own.
    """

    def __init__(self, tokenizer: Tokenizer, segment: Segment | None = None):
        self._bytes = tokenizer._byte_table
        self._special = tokenizer.is_special
        self._segment = lru_cache(maxsize=65_536)(lambda run: tuple(segment(run))) if segment else None
        self._continues: frozenset[int] = frozenset()
        self._starts_word: frozenset[int] = frozenset()
        if "WordPiece" in decoder_kinds(tokenizer.core):
            vocabulary = tokenizer.core.get_vocab(with_added_tokens=False)
            self._continues = frozenset(index for token, index in vocabulary.items() if token.startswith("##") and len(token) > 2)
            # Its tokens do not say where a space was. Between Han characters there was none.
            unspaced = re.compile(f"[{UNSPACED}]")
            self._starts_word = frozenset(
                index for token, index in vocabulary.items() if index not in self._continues and not unspaced.match(token)
            )

    def groups(self, ids: Sequence[int]) -> list[list[int]]:
        """Positions of the tokens of each word."""
        found: list[list[int]] = []
        run: list[int] = []
        for place, index in enumerate(ids):
            if not 0 <= index < len(self._bytes) or self._special[index]:
                found += self._groups_of_run(ids, run)
                run = []
            else:
                run.append(place)
        return found + self._groups_of_run(ids, run)

    def _groups_of_run(self, ids: Sequence[int], run: list[int]) -> list[list[int]]:
        """Words of neighbouring positions without a special token between them."""
        if not run:
            return []
        starts, text_bytes = [], bytearray()  # starts: byte at which each token's own text begins
        for place in run:
            index = ids[place]
            if index in self._starts_word:
                text_bytes += b" "
            starts.append(len(text_bytes))
            text_bytes += self._bytes[index]
        # Bytes that are no UTF-8 become one stand-in each, so that every byte knows its character.
        text = text_bytes.decode("utf-8", "surrogateescape")
        word_of_byte = self._words_of_bytes(text)
        found: list[list[int]] = []
        last = None
        for place, start, following in zip(run, starts, [*starts[1:], len(text_bytes)], strict=True):
            words = word_of_byte[start:following]
            word = next((number for number in words if number >= 0), -1)  # behind the white space in front of it
            if found and ((word >= 0 and word == last) or ids[place] in self._continues):
                found[-1].append(place)
            else:
                found.append([place])
            # The word that goes on behind the token is its last; what comes after trailing space is a new one.
            last = words[-1] if words else last
        return found

    def _words_of_bytes(self, text: str) -> list[int]:
        """The number of the word that each byte of the text belongs to; -1 for white space."""
        lengths = [1 if "\udc80" <= character <= "\udcff" else len(character.encode("utf-8")) for character in text]
        word_of_character = [-1] * len(text)
        number = 0
        for match in _WORD.finditer(text):
            place = match.start()
            for word in self._cut(match.group()) if match.lastgroup == "unspaced" else (match.group(),):
                for character in range(place, place + len(word)):
                    word_of_character[character] = number
                place += len(word)
                number += 1
        return [word for word, length in zip(word_of_character, lengths, strict=True) for _ in range(length)]

    def _cut(self, run: str) -> Sequence[str]:
        if self._segment is None:
            return run
        words = self._segment(run)
        if "".join(words) != run:
            raise ValueError(f"the segmenter changed {run[:40]!r}")
        return words


def word_groups(tokenizer: Tokenizer, ids: Sequence[int], segment: Segment | None = None) -> list[list[int]]:
    """The words of one sequence; keep a WordGroups for many."""
    return WordGroups(tokenizer, segment).groups(ids)
