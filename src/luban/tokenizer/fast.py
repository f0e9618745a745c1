"""Byte-level BPE by tiktoken's core: the ids of `tokenizers`, several times as fast.

Why the ids are the same. `tokenizers` merges the neighbours whose pair stands first in its list; tiktoken merges those whose concatenation is the token of the lowest rank. Take
a token that a text of its own turns into itself, and a place in any piece where two neighbours spell it when its rank comes up: no earlier merge reached over the place's ends (the
neighbours fill it exactly), so inside it the same merges were made as in that text of its own, and the neighbours are the listed pair. Tokens that do not turn into themselves are
made by neither and are left out. What is left is how text is cut before: the pattern is the same, and characters that Python's Unicode tables do not know, which two libraries may
class differently, send a text to `tokenizers`. So does a very long run of spaces, at which tiktoken's search for the pattern gives up.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Core

from luban.tokenizer.decoding import byte_of_character

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_LONG_BLANK = re.compile(r"\s{5000}")


class FastEncoder:
    """Encodes what it is certain of. Make one with :func:`fast_encoder`."""

    def __init__(self, pattern: str, ranks: dict[bytes, int], core: Core, composed: bool):
        import tiktoken

        self.encoding = tiktoken.Encoding("luban", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self.core, self.composed = core, composed

    def encode_batch(self, texts: list[str], threads: int) -> list[list[int]]:
        """Token ids of valid texts, on so many threads; the interpreter's lock is released."""
        sure = [is_known(text) and not _LONG_BLANK.search(text) for text in texts]
        given = [self._normalized(text) for text, known in zip(texts, sure, strict=True) if known]
        found = iter(self.encoding.encode_ordinary_batch(given, num_threads=threads))
        others = iter(self.core.encode_batch_fast([text for text, known in zip(texts, sure, strict=True) if not known], add_special_tokens=False))
        return [next(found) if known else next(others).ids for known in sure]

    def _normalized(self, text: str) -> str:
        """What the tokenizer's own normalizer makes of it; text in NFC stays so in every later version of Unicode."""
        return text if not self.composed or unicodedata.is_normalized("NFC", text) else self.core.normalizer.normalize_str(text)


def fast_encoder(core: Core) -> FastEncoder | None:
    """The fast way for a tokenizer that is blind to control tokens; None where it is of another kind, or where equal ids are not certain."""
    data = json.loads(core.to_str())
    pattern, ranks = _pattern(data), _ranks(data)
    if pattern is None or not ranks or data["normalizer"] not in (None, {"type": "NFC"}) or any(not token["special"] for token in data["added_tokens"]):
        return None
    return FastEncoder(pattern, ranks, core, data["normalizer"] is not None)


def _pattern(data: dict[str, Any]) -> str | None:
    """The one pattern that cuts text into pieces, where that is all that is done to it."""
    steps = data["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    if steps[-1].get("type") != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    if len(steps) == 1:
        return GPT2_PATTERN if steps[0]["use_regex"] else None
    first = steps[0]
    plain = len(steps) == 2 and not steps[1]["use_regex"] and first["type"] == "Split" and first["behavior"] == "Isolated" and not first["invert"]
    return first["pattern"].get("Regex") if plain else None


def _ranks(data: dict[str, Any]) -> dict[bytes, int]:
    """Ids of the tokens by their bytes, where ids ascend as the merges do; empty where they do not, or where a token has more than one pair."""
    model = data["model"]
    if model["type"] != "BPE" or model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return {}
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    vocabulary, byte_of = model["vocab"], byte_of_character()
    ids = [vocabulary[left + right] for left, right in pairs]
    if any(one >= other for one, other in zip(ids, ids[1:], strict=False)) or any(character not in vocabulary for character in byte_of):
        return {}
    merged = [left + right for left, right in pairs]
    alone = Core.from_str(json.dumps({**data, "normalizer": None, "pre_tokenizer": None, "post_processor": None, "added_tokens": [], "model": {**model, "ignore_merges": False}}))
    reached = [token for token, encoding in zip(merged, alone.encode_batch_fast(merged, add_special_tokens=False), strict=True) if encoding.ids == [vocabulary[token]]]
    if model.get("ignore_merges") and len(reached) < len(vocabulary) - len(byte_of) - len({token["content"] for token in data["added_tokens"]} & set(vocabulary)):
        return {}
    return {bytes(byte_of[character] for character in token): vocabulary[token] for token in (*byte_of, *reached)}


@cache
def _unknown() -> np.ndarray:
    """For every code point whether Python's tables have no class for it."""
    return np.fromiter((unicodedata.category(chr(point)) == "Cn" for point in range(0x110000)), bool, 0x110000)


def is_known(text: str) -> bool:
    """Whether every character of a text has a class in Python's Unicode tables."""
    return text.isascii() or not _unknown()[np.frombuffer(text.encode("utf-32-le"), "<u4")].any()
