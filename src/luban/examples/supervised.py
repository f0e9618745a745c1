"""Conversations to supervised examples, and examples to a maximum length."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from luban.corpus.readers import BadLine
from luban.examples.conversations import Conversation
from luban.foundation.console import track
from luban.foundation.errors import LubanError
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Example

_PLACE = re.compile(r"(.*):(\d+)(?: \((.*)\))?", re.DOTALL)  # chat.json:1 (its key)


def supervised_examples(conversations: Sequence[Conversation], tokenizer: Tokenizer, bad: list[BadLine] | None = None) -> list[Example]:
    """Encode conversations at full length (the guard looks at them before anything is cut).

    A conversation that the template refuses goes to ``bad`` with the template's reason; if all are refused, or no list is given,
    the LubanError is raised.
    """
    examples: list[Example] = []
    failure: LubanError | None = None
    for conversation in track(conversations, "encoding conversations", total=len(conversations)):
        try:
            found = tokenizer.encode_examples(conversation.messages, tools=conversation.tools)
        except LubanError as error:
            if bad is None:
                raise
            failure = error
            placed = _PLACE.fullmatch(conversation.source)
            file, line, name = placed.groups() if placed else (conversation.source, 0, None)
            bad.append(BadLine(file, int(line), (f"{name}: " if name else "") + str(error).replace("\n", "; "), str(conversation.messages)[:2000]))
            continue
        examples += [
            Example(np.array(item.ids, dtype=np.int32), np.array(item.weights, dtype=np.float32), conversation.source) for item in found
        ]
    if failure is not None and not examples:
        raise failure
    return examples


def fit_to_length(examples: Sequence[Example], maximum_length: int) -> tuple[list[Example], int]:
    """Examples cut to ``maximum_length`` tokens at their end, without those that then have nothing to learn; and how many those are."""
    kept = []
    for example in examples:
        short = (
            example
            if len(example.ids) <= maximum_length
            else Example(example.ids[:maximum_length], example.weights[:maximum_length], example.source)
        )
        if short.weights[1:].any():
            kept.append(short)
    return kept, len(examples) - len(kept)
