"""Model directories as writers of texts for augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luban.examples.augmentation_models import Written
from luban.foundation.errors import ConfigError
from luban.inference.config import GenerationConfig, SamplingConfig
from luban.inference.generate import generate, prompt_ids
from luban.inference.predictor import Predictor
from luban.inference.seq2seq import answers_from
from luban.inference.texts import LONGEST_INPUT, LONGEST_OUTPUT, end_ids, source_ids

PAIR_TASKS = ("translation", "summarization", "generation", "text_pairs")  # of decoders that were trained on pairs of texts


class ModelWriter:
    """A model directory that writes. ``from_text`` says whether it was trained to write from a text alone, and needs no prompt."""

    def __init__(self, path: Path, temperature: float):
        """Raises ConfigError for a model that writes nothing."""
        self.predictor = Predictor.load(path)
        self.temperature = temperature
        model = self.predictor.model
        self.from_text = model.shape.kind == "encoder_decoder" or (model.head is not None and model.head.task in PAIR_TASKS)
        if model.shape.kind == "encoder" or (model.head is not None and model.head.replaces_output):
            raise ConfigError("{path}: this model writes no texts", "its task is {task}", "name a decoder or an encoder–decoder", path=path, task=self.predictor.task)

    def write(self, prompts: Sequence[str], seed: int) -> list[Written]:
        """A text for each prompt; the same for the same prompt and seed, whatever else is written with it."""
        return (self._from_texts if self.from_text else self._from_prompts)(prompts, seed)

    def _from_texts(self, texts: Sequence[str], seed: int) -> list[Written]:
        model, tokenizer = self.predictor.model, self.predictor.tokenizer
        settings = {"maximum_input": min(LONGEST_INPUT, model.longest_text), **(model.head.settings if model.head else {})}
        kind = model.shape.kind
        framed = [source_ids(tokenizer, text, {}, settings, kind) for text in texts]
        fits = [number for number, (ids, cut) in enumerate(framed) if ids and not cut]
        drawn = {"temperature": self.temperature, "seed": seed} if self.temperature else {"beams": settings.get("beams", 1)}
        chosen = GenerationConfig(maximum_tokens=settings.get("maximum_output", LONGEST_OUTPUT), **drawn)
        answers = answers_from(model.eval(), [framed[number][0] for number in fits], chosen, end_ids=end_ids(tokenizer, kind))
        found: list[Written] = [("", "too long")] * len(texts)
        for number, (answer, *_) in zip(fits, answers, strict=True):
            text = tokenizer.decode(answer.ids).strip()
            found[number] = ("", "cut") if not answer.ended else (text, "") if text else ("", "empty")
        return found

    def _from_prompts(self, prompts: Sequence[str], seed: int) -> list[Written]:
        model, tokenizer = self.predictor.model, self.predictor.tokenizer
        if tokenizer.chat_template is not None:
            ids = [tokenizer.encode_chat([{"role": "user", "content": prompt}], add_generation_prompt=True) for prompt in prompts]
        else:
            ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
        room = model.longest_text
        fits = [number for number, prompt in enumerate(ids) if len(prompt) <= room // 2]
        found: list[Written] = [("", "too long")] * len(prompts)
        if not fits:
            return found
        sampling = SamplingConfig(temperature=self.temperature, seed=seed, maximum_tokens=min(LONGEST_OUTPUT, room - room // 2))
        for number, answer in zip(fits, generate(model.eval(), tokenizer, [ids[number] for number in fits], sampling), strict=True):
            text = answer.text.strip()
            found[number] = ("", "cut") if answer.finish_reason == "length" else (text, "") if text else ("", "empty")
        return found
