"""One large JSON array, parsed an element at a time so that it never stands in memory as a whole."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

_SPACE = " \t\r\n"


class _Text:
    """A window on the decoded stream: ``window[position:]`` is what has not been parsed, ``line`` where it starts."""

    def __init__(self, stream: BinaryIO, encoding: str):
        self.stream, self.decoder = stream, codecs.getincrementaldecoder(encoding)("replace")
        self.window, self.position, self.line, self.ended = "", 0, 1, False

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        if self.ended:
            return False
        raw = self.stream.read(max(1 << 18, len(self.window) - self.position))
        self.ended = not raw
        self.window = self.window[self.position :] + self.decoder.decode(raw, final=self.ended)
        self.position = 0
        return True

    def take(self, end: int) -> str:
        """Move on to ``end`` and give what was passed over."""
        passed = self.window[self.position : end]
        self.line += passed.count("\n")
        self.position = end
        return passed

    def peek(self) -> str:
        """The next character that is not white space, or nothing at the end."""
        while True:
            end = self.position
            while end < len(self.window) and self.window[end] in _SPACE + "\ufeff":
                end += 1
            self.take(end)
            if end < len(self.window):
                return self.window[end]
            if not self.more():
                return ""


def array_items(stream: BinaryIO, encoding: str, path: str, on_bad: Callable, limit: int) -> Iterator[tuple[int, Any, str]]:
    """Each element of the array with the line it starts on and its text; what cannot be parsed goes to ``on_bad`` as one record."""
    from luban.corpus.readers import BadLine

    text, decoder = _Text(stream, encoding), json.JSONDecoder()
    opening = text.peek()
    in_array = opening == "["
    if in_array:
        text.take(text.position + 1)
    while (next_one := text.peek()) and not (in_array and next_one == "]"):
        start = text.line
        try:
            value, end = _parse(text, decoder, limit)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} (line {start + error.lineno - 1})" if isinstance(error, json.JSONDecodeError) else str(error)
            on_bad(BadLine(path, start, f"not valid JSON from here on: {reason}", text.window[text.position : text.position + 2000]))
            return
        raw = text.take(end)
        if in_array:
            yield start, value, raw
            if text.peek() == ",":
                text.take(text.position + 1)
        else:
            for item in _inner_array(value):
                yield start, item, raw


def _parse(text: _Text, decoder: json.JSONDecoder, limit: int) -> tuple[Any, int]:
    """Parse one value at the window's position, reading on while it may only be incomplete."""
    while True:
        try:
            value, end = decoder.raw_decode(text.window, text.position)
            if end < len(text.window) or not text.more():  # a number may go on in what was not read yet
                return value, end
            continue
        except ValueError:
            if len(text.window) - text.position > limit or not text.more():
                raise


def _inner_array(value: Any) -> list[Any]:
    """``{"data": [{…}, …]}`` stands for its rows; any other object is one row."""
    if isinstance(value, dict):
        arrays = [v for v in value.values() if isinstance(v, list) and v and all(isinstance(item, dict) for item in v)]
        if len(arrays) == 1 and not any(isinstance(v, str) and len(v) > 200 for v in value.values()):
            return arrays[0]
    return [value]
