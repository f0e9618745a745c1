"""Texts that models write: back-translation, paraphrases, and new texts of a class; by model directories or an endpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from luban.examples.augmentation_edits import Draws
from luban.examples.config import BackTranslationConfig, ParaphraseConfig, SynthesisConfig
from luban.examples.notes import is_han
from luban.foundation.errors import ConfigError
from luban.inference.config import GenerationConfig, SamplingConfig
from luban.inference.generate import generate, prompt_ids
from luban.inference.predictor import Predictor
from luban.inference.seq2seq import answers_from
from luban.inference.texts import LONGEST_INPUT, LONGEST_OUTPUT, end_ids, source_ids

Written = tuple[str, str]  # a text and "", or "" and what was wrong: "cut", "empty", "too long"
_SHOWN = 1000  # characters of a text that is shown as an example in a prompt


class Writer(Protocol):
    """Something that answers prompts."""

    def write(self, prompts: Sequence[str], seed: int) -> list[Written]: ...


class ModelWriter:
    """A model directory that writes. ``from_text`` says whether it was trained to write from a text alone, and needs no prompt."""

    def __init__(self, path: Path, temperature: float):
        """Raises ConfigError for a model that writes nothing."""
        self.predictor = Predictor.load(path)
        self.temperature = temperature
        model = self.predictor.model
        self.from_text = model.shape.kind == "encoder_decoder" or (model.head is not None and not model.head.replaces_output)
        if model.shape.kind == "encoder" or (model.head is not None and model.head.replaces_output):
            raise ConfigError("{path}: this model writes no texts", "its task is {task}", "name a decoder or an encoder–decoder", path=path, task=self.predictor.task)

    def write(self, prompts: Sequence[str], seed: int) -> list[Written]:
        """A text for each prompt; the same for the same prompt and seed, whatever else is written with it."""
        return (self._from_texts if self.from_text else self._from_prompts)(prompts, seed)

    def _from_texts(self, texts: Sequence[str], seed: int) -> list[Written]:
        model, tokenizer = self.predictor.model, self.predictor.tokenizer
        settings = {"maximum_input": min(LONGEST_INPUT, model.shape.maximum_positions), **(model.head.settings if model.head else {})}
        kind = model.shape.kind
        framed = [source_ids(tokenizer, text, {}, settings, kind) for text in texts]
        fits = [number for number, (ids, cut) in enumerate(framed) if ids and not cut]
        drawn = {"temperature": self.temperature, "seed": seed} if self.temperature else {"beams": settings.get("beams", 1)}
        chosen = GenerationConfig(maximum_tokens=settings.get("maximum_output", LONGEST_OUTPUT), **drawn)
        answers = answers_from(model.eval(), [framed[number][0] for number in fits], chosen, end_ids=end_ids(tokenizer, kind))
        found: list[Written] = [("", "too long")] * len(texts)
        for number, (answer, *_) in zip(fits, answers, strict=True):
            text = tokenizer.decode(answer.ids).strip()
            found[number] = ("", "cut") if not answer.finished else (text, "") if text else ("", "empty")
        return found

    def _from_prompts(self, prompts: Sequence[str], seed: int) -> list[Written]:
        model, tokenizer = self.predictor.model, self.predictor.tokenizer
        if tokenizer.chat_template is not None:
            ids = [tokenizer.encode_chat([{"role": "user", "content": prompt}], add_generation_prompt=True) for prompt in prompts]
        else:
            ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
        room = model.shape.maximum_positions
        fits = [number for number, prompt in enumerate(ids) if len(prompt) <= room // 2]
        found: list[Written] = [("", "too long")] * len(prompts)
        if not fits:
            return found
        sampling = SamplingConfig(temperature=self.temperature, seed=seed, maximum_tokens=min(LONGEST_OUTPUT, room - room // 2))
        for number, answer in zip(fits, generate(model.eval(), tokenizer, [ids[number] for number in fits], sampling), strict=True):
            text = answer.text.strip()
            found[number] = ("", "cut") if answer.finish_reason == "length" else (text, "") if text else ("", "empty")
        return found


def filled(prompt: str, **values: str) -> str:
    """The prompt with values in the places of their names; braces inside the values, and other ones, stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), prompt)


def language_of(text: str) -> str:
    """``Chinese`` where a third of the letters and more are Chinese characters, else ``English``: for prompts."""
    letters = [letter for letter in text if letter.isalpha()]
    return "Chinese" if 3 * sum(is_han(letter) for letter in letters) >= max(1, len(letters)) else "English"


def back_translated(texts: Sequence[str], options: BackTranslationConfig, there: Writer, back: Writer, seed: int) -> list[Written]:
    """Every text in another language and back; what is lost on the way there is not sent back."""
    plain = isinstance(there, ModelWriter) and there.from_text
    asked = list(texts) if plain else [filled(options.there_prompt, text=text, through=options.through) for text in texts]
    found = there.write(asked, seed)
    arrived = [number for number, (_, problem) in enumerate(found) if not problem]
    plain = isinstance(back, ModelWriter) and back.from_text
    returning = [
        found[number][0] if plain else filled(options.back_prompt, text=found[number][0], language=language_of(texts[number])) for number in arrived
    ]
    for number, answer in zip(arrived, back.write(returning, seed), strict=True):
        found[number] = answer
    return found


def paraphrased(texts: Sequence[str], options: ParaphraseConfig, writer: Writer, seed: int) -> list[Written]:
    """Every text in other words."""
    plain = isinstance(writer, ModelWriter) and writer.from_text
    return writer.write([text if plain else filled(options.prompt, text=text, language=language_of(text)) for text in texts], seed)


def synthesised(label: str, texts: Sequence[str], options: SynthesisConfig, writer: Writer, seed: Any) -> list[Written]:
    """``per_label`` new texts of a class, each after other texts of it."""
    prompts = []
    for number in range(options.per_label):
        shown = Draws(seed, "synthesis", label, number).sample(texts, options.shots)
        examples = "\n".join(f"- {text if len(text) <= _SHOWN else text[:_SHOWN] + '…'}" for text in (" ".join(text.split()) for text in shown))
        prompts.append(filled(options.prompt, label=label, examples=examples, language=language_of(" ".join(shown))))
    return writer.write(prompts, Draws(seed, "synthesis").below(1 << 31))
