"""From token ids back to bytes and text, whole or token by token."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from functools import lru_cache

from tokenizers import Tokenizer as Core


@lru_cache(maxsize=1)
def byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-in of each byte, reversed: ``{"Ġ": 32, …}`` (openai/gpt-2, encoder.py: bytes_to_unicode)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(rest)}


def decoder_kinds(core: Core) -> set[str]:
    """The types of the tokenizer's decoders: ``{"ByteLevel"}``, ``{"ByteFallback", "Fuse"}`` …"""
    import json

    found: set[str] = set()

    def walk(part: dict | None) -> None:
        if part:
            found.add(part["type"])
            for inner in part.get("decoders", []):
                walk(inner)

    walk(json.loads(core.to_str())["decoder"])
    return found


def bytes_of_tokens(core: Core, size: int, byte_level: bool) -> list[bytes]:
    """The bytes each token id stands for; special tokens and gaps stand for none.

    Exact where tokens stand for bytes or text. WordPiece's tokens do not say where a space was: the bytes of
    their letters are counted.
    """
    added = core.get_added_tokens_decoder()
    mapping = byte_of_character()
    kinds = decoder_kinds(core)
    table = []
    for index in range(size):
        token = core.id_to_token(index)
        if token is None or (index in added and added[index].special):
            table.append(b"")
        elif index in added:
            table.append(token.encode("utf-8", "replace"))
        elif byte_level:
            known = all(character in mapping for character in token)
            table.append(bytes(mapping[character] for character in token) if known else token.encode("utf-8", "replace"))
        elif "ByteFallback" in kinds and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            table.append(bytes([int(token[3:5], 16)]))
        else:
            if "WordPiece" in kinds:
                token = token.removeprefix("##")
            elif kinds & {"Metaspace", "Replace"}:
                token = token.replace("\u2581", " ")
            table.append(token.encode("utf-8", "replace"))
    return table


class DecodeStream:
    """Text from tokens as they come: ``push`` returns what is certain, ``flush`` the rest; joined they equal ``decode``.

    Byte-level tokenizers may cut a character (a rare Han character is up to four tokens): its bytes wait until it is
    whole. For other kinds of tokenizer the text is decoded again from the last safe point.
    """

    def __init__(self, table: list[bytes] | None, decode: Callable[[Sequence[int]], str]):
        self._table, self._decode = table, decode
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: list[int] = []
        self._shown = 0

    def push(self, index: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        if self._table is not None:
            return self._bytes.decode(self._table[index] if 0 <= index < len(self._table) else b"")
        self._ids.append(index)
        text = self._decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        return self._advance(text)

    def flush(self) -> str:
        """What was still waiting, with U+FFFD for bytes that never became a character."""
        if self._table is not None:
            return self._bytes.decode(b"", final=True)
        return self._advance(self._decode(self._ids))

    def _advance(self, text: str) -> str:
        fresh, self._shown = text[self._shown :], max(self._shown, len(text))
        return fresh
