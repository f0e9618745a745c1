"""The shape of T5 (arXiv:1910.10683), T5 v1.1, FLAN-T5 and mT5: what config.json says, under the field's standard names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from luban.foundation.config import Auto, field
from luban.foundation.errors import DataError
from luban.models.encoder_decoder_shape import (
    EncoderDecoderShapeConfig,
    counted,
    flops_per_token,
    ids_from_json,
    ids_to_json,
    key_value_bytes,
    layer_matrices,
)
from luban.models.shape_base import Initializer, named_values

__all__ = ["T5ShapeConfig", "activation_elements", "classes", "flops_per_token", "from_json", "key_value_bytes", "parameters", "to_json"]

Architecture = Literal["t5", "mt5"]
FeedForward = Literal["relu", "gated-gelu", "gelu", "silu", "gated-silu", "gated-relu"]
FEED_FORWARDS = ("relu", "gated-gelu", "gelu", "silu", "gated-silu", "gated-relu")


class T5ShapeConfig(EncoderDecoderShapeConfig):
    """The shape of an encoder–decoder with relative positions, no biases and RMSNorm before each part."""

    foreign: ClassVar[dict[str, str]] = {
        **EncoderDecoderShapeConfig.foreign,
        "d_kv": "head_dim",
        "feed_forward_proj": "feed_forward",
        "relative_attention_num_buckets": "relative_buckets",
        "relative_attention_max_distance": "relative_distance",
    }

    architecture: Architecture = field("t5", "t5 (also v1.1 and FLAN-T5) or mt5.")
    head_dim: PositiveInt | Auto = field("auto", "Width of one head; auto: hidden_size / heads.")
    feed_forward: FeedForward = field("relu", "Activation of the feed-forward layers, and whether it is gated: relu (t5), gated-gelu (v1.1, flan, mt5).")
    relative_buckets: PositiveInt = field(32, "Number of buckets that distances between tokens fall into, even and at least 4.")
    relative_distance: PositiveInt = field(128, "Distance from which all fall into the last bucket.", unit="tokens")
    norm_epsilon: PositiveFloat = field(1e-6, "Added to the mean square in RMSNorm.")
    tied_embeddings: bool = field(True, "Use the embedding also as the output matrix (t5); v1.1, flan and mt5 have one of its own.")
    scaled_output: bool | Auto = field("auto", "Divide the last states by the root of hidden_size before the output; auto: t5 with tied_embeddings does.")
    initializer: Literal["t5"] | Initializer = field(
        "t5", "First values of the matrices: t5 draws them as the paper's code did, from each matrix's sizes; the others are those of every family."
    )
    initializer_factor: PositiveFloat = field(1.0, "Multiplies the first values that the initializer t5 draws.")

    @model_validator(mode="after")
    def _consistent(self) -> T5ShapeConfig:
        if self.scaled_output == "auto":
            self.__dict__["scaled_output"] = self.tied_embeddings and self.architecture == "t5"
        if self.scaled_output and not (self.tied_embeddings and self.architecture == "t5"):
            raise ValueError("scaled_output belongs to t5 with tied_embeddings")
        if self.relative_buckets < 4 or self.relative_buckets % 2:
            raise ValueError(f"relative_buckets {self.relative_buckets} is not even, or below 4")
        if self.relative_distance <= self.relative_buckets // 2:
            raise ValueError(f"relative_distance {self.relative_distance} is not above half of relative_buckets {self.relative_buckets}")
        return self

    def _derive_widths(self, values: dict[str, Any]) -> None:
        self._derive_heads(values)
        if self.feed_forward_size == "auto":
            values["feed_forward_size"] = -(-8 * self.hidden_size // (3 * 64)) * 64 if self.gated else 4 * self.hidden_size

    @property
    def attention_sizes(self) -> tuple[int, int]:
        return self.heads * self.head_dim, self.heads * self.head_dim

    @property
    def gated(self) -> bool:
        return self.feed_forward.startswith("gated-")

    @property
    def activation(self) -> str:
        """The activation itself; "gelu_new" is the approximation by tanh, which v1.1 has behind its gate."""
        return "gelu_new" if self.feed_forward == "gated-gelu" else self.feed_forward.removeprefix("gated-")


# Our field, transformers' key, and what transformers takes when the key is missing (None: it must be there).
KEYS = (
    ("vocabulary_size", "vocab_size", None),
    ("hidden_size", "d_model", None),
    ("layers", "num_layers", None),
    ("heads", "num_heads", None),
    ("head_dim", "d_kv", 64),
    ("feed_forward_size", "d_ff", None),
    ("relative_buckets", "relative_attention_num_buckets", 32),
    ("relative_distance", "relative_attention_max_distance", 128),
    ("norm_epsilon", "layer_norm_epsilon", 1e-6),
    ("dropout", "dropout_rate", 0.1),
    ("classifier_dropout", "classifier_dropout", 0.0),
    ("initializer_factor", "initializer_factor", 1.0),
    ("maximum_positions", "n_positions", 512),
)


def classes(architecture: str) -> dict[str, str]:
    """transformers' class for each head structure."""
    name = architecture.replace("t5", "T5").replace("m", "M")
    return {
        "": f"{name}ForConditionalGeneration",
        "sequence": f"{name}ForSequenceClassification",
        "token": f"{name}ForTokenClassification",
        "span": f"{name}ForQuestionAnswering",
        "vector": f"{name}EncoderModel",
    }


def from_json(plain: dict[str, Any], file: str) -> dict[str, Any]:
    """The fields of a shape that the content of a config.json says."""
    name = plain["model_type"]
    values = named_values(plain, KEYS, file) | ids_from_json(plain, file, start=0, end=1, forced_end=None)
    values["decoder_layers"] = plain.get("num_decoder_layers") or "auto"
    values["feed_forward"] = plain.get("feed_forward_proj", "relu" if name == "t5" else "gated-gelu")
    if values["feed_forward"] not in FEED_FORWARDS:
        raise DataError(
            "{file}: feed_forward_proj {name!r} is not known", "Luban's T5 has: {known}", "",
            file=file, name=values["feed_forward"], known=", ".join(FEED_FORWARDS),
        )  # fmt: skip
    tied = plain.get("tie_word_embeddings", True) is not False
    scaled = name == "t5" and tied and plain.get("scale_decoder_outputs", True) is not False
    # transformers 5 writes tie_word_embeddings for v1.1 and mt5 too, whose output matrix is another: the weights know.
    return values | {"tied_embeddings": tied and (scaled or not _holds(Path(file).parent, "lm_head.weight")), "scaled_output": scaled}


def _holds(folder: Path, name: str) -> bool:
    """Whether the weights of a directory have a tensor of that name; what cannot be read is the loader's to tell."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    try:
        if single.is_file():
            with single.open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                return name in json.loads(stream.read(size if size < 1 << 28 else 0))
        return index.is_file() and name in json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def to_json(shape: T5ShapeConfig) -> dict[str, Any]:
    """A shape's part of config.json."""
    plain: dict[str, Any] = {theirs: getattr(shape, ours) for ours, theirs, _ in KEYS}
    return plain | ids_to_json(shape) | {
        "num_decoder_layers": shape.decoder_layers,
        "feed_forward_proj": shape.feed_forward,
        "is_gated_act": shape.gated,
        "dense_act_fn": shape.activation,
        "scale_decoder_outputs": shape.scaled_output,
        "tie_word_embeddings": shape.tied_embeddings,
    }  # fmt: skip


def parameters(shape: T5ShapeConfig) -> dict[str, int]:
    """Number of parameters by part, and ``total``; see luban.models.counts."""
    encoder, decoder = layer_matrices(shape)
    attention = 4 * shape.hidden_size * shape.attention_sizes[0]
    return counted(shape, {
        "embedding": shape.vocabulary_size * shape.hidden_size,
        "positions": 2 * shape.relative_buckets * shape.heads,
        "attention": (shape.layers + 2 * shape.decoder_layers) * attention,
        "feed_forward": shape.layers * (encoder - attention) + shape.decoder_layers * (decoder - 2 * attention),
        "norms": (2 * shape.layers + 3 * shape.decoder_layers + 2) * shape.hidden_size,
        "output": 0 if shape.tied_embeddings else shape.vocabulary_size * shape.hidden_size,
    })  # fmt: skip


def activation_elements(shape: T5ShapeConfig, recompute: bool = False) -> float:
    """Numbers kept for the backward pass for each pair of a source and a target token, without dropout and the loss.

    With D the stream, H all heads and F the inner width: a norm keeps 3 D, an attention 4 H (queries, keys, values, its output), a
    feed-forward layer 2 F, gated 4 F, with relu one F less. Not counted is what grows with the square of the length: where no fused
    kernel takes trained biases of positions (on processors), attention keeps its weights, heads times length for each token and layer.
    """
    width, (heads, _) = shape.hidden_size, shape.attention_sizes
    inner = ((4 if shape.gated else 2) - (shape.activation == "relu")) * shape.feed_forward_size
    encoder, decoder = 6 * width + 4 * heads + inner, 9 * width + 8 * heads + inner
    if recompute:
        return (shape.layers + shape.decoder_layers) * width + max(encoder, decoder) + 5 * width
    return shape.layers * encoder + shape.decoder_layers * decoder + 5 * width
