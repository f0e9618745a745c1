"""Texts written for texts: translations, summaries, titles, controlled generation; by encoder–decoders, and by decoders that go on a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from luban.foundation.errors import ConfigError, DataError
from luban.inference.config import GenerationConfig
from luban.inference.generate import prompt_ids
from luban.inference.seq2seq import generate_from
from luban.models.base import Model
from luban.tokenizer.framing import frame
from luban.tokenizer.tokenizer import Tokenizer

ANY_LENGTH = 1 << 30
LONGEST_INPUT, LONGEST_OUTPUT = 512, 256  # tokens, for models that say nothing of it themselves
_PLACE = re.compile(r"\{([^{}\n]+)\}")


def places_of(prompt: str) -> list[str]:
    """The names in braces of a prompt, each once, in order."""
    return list(dict.fromkeys(match[1] for match in _PLACE.finditer(prompt)))


def fill_prompt(prompt: str, text: str, controls: Mapping[str, Any]) -> str:
    """The prompt with the input and the controls in their places; what is not given is empty. Braces inside the values stay as they are."""
    values = {**controls, "input": text}
    return _PLACE.sub(lambda match: str(values.get(match[1], "")), prompt)


def source_ids(tokenizer: Tokenizer, text: str, controls: Mapping[str, Any], settings: Mapping[str, Any], kind: str) -> tuple[list[int], int]:
    """What the model reads, in training and in prediction alike, and how many tokens of the input were cut off at its end.

    An encoder's text has the special tokens of its family; a decoder's prompt the token that begins texts, where there is one.
    """
    prompt, maximum = settings.get("prompt", "{input}"), settings.get("maximum_input", LONGEST_INPUT)
    if kind == "encoder_decoder":
        room = maximum - sum(slot.part < 0 for slot in tokenizer.layout.single)
    else:
        room = maximum - (tokenizer.begin_of_text_id is not None)
    filled, cut = _fitted(tokenizer, prompt, text.strip(), controls, room)
    if kind == "encoder_decoder":
        return frame(tokenizer, filled, maximum=maximum).ids, cut
    return prompt_ids(tokenizer, filled), cut


def _fitted(tokenizer: Tokenizer, prompt: str, text: str, controls: Mapping[str, Any], room: int) -> tuple[str, int]:
    """The filled prompt in at most ``room`` tokens: what is too long loses the end of its input, not of what stands around it."""
    filled = fill_prompt(prompt, text, controls)
    excess = len(tokenizer.encode(filled)) - room
    if excess <= 0:
        return filled, 0
    framed = frame(tokenizer, text, maximum=ANY_LENGTH)
    ends = [end for part, (_, end) in zip(framed.parts, framed.offsets, strict=True) if part == 0]
    kept = len(ends)
    while excess > 0 and kept:
        kept = max(0, kept - excess)
        filled = fill_prompt(prompt, text[: ends[kept - 1]] if kept else "", controls)
        excess = len(tokenizer.encode(filled)) - room
    if excess > 0:
        raise ConfigError(
            "the prompt takes {excess} tokens more than there is room for, without any input",
            "controls and the words around the input are never cut", "shorten them, or raise sequence_length", excess=excess,
        )  # fmt: skip
    return filled, len(ends) - kept


def output_ids(tokenizer: Tokenizer, text: str, kind: str) -> list[int]:
    """The tokens of an output with what ends it; for an encoder–decoder with all special tokens of its family, as in BART's and T5's training."""
    if kind == "encoder_decoder":
        return frame(tokenizer, text, maximum=ANY_LENGTH).ids
    return [*tokenizer.encode(text), tokenizer.end_of_text_id]


def end_ids(tokenizer: Tokenizer, kind: str) -> list[int]:
    """The tokens that end an output."""
    if kind != "encoder_decoder":
        return tokenizer.stop_ids
    slots = tokenizer.layout.single
    behind = [slot.id for slot in slots[next(place for place, slot in enumerate(slots) if slot.part >= 0) + 1 :]]
    return list(dict.fromkeys([*tokenizer.stop_ids, *behind]))


def framed_items(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]]) -> tuple[list[list[int]], list[int]]:
    """What the model reads of each item, as its note says, and how many tokens of each input were cut off."""
    settings = dict(model.head.settings) if model.head else {}
    settings.setdefault("maximum_input", min(LONGEST_INPUT, model.longest_text))
    sources, cuts = [], []
    for number, item in enumerate(items):
        controls = {name: item[name] for name in settings.get("controls", ()) if item.get(name) is not None} | (item.get("controls") or {})
        ids, cut = source_ids(tokenizer, _input_of(item, number, settings), controls, settings, model.shape.kind)
        sources.append(ids)
        cuts.append(cut)
    return sources, cuts


def write(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """For ``{"input": …}`` (or ``{"text": …}``), with the controls the model knows by their names or under ``"controls"``: ``{"text"}``.

    Greedy, by chance or by as many beams, as the model's note says; the same item gets the same text. An item whose input was cut says so in ``"cut_tokens"``.
    """
    settings = dict(model.head.settings) if model.head else {}
    sources, cuts = framed_items(model, tokenizer, items)
    noted = {name: settings[name] for name in ("beams", "temperature", "top_p") if name in settings}
    chosen = GenerationConfig(**noted, seed=0, maximum_tokens=settings.get("maximum_output", LONGEST_OUTPUT))
    written = generate_from(model, sources, chosen, end_ids=end_ids(tokenizer, model.shape.kind), rows=rows)
    return [{"text": tokenizer.decode(ids).strip(), **({"cut_tokens": cut} if cut else {})} for ids, cut in zip(written, cuts, strict=True)]


def _input_of(item: Mapping[str, Any], number: int, settings: Mapping[str, Any]) -> str:
    """The item's input; where the prompt has no place for one, none is needed."""
    value = item.get("input", item.get("text"))
    if value is None and "input" not in places_of(settings.get("prompt", "{input}")):
        return ""
    if not isinstance(value, str):
        raise DataError(
            "item {number}: {name!r} is missing or no text", "this model reads it; the item has: {known}", "", number=number + 1,
            name="input", known=", ".join(map(str, item)),
        )  # fmt: skip
    return value
