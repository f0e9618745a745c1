"""Which tokens of a chat are trained on, found by rendering its beginnings: no marker in the template is needed.

The text up to a turn, with the generation prompt, must be a beginning of the text that includes the turn; what
comes after it is what the assistant has to write. Of that, the words and the token that ends the turn are
supervised, and what the template adds behind them (a line break) is not: it is never generated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from luban.foundation.errors import DataError
from luban.tokenizer.templates import FIXED_DAY

if TYPE_CHECKING:
    from luban.tokenizer.tokenizer import Tokenizer

_SENTINEL = "luban-sentinel-7f3a"


@dataclass
class Supervised:
    """One training sequence: token ids and the weight of each as a target."""

    ids: list[int]
    weights: list[float]


def supervise(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None = None) -> list[Supervised]:
    """Training sequences of one conversation; more than one only where the template rewrites earlier turns.

    The first sequence is the conversation up to its last answer. A turn that reads otherwise there than when it was written (Qwen3
    takes the thinking out of earlier turns) gets a sequence that ends with it.
    """
    fixed = tokenizer if tokenizer.clock is _fixed_day else _on_fixed_day(tokenizer)
    fenced, tools = fixed.fence(messages), fixed.fence(tools)
    for message in fenced:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError("a message has no role", "", 'write {"role": "user", "content": "…"}')
    spans = {index: _span(fixed, fenced, tools, index) for index, message in enumerate(fenced) if message["role"] == "assistant"}
    waiting = [index for index in spans if _weight(fenced[index]) != 0]

    examples: list[Supervised] = []
    end = waiting[-1] + 1 if waiting else len(fenced)  # a question that nobody answers teaches nothing
    while not examples or waiting:
        text = fixed.render(fenced[:end], tools=tools)
        held = [index for index in waiting if index < end and text.startswith(spans[index][1])]
        examples.append(_weigh(fixed, text, {index: (spans[index][0], len(spans[index][1])) for index in held}, fenced))
        waiting = [index for index in waiting if index not in held]
        end = waiting[-1] + 1 if waiting else 0
    return examples


def _fixed_day() -> datetime:
    return FIXED_DAY


def _on_fixed_day(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, whose template reads one fixed date: examples must not change overnight."""
    if "strftime_now" not in (tokenizer.chat_template or ""):
        return tokenizer
    return type(tokenizer)(tokenizer.core, tokenizer.config, tokenizer.generation, clock=_fixed_day)


def _span(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None, index: int) -> tuple[int, str]:
    """Where the assistant's turn ``index`` starts, in characters, and the text up to its end."""
    whole = tokenizer.render(messages[: index + 1], tools=tools)
    try:
        prompt = tokenizer.render(messages[:index], tools=tools, add_generation_prompt=True)
    except DataError:
        prompt = None  # a template may refuse to be asked for a turn here, such as the very first
    if prompt is not None and whole.startswith(prompt):
        return len(prompt), whole
    # The prompt promises something that the finished turn does not show (DeepSeek-R1's opening <think>).
    start = _by_sentinel(tokenizer, messages, tools, index, whole)
    if start is None and prompt is not None:  # then the turn starts where the two part, if all before the turn is the same
        parting = len(os.path.commonprefix([prompt, whole]))
        before = tokenizer.render(messages[:index], tools=tools)
        start = parting if before and parting >= len(before) else None
    if start is None:
        raise DataError(
            "the chat template rewrites what comes before assistant turn {turn}, so its words cannot be told apart",
            "a turn must follow the text that the model was given when it was to write it",
            "use another chat_template, or give the conversation as prompt and completion",
            turn=index + 1,
        )
    return start, whole


def _by_sentinel(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None, index: int, whole: str) -> int | None:
    """Where the words of a turn start, found by rendering the turn with other words; None if that changes what comes before."""
    other = {
        key: value for key, value in messages[index].items() if key not in ("tool_calls", "reasoning_content", "thinking", "reasoning")
    }
    changed = tokenizer.render([*messages[:index], {**other, "content": _SENTINEL}], tools=tools)
    place = changed.find(_SENTINEL)
    return place if place >= 0 and changed[:place] == whole[:place] else None


def _weigh(tokenizer: Tokenizer, text: str, turns: dict[int, tuple[int, int]], messages: list[dict]) -> Supervised:
    """Tokens of a text, weighted where they overlap a turn, up to the last token of the turn that stops generation."""
    ids, offsets = tokenizer.encode_fenced(text)
    stops = set(tokenizer.stop_ids)
    weights = [0.0] * len(ids)
    for index, (start, end) in turns.items():
        inside = [place for place, (left, right) in enumerate(offsets) if right > start and left < end]
        last = max((place for place in inside if ids[place] in stops), default=None)
        if last is None:  # the template writes no end of turn: its white space at the end is still not the assistant's
            last = max((place for place in inside if text[offsets[place][0] : offsets[place][1]].strip()), default=-1)
        for place in inside:
            if place <= last:
                weights[place] = _weight(messages[index])
    return Supervised(ids, weights)


def _weight(message: dict) -> float:
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise DataError(
            "a message's weight is {weight!r}",
            "it scales how much the message counts in training",
            "write a number of 0 or more",
            weight=weight,
        )
    return float(weight)
