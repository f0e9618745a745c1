"""Log probabilities in OpenAI's two layouts.

They are those of the model itself: natural logarithms of the softmax over the whole vocabulary, before
temperature, penalties and truncation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from luban.inference.engine import TokenScore
from luban.tokenizer.decoding import bytes_of_tokens
from luban.tokenizer.tokenizer import Tokenizer


class TokenNames:
    """The text and the bytes of single tokens. A token that is part of a character is written ``bytes:\\xe4\\xb8``, as OpenAI does."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.special = {id: token for token, id in tokenizer.special_ids.items()}

    def __call__(self, id: int) -> tuple[str, list[int]]:
        """The name of a token and its bytes (UTF-8)."""
        if id in self.special:
            return self.special[id], list(self.special[id].encode())
        data = self._table[id] if id < len(self._table) else b""  # the embedding may have rows that no token uses
        if not data:
            return f"<token {id}>", []
        try:
            return data.decode("utf-8"), list(data)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), list(data)

    @cached_property
    def _table(self) -> list[bytes]:
        return bytes_of_tokens(self.tokenizer.core, self.tokenizer.vocabulary_size, self.tokenizer.byte_level)


def completion_layout(scores: Sequence[TokenScore], offsets: Sequence[int], names: TokenNames) -> dict[str, Any]:
    """The ``logprobs`` of /v1/completions: four parallel lists."""
    tops: list[dict[str, float] | None] = []
    for score in scores:
        top: dict[str, float] = {}
        for id, logprob in [*score.top, *([(score.id, score.logprob)] if score.logprob is not None else [])]:
            top.setdefault(names(id)[0], logprob)
        tops.append(top if score.logprob is not None else None)
    return {
        "tokens": [names(score.id)[0] for score in scores],
        "token_logprobs": [_finite(score.logprob) for score in scores],
        "top_logprobs": [top and {name: _finite(value) for name, value in top.items()} for top in tops],
        "text_offset": list(offsets),
    }


def chat_layout(scores: Sequence[TokenScore], names: TokenNames) -> dict[str, Any]:
    """The ``logprobs`` of /v1/chat/completions: an object a token."""

    def entry(id: int, logprob: float | None) -> dict[str, Any]:
        text, data = names(id)
        return {"token": text, "logprob": _finite(logprob), "bytes": data}

    content = [{**entry(score.id, score.logprob), "top_logprobs": [entry(*pair) for pair in score.top]} for score in scores]
    return {"content": content, "refusal": None}


def _finite(value: float | None) -> float | None:
    """JSON has no infinity; -9999 is what OpenAI and vLLM write for "impossible"."""
    return value if value is None else max(value, -9999.0)
