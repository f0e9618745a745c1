"""Prompt tuning and P-tuning: learned vectors before the text. Papers are named in config.py.

The vectors are tokens with ids below zero: before each document of a row they are put in as ids, the embedding gives the vectors for them, and of
what the model says only the text's places come back. So documents that are packed into a row each have the prompt to themselves, positions follow it as
they would follow words, and caches begin with what the model keeps of it, which is computed once for all texts.

As in peft: an encoder–decoder has the prompt before its source; in an encoder a head that reads the first place reads the first vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.adapters.adapted import adapt
from luban.adapters.before import Before, BeforeText, Learned, Made, Table, Wide, tokens_of
from luban.adapters.config import AdapterConfig, PromptConfig, PTuningConfig
from luban.foundation.errors import ConfigError, DataError
from luban.models.base import Model
from luban.models.bert import Bert
from luban.models.gpt2 import GPT2


class Prompted(Before):
    """Of a decoder or an encoder: each document begins with the prompt."""

    def forward(
        self, beneath: Callable[..., Tensor], model: Model, tokens: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None, cache: Any = None,
        **context: Any,
    ) -> Tensor:  # fmt: skip
        """As the model's own; with ``cache`` the text goes on after the prompt, which the cache holds already."""
        if cache is not None:
            return beneath(tokens, positions=positions, cache=cache, **context)
        count = self.tokens
        wide = Wide.of(tokens, segments, count)
        more = torch.arange(count, device=tokens.device)
        self._check_length(model, wide, segments)
        named = {"segments": wide.segments, "positions": None if positions is None else wide.spread(positions + count, more)}
        named |= {name: wide.spread(value, 0) for name, value in context.items() if value is not None}
        hidden = beneath(wide.tokens, **{name: value for name, value in named.items() if value is not None})
        text = wide.text(hidden)
        return torch.cat([hidden[:, :1], text[:, 1:]], dim=1) if model.shape.kind == "encoder" and _reads_first(model) else text

    def _check_length(self, model: Model, wide: Wide, segments: Tensor | None) -> None:
        """DataError where a text and the prompt are longer than a table of learned positions."""
        limit = model.shape.maximum_positions
        if not isinstance(model, (Bert, GPT2)) or wide.tokens.shape[1] <= limit:
            return
        if segments is not None:
            runs = (torch.bincount(row[row >= 0]).max() for row in segments.long() if bool((row >= 0).any()))
            longest = int(max(runs, default=0))
        else:
            longest = wide.places.shape[1]
        if longest + self.tokens > limit:
            raise DataError(
                "a text of {count} tokens and a prompt of {tokens} are longer than the {limit} positions of the model", "it has learned no positions beyond",
                "cut the text, or choose a shorter prompt", count=longest, tokens=self.tokens, limit=limit,
            )  # fmt: skip

    def begin(self, beneath: Callable[..., Tensor], model: Model, cache: Any) -> None:
        """The prompt read as a text is."""
        ids = -1 - torch.arange(self.tokens, device=model.device)[None]
        beneath(ids, cache=cache.rows(0, 1, [self.tokens]))
        cache.advance(0, self.tokens)


class PromptedSource(Before):
    """Of an encoder–decoder: each document of the source begins with the prompt."""

    def forward(
        self, beneath: Callable[..., Tensor], model: Model, tokens: Tensor, *, source: Tensor | None = None, source_segments: Tensor | None = None,
        memory: Tensor | None = None, segments: Tensor | None = None, **context: Any,
    ) -> Tensor:  # fmt: skip
        """As the model's own; ``memory`` is what :meth:`encode` made, the prompt's places in it, ``source_segments`` are the source's without."""
        if source is not None:
            memory = model.encode(source, source_segments)
        if memory is None:  # one text for a task head, which may read the encoder's states
            hidden = beneath(tokens, segments=segments, **context)
            return hidden if hidden.shape[1] == tokens.shape[1] else Wide.of(tokens, segments, self.tokens).text(hidden)
        if source_segments is not None and source_segments.shape[1] != memory.shape[1]:
            source_segments = Wide.of(source_segments, source_segments, self.tokens).segments
        return beneath(tokens, memory=memory, source_segments=source_segments, segments=segments, **context)

    def encode(self, beneath: Callable[..., Tensor], model: Model, source: Tensor, source_segments: Tensor | None) -> Tensor:
        """The encoder's states [rows, width, dim] of source [rows, source_seq] and the prompt before each of its documents."""
        wide = Wide.of(source, source_segments, self.tokens)
        return beneath(wide.tokens, wide.segments)

    def begin(self, beneath: Callable[..., Tensor], model: Model, cache: Any) -> None:
        """Nothing: the prompt is no part of what is written."""


class Reading(nn.Module):
    """On a token embedding: ids below zero are the prompt's. ``scale`` is what the model multiplies embeddings with."""

    def __init__(self, prompt: Before, scale: float):
        super().__init__()
        self.prompt = (prompt, scale)  # in a tuple, so that it is no part of the embedding

    def forward(self, beneath: Callable[..., Tensor], embedding: nn.Module, tokens: Tensor) -> Tensor:
        """[…, dim] of tokens […]."""
        made, (prompt, scale) = beneath(tokens.clamp(min=0)), self.prompt
        vectors = F.embedding((-1 - tokens).clamp(min=0), prompt.learned().to(made.dtype) / scale)
        return torch.where((tokens < 0)[..., None], vectors, made)


class Prompt(BeforeText):
    """Prompt tuning: the vectors themselves."""

    peft_type = "PROMPT_TUNING"
    config: PromptConfig

    def __init__(self, config: AdapterConfig, name: str = "default"):
        super().__init__(config, name)
        self.first_ids: list[int] = []  # tokens whose embeddings the vectors begin with

    def read_text(self, tokenizer: Any) -> None:
        if self.config.text and not (ids := tokenizer.encode(self.config.text)):
            raise ConfigError("adapter.text: {text!r} is no token", "", "write some words, or leave it out", text=self.config.text)
        self.first_ids = ids if self.config.text else []

    def as_saved(self) -> Prompt:
        return Prompt(self.config.updated(text=""), self.name)

    def make(self, model: Model) -> Learned:
        return Table(self.config.tokens, model.embedding.embedding_dim)

    def kind(self, model: Model) -> type[Before]:
        return PromptedSource if model.shape.kind == "encoder_decoder" else Prompted

    def attach(self, model: Model, seed: int) -> None:
        super().attach(model, seed)
        self.begin_values(model, seed)
        adapt(model.embedding, self.name, Reading(model.adapters[self.name], _scale(model)))

    def begin_values(self, model: Model, seed: int) -> None:
        """Embeddings of the text's tokens, over and over, or of tokens drawn at random."""
        config = self.config
        if config.text and not self.first_ids:
            raise ConfigError("adapter.text needs the tokenizer", "the vectors begin as the embeddings of its tokens", "give attach the tokenizer")
        count, ids = config.tokens, self.first_ids
        generator = torch.Generator().manual_seed(seed)
        chosen = [ids[place % len(ids)] for place in range(count)] if ids else torch.randint(0, model.shape.vocabulary_size, (count,), generator=generator).tolist()
        with torch.no_grad():
            self.made(model).vectors.copy_(model.embedding(torch.tensor(chosen, device=model.device)) * _scale(model))

    def settings(self, model: Model) -> dict[str, Any]:
        # One set of vectors also for encoder–decoders: the second that peft would make is read by nothing.
        return {**self.counts(model), "num_transformer_submodules": 1, "prompt_tuning_init": "RANDOM"}

    @classmethod
    def from_settings(cls, plain: Mapping[str, Any]) -> AdapterConfig:
        return PromptConfig(tokens=tokens_of(plain))


class PTuning(Prompt):
    """P-tuning: vectors that a small network makes, which is not needed once they are learned."""

    peft_type = "P_TUNING"
    config: PTuningConfig
    learned = False  # whether the vectors are there, and the network gone

    def as_saved(self) -> PTuning:
        saved = PTuning(self.config, self.name)
        saved.learned = True
        return saved

    def read_text(self, tokenizer: Any) -> None:
        """There is none."""

    def make(self, model: Model) -> Learned:
        config, dim = self.config, model.embedding.embedding_dim
        if self.learned:
            return Table(config.tokens, dim)
        width = dim if config.width == "auto" else config.width
        return Made(config.tokens, dim, _Recurrent(dim, width, config.layers) if config.network == "lstm" else _layers(dim, width, width, dim))

    def begin_values(self, model: Model, seed: int) -> None:
        """The network's own."""

    def settings(self, model: Model) -> dict[str, Any]:
        config = self.config
        width = model.embedding.embedding_dim if config.width == "auto" else config.width
        kind = {"encoder_reparameterization_type": config.network.upper(), "encoder_hidden_size": width, "encoder_num_layers": config.layers}
        return {**self.counts(model), "num_transformer_submodules": 1, **kind}

    @classmethod
    def from_settings(cls, plain: Mapping[str, Any]) -> AdapterConfig:
        network = str(plain.get("encoder_reparameterization_type") or "MLP").lower()
        return PTuningConfig(tokens=tokens_of(plain), network=network if network in ("mlp", "lstm") else "mlp")


class _Recurrent(nn.Module):
    """An LSTM in both directions, and two layers."""

    def __init__(self, dim: int, width: int, layers: int):
        super().__init__()
        self.cells = nn.LSTM(dim, width, num_layers=layers, bidirectional=True)
        self.layers = _layers(2 * width, 2 * width, dim)

    def forward(self, starts: Tensor) -> Tensor:
        return self.layers(self.cells(starts)[0])


def _layers(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    parts: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        parts += [nn.ReLU()] if parts else []
        parts.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*parts)


def _scale(model: Model) -> float:
    """What the model multiplies its embeddings with: the vectors are filed as they are after that, as peft has them."""
    return math.sqrt(model.shape.hidden_size) if getattr(model.shape, "scaled_embedding", False) else 1.0


def _reads_first(model: Model) -> bool:
    """Whether the model's head reads the state of the first place alone."""
    head = model.head
    if head is None or head.own:
        return False
    return head.structure in ("sequence", "choice") or (head.structure == "vector" and head.settings.get("pooling") == "first")
