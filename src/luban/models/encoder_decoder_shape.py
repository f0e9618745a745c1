"""What the shapes of encoder–decoders share, and closed forms of what they cost."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from luban.foundation.config import Auto, field
from luban.foundation.errors import DataError
from luban.models.shape_base import INITIALIZER, MOST_LAYERS, BaseShapeConfig, Initializer, Kind

Share = Annotated[float, Field(ge=0, lt=1)]
Layers = Annotated[int, Field(gt=0, le=MOST_LAYERS)]
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


class EncoderDecoderShapeConfig(BaseShapeConfig):
    """An encoder that reads a source, and a decoder that writes with an eye on it."""

    kind: ClassVar[Kind] = "encoder_decoder"
    foreign: ClassVar[dict[str, str]] = {
        **BaseShapeConfig.foreign,
        "encoder_layers": "layers",
        "num_decoder_layers": "decoder_layers",
        "decoder_start_token_id": "decoder_start_id",
        "eos_token_id": "end_ids",
        "forced_bos_token_id": "forced_begin_id",
        "forced_eos_token_id": "forced_end_id",
    }

    architecture: str = field(..., "Family whose parameter names and details are used.")
    vocabulary_size: PositiveInt | Auto = field("auto", "Rows of the embedding; auto takes the tokenizer's.", unit="tokens")
    layers: Layers | Auto = field("auto", "Number of layers of the encoder; auto: the depth.")
    decoder_layers: Layers | Auto = field("auto", "Number of layers of the decoder; auto: as many as the encoder.")
    hidden_size: PositiveInt | Auto = field("auto", "Width of the residual stream; auto: 64 a layer.")
    heads: PositiveInt | Auto = field("auto", "Number of attention heads; auto: one for every 64 of hidden_size.")
    feed_forward_size: PositiveInt | Auto = field("auto", "Width inside the feed-forward layers; auto: 4 times hidden_size, gated 8/3.")
    maximum_positions: PositiveInt | Auto = field(
        "auto", "Longest sequence the model is made for; auto: as long as it is trained on.", unit="tokens"
    )
    dropout: Share = field(0.1, "Share of numbers set to zero after the embedding and each part of a layer, in training.")
    classifier_dropout: Share = field(0.0, "The same inside a task head.")
    initializer: Initializer = field("normal", INITIALIZER)
    initializer_deviation: PositiveFloat = field(0.02, "Standard deviation of the first values.")
    decoder_start_id: NonNegativeInt = field(0, "Token that the decoder's input starts with, at training and when it writes.")
    end_ids: list[NonNegativeInt] = field(doc="Tokens that end a text the decoder writes.", default_factory=list)
    forced_begin_id: NonNegativeInt | None = field(None, "Token that every written text begins with (a language, for mbart).")
    forced_end_id: NonNegativeInt | list[NonNegativeInt] | None = field(None, "Token that a text ends with when it reaches the greatest length.")

    @model_validator(mode="after")
    def _derived(self) -> EncoderDecoderShapeConfig:
        """Replace ``auto`` by the number it stands for, as far as that is known; written past the validation of assignments."""
        values = self.__dict__
        if self.decoder_layers == "auto" and self.layers != "auto":
            values["decoder_layers"] = self.layers
        if self.hidden_size != "auto":
            self._derive_widths(values)
        return self

    def _derive_widths(self, values: dict[str, Any]) -> None:
        raise NotImplementedError

    @property
    def attention_sizes(self) -> tuple[int, int]:
        """Width of all heads together, of the encoder's and of the decoder's attention."""
        raise NotImplementedError

    @property
    def inner_sizes(self) -> tuple[int, int]:
        """Width inside the feed-forward layers of encoder and decoder."""
        return self.feed_forward_size, self.feed_forward_size

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layers have a gate, a third matrix."""
        return False


def ids_from_json(plain: dict[str, Any], file: str, *, start: int, end: int, forced_end: int | None) -> dict[str, Any]:
    """Tokens that begin and end what the decoder writes; the defaults are those of the family's class in transformers."""
    ends = plain.get("eos_token_id", end)
    values = {
        "decoder_start_id": plain.get("decoder_start_token_id", start),
        "end_ids": ends if isinstance(ends, list) else [] if ends is None else [ends],
        "forced_begin_id": plain.get("forced_bos_token_id"),
        "forced_end_id": plain.get("forced_eos_token_id", forced_end),
    }
    if values["decoder_start_id"] is None:
        values["decoder_start_id"] = start
    if not isinstance(plain.get("vocab_size"), int):
        raise DataError("{file}: {key} is no whole number", "", "restore the file", file=file, key="vocab_size")
    return values


def ids_to_json(shape: EncoderDecoderShapeConfig) -> dict[str, Any]:
    """What transformers' ``generate`` looks for."""
    return {
        "is_encoder_decoder": True,
        "decoder_start_token_id": shape.decoder_start_id,
        "forced_bos_token_id": shape.forced_begin_id,
        "forced_eos_token_id": shape.forced_end_id,
    }


def layer_matrices(shape: EncoderDecoderShapeConfig) -> tuple[int, int]:
    """Numbers in the matrices of one layer: of the encoder, and of the decoder with its cross attention."""
    (attention, decoder_attention), (inner, decoder_inner) = shape.attention_sizes, shape.inner_sizes
    parts = 3 if shape.gated else 2
    return shape.hidden_size * (4 * attention + parts * inner), shape.hidden_size * (8 * decoder_attention + parts * decoder_inner)


def counted(shape: EncoderDecoderShapeConfig, counts: dict[str, int]) -> dict[str, int]:
    """Counts by part with their ``total``, and the ``matrices`` that a pair of a source and a target token is multiplied with."""
    encoder, decoder = layer_matrices(shape)
    counts["total"] = sum(counts.values())
    counts["matrices"] = shape.layers * encoder + shape.decoder_layers * decoder + shape.vocabulary_size * shape.hidden_size
    return counts


def flops_per_token(
    shape: EncoderDecoderShapeConfig, sequence_length: int, *, causal: bool = False, backward: bool = True, source_length: int | None = None
) -> float:
    """Floating-point operations for each token of a target of ``sequence_length``, its share of reading the source included.

    The source is ``source_length`` long (as the target, where not given). A multiply-add is two operations, the backward pass twice the
    forward; keys and values of the cross attention are made once a source token. ``causal`` counts what the mask discards no more.
    """
    source = sequence_length if source_length is None else source_length
    share = source / sequence_length
    encoder, decoder = layer_matrices(shape)
    attention, decoder_attention = shape.attention_sizes
    crossing = 2 * shape.hidden_size * decoder_attention  # keys and values of the source
    seen = (sequence_length + 1) / 2 if causal else sequence_length
    forward = 2.0 * shape.vocabulary_size * shape.hidden_size
    forward += shape.layers * share * (2.0 * encoder + 4.0 * attention * source)
    forward += shape.decoder_layers * (2.0 * (decoder - crossing) + 2.0 * share * crossing + 4.0 * decoder_attention * (seen + source))
    return forward * (3 if backward else 1)


def key_value_bytes(shape: EncoderDecoderShapeConfig, tokens: int, dtype: str = "float32") -> int:
    """Bytes of the decoder's own keys and values for ``tokens`` written tokens; those of a source of as many tokens take the same again."""
    return 2 * shape.decoder_layers * shape.attention_sizes[1] * tokens * BYTES[dtype]
