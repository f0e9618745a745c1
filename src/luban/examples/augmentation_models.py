"""Texts that models write: back-translation, paraphrases, and new texts of a class; by model directories or an endpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from luban.examples.augmentation_edits import Draws
from luban.examples.config import BackTranslationConfig, ParaphraseConfig, SynthesisConfig
from luban.examples.notes import is_han

Written = tuple[str, str]  # a text and "", or "" and what was wrong: "cut", "empty", "too long"
_SHOWN = 1000  # characters of a text that is shown as an example in a prompt


class Writer(Protocol):
    """Something that writes: a model directory or an endpoint. ``from_text``: it writes from a text alone, and needs no prompt."""

    from_text: bool

    def write(self, prompts: Sequence[str], seed: int) -> list[Written]: ...


def filled(prompt: str, **values: str) -> str:
    """The prompt with values in the places of their names; braces inside the values, and other ones, stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), prompt)


def language_of(text: str) -> str:
    """``Chinese`` where a third of the letters and more are Chinese characters, else ``English``: for prompts."""
    letters = [letter for letter in text if letter.isalpha()]
    return "Chinese" if 3 * sum(is_han(letter) for letter in letters) >= max(1, len(letters)) else "English"


def back_translated(texts: Sequence[str], options: BackTranslationConfig, there: Writer, back: Writer, seed: int) -> list[Written]:
    """Every text in another language and back; what is lost on the way there is not sent back."""
    asked = list(texts) if there.from_text else [filled(options.there_prompt, text=text, through=options.through) for text in texts]
    found = there.write(asked, seed)
    arrived = [number for number, (_, problem) in enumerate(found) if not problem]
    returning = [
        found[number][0] if back.from_text else filled(options.back_prompt, text=found[number][0], language=language_of(texts[number])) for number in arrived
    ]
    for number, answer in zip(arrived, back.write(returning, seed), strict=True):
        found[number] = answer
    return found


def paraphrased(texts: Sequence[str], options: ParaphraseConfig, writer: Writer, seed: int) -> list[Written]:
    """Every text in other words."""
    return writer.write([text if writer.from_text else filled(options.prompt, text=text, language=language_of(text)) for text in texts], seed)


def synthesised(label: str, texts: Sequence[str], options: SynthesisConfig, writer: Writer, seed: Any) -> list[Written]:
    """``per_label`` new texts of a class, each after other texts of it."""
    prompts = []
    for number in range(options.per_label):
        shown = Draws(seed, "synthesis", label, number).sample(texts, options.shots)
        examples = "\n".join(f"- {text if len(text) <= _SHOWN else text[:_SHOWN] + '…'}" for text in (" ".join(text.split()) for text in shown))
        prompts.append(filled(options.prompt, label=label, examples=examples, language=language_of(" ".join(shown))))
    return writer.write(prompts, Draws(seed, "synthesis").below(1 << 31))
