"""The shape of GPT-2 (Radford et al. 2019), and what its config.json says."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from luban.foundation.config import Auto, field
from luban.foundation.errors import DataError
from luban.models.classic_shape import Activation, ClassicShapeConfig, Probability, activation_elements, derive_widths, read_activation
from luban.models.shape_base import INITIALIZER, MOST_LAYERS, BaseShapeConfig, Initializer, named_values

__all__ = ["GPT2ShapeConfig", "activation_elements", "classes", "from_json", "parameters", "to_json"]
NAMES = {"": "GPT2LMHeadModel", "sequence": "GPT2ForSequenceClassification", "token": "GPT2ForTokenClassification", "span": "GPT2ForQuestionAnswering", "vector": "GPT2Model"}


class GPT2ShapeConfig(ClassicShapeConfig):
    """The shape of a decoder of the GPT-2 kind: learned positions, LayerNorm before each part, biases everywhere."""

    kind: ClassVar[Literal["decoder"]] = "decoder"
    foreign: ClassVar[dict[str, str]] = {
        **BaseShapeConfig.foreign,
        "n_ctx": "maximum_positions",
        "activation_function": "activation",
        "resid_pdrop": "dropout",
        "embd_pdrop": "embedding_dropout",
        "attn_pdrop": "attention_dropout",
    }

    architecture: Literal["gpt2"] = field("gpt2", "Family whose parameter names and details are used: gpt2.")
    vocabulary_size: PositiveInt | Auto = field("auto", "Rows of the embedding; auto takes the tokenizer's.", unit="tokens")
    layers: Annotated[int, Field(gt=0, le=MOST_LAYERS)] | Auto = field("auto", "Number of layers; auto: the depth.")
    hidden_size: PositiveInt | Auto = field("auto", "Width of the residual stream; auto: 64 a layer.")
    heads: PositiveInt | Auto = field("auto", "Number of attention heads; auto: one for every 64 of hidden_size.")
    feed_forward_size: PositiveInt | Auto = field("auto", "Width inside the feed-forward part; auto: 4 hidden_size.")
    maximum_positions: PositiveInt | Auto = field(
        "auto", "Longest sequence the model is made for; auto: as long as it is trained on.", unit="tokens"
    )
    activation: Activation = field("gelu_new", "Between the two matrices of the feed-forward part: gelu, gelu_new (by tanh), relu, silu or tanh.")
    norm_epsilon: PositiveFloat = field(1e-5, "Added to the variance in LayerNorm.")
    dropout: Probability = field(0.1, "Share of numbers set to zero in training, after attention and after the feed-forward part.")
    embedding_dropout: Probability = field(0.1, "Share of numbers set to zero in training, after the embedding.")
    attention_dropout: Probability = field(0.1, "Share of attention weights set to zero in training.")
    classifier_dropout: Probability | None = field(None, "Share of numbers set to zero in training, before a head for each token; none: 0.1.")
    scale_by_layer: bool = field(False, "Divide the attention scores also by the layer's number, from 1 (Mistral-GPT-2 of Stanford).")
    tied_embeddings: bool = field(True, "Use the embedding also as the output matrix.")
    initializer: Initializer = field("depth_scaled", INITIALIZER)
    initializer_deviation: PositiveFloat = field(0.02, "Standard deviation of the first values.")

    @model_validator(mode="after")
    def _consistent(self) -> GPT2ShapeConfig:
        derive_widths(self)
        return self


# Our field, transformers' key, and what transformers takes when the key is missing (None: it must be there).
KEYS = (
    ("vocabulary_size", "vocab_size", None),
    ("hidden_size", "n_embd", None),
    ("layers", "n_layer", None),
    ("heads", "n_head", None),
    ("maximum_positions", "n_positions", None),
    ("norm_epsilon", "layer_norm_epsilon", 1e-5),
    ("dropout", "resid_pdrop", 0.1),
    ("embedding_dropout", "embd_pdrop", 0.1),
    ("attention_dropout", "attn_pdrop", 0.1),
    ("scale_by_layer", "scale_attn_by_inverse_layer_idx", False),
    ("tied_embeddings", "tie_word_embeddings", True),
    ("initializer_deviation", "initializer_range", 0.02),
)


def classes(architecture: str) -> dict[str, str]:
    """transformers' class for each head structure."""
    return NAMES


def from_json(plain: dict[str, Any], file: str) -> dict[str, Any]:
    """The fields of a shape that the content of a config.json says."""
    values = named_values(plain, KEYS, file)
    if not plain.get("scale_attn_weights", True) or plain.get("add_cross_attention", False):
        raise DataError(
            "{file}: scale_attn_weights false and add_cross_attention true are not known", "Luban's GPT-2 is the published decoder", file=file
        )
    return values | {
        "activation": read_activation(plain, "activation_function", "gelu_new", file),
        "feed_forward_size": plain.get("n_inner") or "auto",
        "classifier_dropout": plain.get("classifier_dropout"),
    }


def to_json(shape: GPT2ShapeConfig) -> dict[str, Any]:
    """A shape's part of config.json."""
    plain: dict[str, Any] = {theirs: getattr(shape, ours) for ours, theirs, _ in KEYS}
    plain |= {"activation_function": shape.activation, "n_inner": shape.feed_forward_size, "n_ctx": shape.maximum_positions, "scale_attn_weights": True}
    return plain if shape.classifier_dropout is None else plain | {"classifier_dropout": shape.classifier_dropout}


def parameters(shape: GPT2ShapeConfig) -> dict[str, int]:
    """Number of parameters by part, see counts.py; ``positions`` is the table of learned positions."""
    width, inner, vocabulary = shape.hidden_size, shape.feed_forward_size, shape.vocabulary_size
    attention, feed_forward = 4 * width * width, 2 * width * inner
    counts = {
        "embedding": vocabulary * width,
        "positions": shape.maximum_positions * width,
        "attention": shape.layers * (attention + 4 * width),
        "feed_forward": shape.layers * (feed_forward + inner + width),
        "norms": (2 * shape.layers + 1) * 2 * width,
        "output": 0 if shape.tied_embeddings else vocabulary * width,
    }
    counts["total"] = sum(counts.values())
    counts["matrices"] = shape.layers * (attention + feed_forward) + vocabulary * width
    return counts
