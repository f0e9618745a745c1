"""How an answer looks on the wire: OpenAI's objects, whole or in chunks."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field, replace
from typing import Any

from luban.inference.engine import TokenScore
from luban.serving.logprobs import TokenNames, chat_layout, completion_layout
from luban.serving.worker import Piece


@dataclass
class Echo:
    """The prompt that is repeated before the answer: its text, and where each token begins in it."""

    text: str
    offsets: list[int]


@dataclass
class Choice:
    """What has been gathered of one choice."""

    text: str = ""
    scores: list[TokenScore] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)  # where each scored token begins in the text, in characters
    finish_reason: str | None = None
    generated_tokens: int = 0


class CompletionAnswer:
    """Answers of /v1/completions: plain text."""

    prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def __init__(self, model: str, names: TokenNames, prompt_tokens: int, choices: int, with_logprobs: bool, include_usage: bool = False):
        self.model, self.names, self.with_logprobs, self.include_usage = model, names, with_logprobs, include_usage
        self.echoes: list[Echo | None] = [None] * choices
        self.id, self.created = self.prefix + secrets.token_hex(12), int(time.time())
        self.prompt_tokens = prompt_tokens
        self.choices = [Choice() for _ in range(choices)]

    def add(self, index: int, piece: Piece) -> tuple[str, list[TokenScore], list[int]]:
        """Take a piece into its choice; return its text, its scored tokens and where each begins in the text."""
        choice, echo = self.choices[index], self.echoes[index]
        text, scores, offsets = piece.text, [*piece.prompt_scores, *piece.scores], []
        if echo is not None:  # before the first piece
            self.echoes[index] = None
            text, offsets = echo.text + text, echo.offsets[: len(piece.prompt_scores)]
        # A token whose character is not whole yet begins where that character will stand.
        offsets = offsets + [len(choice.text) + len(text) - len(piece.text)] * len(piece.scores)
        choice.text += text
        choice.scores += scores
        choice.offsets += offsets
        choice.generated_tokens += piece.generated_tokens
        choice.finish_reason = piece.finish_reason or choice.finish_reason
        return text, scores, offsets

    def whole(self) -> dict[str, Any]:
        choices = [self._whole_choice(index, choice) for index, choice in enumerate(self.choices)]
        return {**self._head(self.kind), "choices": choices, "usage": self.usage()}

    def opening(self) -> list[dict[str, Any]]:
        """The chunks that come before the first token."""
        return []

    def chunk(self, index: int, piece: Piece) -> dict[str, Any] | None:
        """The chunk for a piece, or None if there is nothing in it to show yet."""
        text, scores, offsets = self.add(index, piece)
        if not text and not (scores and self.with_logprobs) and piece.finish_reason is None:
            return None
        return self._chunk(self._delta(index, text, self._logprobs(scores, offsets), piece.finish_reason))

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk where `stream_options.include_usage` asks for it."""
        return {**self._head(self.chunk_kind), "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        generated = sum(choice.generated_tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._head(self.chunk_kind), "choices": [choice]}
        return {**chunk, "usage": None} if self.include_usage else chunk

    def _logprobs(self, scores: list[TokenScore], offsets: list[int]) -> dict[str, Any] | None:
        return completion_layout(scores, offsets, self.names) if self.with_logprobs else None

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        logprobs = self._logprobs(choice.scores, choice.offsets)
        return {"index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": choice.finish_reason}

    def _delta(self, index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


class ChatAnswer(CompletionAnswer):
    """Answers of /v1/chat/completions: a message by the assistant."""

    prefix, kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        choices = [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None} for index in range(len(self.choices))]
        return [self._chunk(choice) for choice in choices]

    def _logprobs(self, scores: list[TokenScore], offsets: list[int]) -> dict[str, Any] | None:
        return chat_layout(scores, self.names) if self.with_logprobs else None

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        logprobs = self._logprobs(choice.scores, choice.offsets)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish_reason}

    def add(self, index: int, piece: Piece) -> tuple[str, list[TokenScore], list[int]]:
        """As for completions; but the token that ends the turn is no part of the message."""
        return super().add(index, replace(piece, scores=piece.scores[:-1]) if piece.stop_token else piece)

    def _delta(self, index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> dict[str, Any]:
        delta = {"content": text} if text else {}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def event(value: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
