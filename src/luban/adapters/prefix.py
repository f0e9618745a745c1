"""Prefix tuning (Li & Liang 2021, arXiv:2101.00190): learned keys and values that every attention layer finds before the text.

They are a cache that the text continues (``models/given.py``), in training as in generation, so positions go on behind them. As in peft: of an
encoder–decoder the decoder's attention to itself has them; there peft lets a layer and the one half the depth above share a pair where the depth is even, which is kept,
for otherwise no file of peft's could hold what was learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luban.adapters.before import Before, BeforeText, Made, Table, Wearing, tokens_of
from luban.adapters.config import AdapterConfig, PrefixConfig
from luban.foundation.errors import ConfigError, DataError
from luban.models.base import Model
from luban.models.bert import Bert
from luban.models.classic import text_positions
from luban.models.decoder import Decoder
from luban.models.encoder_decoder import EncoderDecoder
from luban.models.given import GivenKeys
from luban.models.gpt2 import GPT2


class Prefixed(Wearing):
    """Before a model's class: every layer of attention finds learned keys and values before each document."""

    def forward(self, tokens: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None, cache: Any = None, **context: Any) -> Tensor:
        """As the model's own; a cache of generation holds the prefix already."""
        if cache is not None:
            return super().forward(tokens, positions=positions, segments=segments, cache=cache, **context)
        if positions is None or self.shape.kind == "encoder_decoder":
            positions = text_positions(tokens, segments, tokens.shape[1])
        places = positions + self.tokens_before  # [rows or 1, seq]
        self._check_length(places)
        return super().forward(tokens, positions=places, segments=segments, cache=GivenKeys(self.prefix_pairs(), places), **context)

    def prefix_pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, [heads, prefix, head_dim]."""
        layers, heads, width = attention_of(self)
        table = self.before_text().view(self.tokens_before, 2 * layers, heads, width).permute(1, 2, 0, 3)  # [2 * layers, heads, prefix, head_dim]
        twice = 2 if self.shape.kind == "encoder_decoder" else 1
        return [(table[first], table[first + 1]) for first in (2 * twice * layer % (2 * layers) for layer in range(layers))]

    def _check_length(self, places: Tensor) -> None:
        """DataError where a text and the prefix are longer than a table of learned positions."""
        limit = self.shape.maximum_positions
        if isinstance(self, (Bert, GPT2)) and places.shape[1] + self.tokens_before > limit and (longest := int(places.max()) + 1) > limit:
            raise DataError(
                "a text of {count} tokens and a prefix of {tokens} are longer than the {limit} positions of the model", "it has learned no positions beyond",
                "cut the text, or choose a shorter prefix", count=longest - self.tokens_before, tokens=self.tokens_before, limit=limit,
            )  # fmt: skip

    @torch.no_grad()
    def begin(self, cache: Any) -> None:
        """Write the prefix into a new cache, before every text."""
        rows = cache.rows(0, cache.slots)
        for layer, pair in enumerate(self.prefix_pairs()):
            rows.update(layer, *(part.detach().expand(cache.slots, -1, -1, -1) for part in pair))
        cache.begin_with(self.tokens_before)


class Prefix(BeforeText):
    """Keys and values, learned themselves or (``projection``) through a network that is not needed afterwards."""

    peft_type = "PREFIX_TUNING"
    config: PrefixConfig

    def as_saved(self) -> Prefix:
        return Prefix(self.config.updated(projection=False), self.name)

    def wearing(self, model: Model) -> type:
        return Prefixed

    def make(self, model: Model) -> Before:
        if not isinstance(model, (Decoder, GPT2, Bert, EncoderDecoder)):
            raise ConfigError(
                "adapter: {architecture} has no prefix", "a prefix is keys and values of attention, which Luban has in its own transformers alone",
                "choose the method prompt, p_tuning or lora", architecture=model.shape.architecture,
            )  # fmt: skip
        if isinstance(model, EncoderDecoder) and not model.has_decoder():
            raise ConfigError("adapter: with this head {architecture} has no prefix", "it stands in the decoder, and the head reads the encoder", "choose the method prompt, p_tuning or lora", architecture=model.shape.architecture)
        config, (layers, heads, head_dim) = self.config, attention_of(model)
        width = heads * head_dim
        if not config.projection:
            return Table(config.tokens, 2 * layers * width)
        middle = model.shape.hidden_size if config.projection_width == "auto" else config.projection_width
        return Made(config.tokens, width, nn.Sequential(nn.Linear(width, middle), nn.Tanh(), nn.Linear(middle, 2 * layers * width)))

    def settings(self, model: Model) -> dict[str, Any]:
        layers, heads, head_dim = attention_of(model)
        return {
            **self.counts(model), "num_layers": layers, "num_attention_heads": heads, "token_dim": heads * head_dim, "prefix_projection": False,
            "encoder_hidden_size": model.shape.hidden_size, "num_transformer_submodules": 2 if model.shape.kind == "encoder_decoder" else 1,
        }  # fmt: skip

    @classmethod
    def from_settings(cls, plain: Mapping[str, Any]) -> AdapterConfig:
        return PrefixConfig(tokens=tokens_of(plain))


def attention_of(model: Model) -> tuple[int, int, int]:
    """Layers, heads of keys and values, and width of a head, of the attention that has the prefix."""
    shape = model.shape
    if shape.kind == "encoder_decoder":
        heads = getattr(shape, "decoder_heads", None) or shape.heads
        return shape.decoder_layers, heads, getattr(shape, "head_dim", None) or shape.hidden_size // heads
    heads = getattr(shape, "key_value_heads", None) or shape.heads
    return shape.layers, heads, getattr(shape, "head_dim", None) or shape.hidden_size // shape.heads
