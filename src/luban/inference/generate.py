"""Text from a model: many prompts at once, or one conversation, whole or piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luban.adapters.files import open_model, text_folder
from luban.foundation.hardware import machine
from luban.inference.config import SamplingConfig
from luban.inference.engine import Engine, FinishReason, Request
from luban.inference.packed import PackedDecoder
from luban.models.decoder import Decoder
from luban.models.huggingface import stored_dtype
from luban.tokenizer.tokenizer import Tokenizer

SLOTS = 16


@dataclass(frozen=True)
class Generation:
    """An answer: its text, its token ids, and why it ended (``"stop"`` or ``"length"``)."""

    text: str
    ids: list[int]
    finish_reason: FinishReason


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    sampling: SamplingConfig | None = None,
    *,
    slots: int = SLOTS,
    packed: PackedDecoder | None = None,
) -> list[Generation]:
    """Continue each prompt (text or token ids), ``slots`` at once; the answers come in the prompts' order.

    A text gets the token that the model expects before every text, if there is one. With a seed, equal prompts get equal answers.
    """
    sampling = sampling or SamplingConfig()
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    if not ids:
        return []
    length = max(len(prompt) for prompt in ids) + sampling.maximum_tokens
    engine = Engine(model, tokenizer, slots=min(slots, len(ids)), maximum_length=length, packed=packed)
    requests = [engine.submit(prompt, sampling) for prompt in ids]
    engine.run()
    return [Generation(request.text, request.ids, request.finish_reason) for request in requests]


def prompt_ids(tokenizer: Tokenizer, prompt: str | Sequence[int]) -> list[int]:
    """Token ids of a prompt. An empty text begins where documents do: after an end of text."""
    if not isinstance(prompt, str):
        return list(prompt)
    begin = tokenizer.begin_of_text_id
    ids = ([] if begin is None else [begin]) + tokenizer.encode(prompt)
    return ids or [tokenizer.end_of_text_id]


class LoadedModel:
    """A model with its tokenizer, ready to write: what ``luban.load`` returns."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, *, packs: bool = False):
        self.model, self.tokenizer = model, tokenizer
        self._packs, self._packed = packs, None  # a model in training has no memory to spare, and changes

    @classmethod
    def load(cls, path: Path | str, *, dtype: torch.dtype | None = None, device: str = "auto") -> LoadedModel:
        """Open a model directory. Raises DataError when it or its tokenizer cannot be read.

        ``device`` auto is the accelerator if there is one; ``dtype`` None is float32 on a processor, elsewhere the type on disk.
        """
        device = machine().accelerator if device == "auto" else device
        dtype = dtype or (torch.float32 if device == "cpu" else stored_dtype(Path(path)))
        return cls(open_model(Path(path), dtype=dtype, device=device), Tokenizer.load(text_folder(Path(path))), packs=True)

    def generate(self, prompt: Any, sampling: SamplingConfig | None = None, **settings: Any) -> Any:
        """Continue a prompt: a text for a text, a list of texts for a list. ``settings`` are SamplingConfig's fields."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        texts = [answer.text for answer in generate(self.model, self.tokenizer, prompts, _settings(sampling, settings), packed=self._laid_out())]
        return texts[0] if isinstance(prompt, str) else texts

    def chat(
        self, messages: str | list[dict], sampling: SamplingConfig | None = None, *, tools: list[dict] | None = None, **settings: Any
    ) -> str:
        """The assistant's answer to a conversation, or to one question. Raises DataError when there is no chat template."""
        ids = self._conversation(messages, tools)
        return generate(self.model, self.tokenizer, [ids], _settings(sampling, settings), packed=self._laid_out())[0].text

    def stream(
        self, prompt: str | list[dict], sampling: SamplingConfig | None = None, *, tools: list[dict] | None = None, **settings: Any
    ) -> Iterator[str]:
        """The answer piece by piece as it is written; joined, it is what ``generate`` (a text) or ``chat`` (messages) gives."""
        chosen = _settings(sampling, settings)
        ids = prompt_ids(self.tokenizer, prompt) if isinstance(prompt, str) else self._conversation(prompt, tools)
        engine = Engine(self.model, self.tokenizer, slots=1, maximum_length=len(ids) + chosen.maximum_tokens, packed=self._laid_out())
        pieces: list[str] = []

        def collect(request: Request, piece: str) -> None:
            pieces.append(piece)

        request = engine.submit(ids, chosen, collect)
        while not request.finished:
            engine.step()
            if text := "".join(pieces):
                yield text
            pieces.clear()

    def _laid_out(self) -> PackedDecoder | None:
        """The model's weights as panels, made when it first writes, and anew when they have changed."""
        if self._packed is None or not self._packed.fresh:
            self._packed = None  # given back before more is taken
            self._packed = PackedDecoder(self.model) if self._packs and PackedDecoder.suits(self.model) else None
        return self._packed

    def _conversation(self, messages: str | list[dict], tools: list[dict] | None) -> list[int]:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.tokenizer.encode_chat(messages, add_generation_prompt=True, tools=tools)


def _settings(sampling: SamplingConfig | None, changes: dict[str, Any]) -> SamplingConfig:
    sampling = sampling or SamplingConfig()
    return sampling.updated(**changes) if changes else sampling
