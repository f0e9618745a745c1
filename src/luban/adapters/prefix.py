"""Prefix tuning (Li & Liang 2021, arXiv:2101.00190): learned keys and values that every attention layer finds before the text.

They are a cache that the text continues (``models/given.py``), in training as in generation, so positions go on behind them. As in peft: of an
encoder–decoder the decoder's attention to itself has them; there peft lets a layer and the one half the depth above share a pair where the depth is even, which is kept,
for otherwise no file of peft's could hold what was learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from luban.adapters.before import Before, BeforeText, Learned, Made, Table, tokens_of
from luban.adapters.config import AdapterConfig, PrefixConfig
from luban.foundation.errors import ConfigError, DataError
from luban.models.base import Model
from luban.models.bert import Bert
from luban.models.classic import text_positions
from luban.models.decoder import Decoder
from luban.models.encoder_decoder import EncoderDecoder
from luban.models.given import GivenKeys
from luban.models.gpt2 import GPT2


class Prefixed(Before):
    """Every layer of attention finds learned keys and values before each document."""

    def forward(
        self, beneath: Callable[..., Tensor], model: Model, tokens: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None, cache: Any = None,
        **context: Any,
    ) -> Tensor:  # fmt: skip
        """As the model's own; a cache of generation holds the prefix already."""
        if cache is not None:
            return beneath(tokens, positions=positions, segments=segments, cache=cache, **context)
        if positions is None or model.shape.kind == "encoder_decoder":
            positions = text_positions(tokens, segments, tokens.shape[1])
        places = positions + self.tokens  # [rows or 1, seq]
        self._check_length(model, places)
        return beneath(tokens, positions=places, segments=segments, cache=GivenKeys(self.pairs(model), places), **context)

    def pairs(self, model: Model) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, [heads, prefix, head_dim]."""
        layers, heads, width = attention_of(model)
        table = self.learned().view(self.tokens, 2 * layers, heads, width).permute(1, 2, 0, 3)  # [2 * layers, heads, prefix, head_dim]
        twice = 2 if model.shape.kind == "encoder_decoder" else 1
        return [(table[first], table[first + 1]) for first in (2 * twice * layer % (2 * layers) for layer in range(layers))]

    def _check_length(self, model: Model, places: Tensor) -> None:
        """DataError where a text and the prefix are longer than a table of learned positions."""
        limit = model.shape.maximum_positions
        if isinstance(model, (Bert, GPT2)) and places.shape[1] + self.tokens > limit and (longest := int(places.max()) + 1) > limit:
            raise DataError(
                "a text of {count} tokens and a prefix of {tokens} are longer than the {limit} positions of the model", "it has learned no positions beyond",
                "cut the text, or choose a shorter prefix", count=longest - self.tokens, tokens=self.tokens, limit=limit,
            )  # fmt: skip

    def begin(self, beneath: Callable[..., Tensor], model: Model, cache: Any) -> None:
        """The keys and values themselves."""
        rows = cache.rows(0, 1)
        for layer, pair in enumerate(self.pairs(model)):
            rows.update(layer, *(part[None] for part in pair))
        cache.advance(0, self.tokens)


class Prefix(BeforeText):
    """Keys and values, learned themselves or (``projection``) through a network that is not needed afterwards."""

    peft_type = "PREFIX_TUNING"
    config: PrefixConfig

    def as_saved(self) -> Prefix:
        return Prefix(self.config.updated(projection=False), self.name)

    def kind(self, model: Model) -> type[Before]:
        return Prefixed

    def make(self, model: Model) -> Learned:
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
