"""The shape of BART (arXiv:1910.13461), mBART (arXiv:2001.08210), and Marian's Transformer ("Attention is all you need", arXiv:1706.03762)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import PositiveInt, model_validator

from luban.foundation.config import Auto, field
from luban.foundation.errors import DataError
from luban.models.classic_shape import Activation, read_activation
from luban.models.encoder_decoder_shape import (
    EncoderDecoderShapeConfig,
    Share,
    counted,
    flops_per_token,
    ids_from_json,
    ids_to_json,
    key_value_bytes,
    layer_matrices,
)
from luban.models.shape_base import named_values

__all__ = ["BartShapeConfig", "activation_elements", "classes", "flops_per_token", "from_json", "key_value_bytes", "parameters", "to_json"]

Architecture = Literal["bart", "mbart", "marian"]
OFFSET = 2  # BART's table of positions has two rows more than positions, and starts behind them


class BartShapeConfig(EncoderDecoderShapeConfig):
    """The shape of an encoder–decoder with LayerNorm, biases and positions that are added to the embedding.

    bart has learned positions and a norm of the embedding; mbart in addition the norms before each part and at the end;
    marian the sinusoids of the original Transformer and no norm of the embedding.
    """

    foreign: ClassVar[dict[str, str]] = {
        **EncoderDecoderShapeConfig.foreign,
        "activation_function": "activation",
        "encoder_attention_heads": "heads",
        "decoder_attention_heads": "decoder_heads",
        "encoder_ffn_dim": "feed_forward_size",
        "decoder_ffn_dim": "decoder_feed_forward_size",
        "scale_embedding": "scaled_embedding",
        "init_std": "initializer_deviation",
    }

    architecture: Architecture = field("bart", "bart, mbart or marian (the original Transformer).")
    decoder_heads: PositiveInt | Auto = field("auto", "Number of attention heads of the decoder; auto: as many as the encoder.")
    decoder_feed_forward_size: PositiveInt | Auto = field("auto", "Width inside the decoder's feed-forward layers; auto: as the encoder's.")
    activation: Activation = field("gelu", "Activation of the feed-forward layers: gelu (bart), relu (Transformer), silu.")
    scaled_embedding: bool = field(False, "Multiply embeddings by the root of hidden_size.")
    tied_embeddings: Literal[True] = field(True, "The embedding serves source, target and output.")
    attention_dropout: Share = field(0.0, "Share of attention weights set to zero in training.")
    activation_dropout: Share = field(0.0, "Share of numbers inside the feed-forward layers set to zero in training.")

    @model_validator(mode="after")
    def _consistent(self) -> BartShapeConfig:
        if self.architecture == "marian" and self.hidden_size != "auto" and self.hidden_size % 2:
            raise ValueError(f"hidden_size {self.hidden_size} is odd; sinusoids come in pairs")
        return self

    def _derive_widths(self, values: dict[str, Any]) -> None:
        if self.heads == "auto":
            if self.hidden_size % 64:
                raise ValueError(f"hidden_size {self.hidden_size} is no multiple of 64; give heads")
            values["heads"] = self.hidden_size // 64
        if self.decoder_heads == "auto":
            values["decoder_heads"] = self.heads
        for name in ("heads", "decoder_heads"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {name} {getattr(self, name)}")
        if self.feed_forward_size == "auto":
            values["feed_forward_size"] = 4 * self.hidden_size
        if self.decoder_feed_forward_size == "auto":
            values["decoder_feed_forward_size"] = self.feed_forward_size

    @property
    def attention_sizes(self) -> tuple[int, int]:
        return self.hidden_size, self.hidden_size

    @property
    def inner_sizes(self) -> tuple[int, int]:
        return self.feed_forward_size, self.decoder_feed_forward_size

    @property
    def learned_positions(self) -> bool:
        """Whether positions are a table of parameters rather than sinusoids."""
        return self.architecture != "marian"

    @property
    def embedding_norm(self) -> bool:
        """Whether embeddings are normalised before the first layer."""
        return self.architecture != "marian"

    @property
    def norm_first(self) -> bool:
        """Whether norms stand before each part of a layer, with one more at the end, rather than after each part."""
        return self.architecture == "mbart"


# Our field, transformers' key, and what transformers takes when the key is missing (None: it must be there).
KEYS = (
    ("vocabulary_size", "vocab_size", None),
    ("hidden_size", "d_model", None),
    ("layers", "encoder_layers", None),
    ("decoder_layers", "decoder_layers", None),
    ("heads", "encoder_attention_heads", None),
    ("decoder_heads", "decoder_attention_heads", None),
    ("feed_forward_size", "encoder_ffn_dim", None),
    ("decoder_feed_forward_size", "decoder_ffn_dim", None),
    ("maximum_positions", "max_position_embeddings", 1024),
    ("scaled_embedding", "scale_embedding", False),
    ("dropout", "dropout", 0.1),
    ("attention_dropout", "attention_dropout", 0.0),
    ("activation_dropout", "activation_dropout", 0.0),
    ("classifier_dropout", "classifier_dropout", 0.0),
    ("initializer_deviation", "init_std", 0.02),
)


def classes(architecture: str) -> dict[str, str]:
    """transformers' class for each head structure. Where it has none, the language model's is named, and Luban's own note tells the head."""
    if architecture == "marian":
        return {"": "MarianMTModel"}
    name = {"bart": "Bart", "mbart": "MBart"}[architecture]
    return {"": f"{name}ForConditionalGeneration", "sequence": f"{name}ForSequenceClassification", "span": f"{name}ForQuestionAnswering"}


def from_json(plain: dict[str, Any], file: str) -> dict[str, Any]:
    """The fields of a shape that the content of a config.json says."""
    name = plain["model_type"]
    defaults = {"bart": (2, 2, 2), "mbart": (0, 2, 2), "marian": (58100, 0, 0)}[name]
    values = named_values(plain, KEYS, file)
    values |= ids_from_json(plain, file, start=defaults[0], end=defaults[1], forced_end=defaults[2])
    if (
        plain.get("tie_word_embeddings", True) is False
        or plain.get("share_encoder_decoder_embeddings", True) is False
        or plain.get("decoder_vocab_size") not in (None, plain["vocab_size"])
    ):
        raise DataError("{file}: encoder, decoder and output have embeddings of their own", "Luban's BART and Marian share one", "", file=file)
    return values | {"activation": read_activation(plain, "activation_function", "gelu", file)}


def to_json(shape: BartShapeConfig) -> dict[str, Any]:
    """A shape's part of config.json."""
    plain: dict[str, Any] = {theirs: getattr(shape, ours) for ours, theirs, _ in KEYS}
    plain |= ids_to_json(shape) | {
        "num_hidden_layers": shape.layers,
        "activation_function": shape.activation,
        "tie_word_embeddings": True,
    }
    if shape.architecture == "marian":
        plain |= {"decoder_vocab_size": shape.vocabulary_size, "share_encoder_decoder_embeddings": True, "static_position_embeddings": True}
    return plain


def parameters(shape: BartShapeConfig) -> dict[str, int]:
    """Number of parameters by part, and ``total``; see luban.models.counts. ``output`` is the fixed bias of the logits."""
    width, (inner, decoder_inner) = shape.hidden_size, shape.inner_sizes
    encoder, decoder = layer_matrices(shape)
    attention = 4 * width * width
    norms = 2 * shape.layers + 3 * shape.decoder_layers + 2 * shape.embedding_norm + 2 * shape.norm_first
    return counted(shape, {
        "embedding": shape.vocabulary_size * width,
        "positions": 2 * (shape.maximum_positions + OFFSET) * width * shape.learned_positions,
        "attention": (shape.layers + 2 * shape.decoder_layers) * (attention + 4 * width),
        "feed_forward": shape.layers * (encoder - attention + inner + width) + shape.decoder_layers * (decoder - 2 * attention + decoder_inner + width),
        "norms": norms * 2 * width,
        "output": shape.vocabulary_size,
    })  # fmt: skip


def activation_elements(shape: BartShapeConfig, recompute: bool = False) -> float:
    """Numbers kept for the backward pass for each pair of a source and a target token, without dropout and the loss.

    With D the stream and F the inner width: a norm keeps 2 D (its input and what it puts out), an attention 4 D (queries, keys, values,
    its output), a feed-forward layer 2 F (relu: F).
    """
    width, (inner, decoder_inner) = shape.hidden_size, shape.inner_sizes
    sides = 1 if shape.activation == "relu" else 2
    encoder, decoder = 8 * width + sides * inner, 14 * width + sides * decoder_inner
    ends = (3 * shape.embedding_norm + 2 * shape.norm_first) * width
    if recompute:
        return (shape.layers + shape.decoder_layers) * width + max(encoder, decoder) + ends
    return shape.layers * encoder + shape.decoder_layers * decoder + ends
