"""The shape of BERT (arXiv:1810.04805), RoBERTa (arXiv:1907.11692) and XLM-R (arXiv:1911.02116), and what config.json says of them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from luban.foundation.config import Auto, field
from luban.foundation.errors import DataError
from luban.models.classic_shape import Activation, ClassicShapeConfig, Probability, activation_elements, derive_widths, read_activation
from luban.models.shape_base import INITIALIZER, MOST_LAYERS, BaseShapeConfig, Initializer, Kind, named_values

__all__ = ["BertShapeConfig", "activation_elements", "classes", "from_json", "parameters", "to_json"]
Architecture = Literal["bert", "roberta", "xlm-roberta"]
NAMES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}
STRUCTURES = {
    "": "ForMaskedLM", "sequence": "ForSequenceClassification", "token": "ForTokenClassification",
    "span": "ForQuestionAnswering", "choice": "ForMultipleChoice", "vector": "Model",
}  # fmt: skip


class BertShapeConfig(ClassicShapeConfig):
    """The shape of an encoder of the BERT kind: every token sees every other; learned positions, LayerNorm after each part."""

    kind: ClassVar[Kind] = "encoder"
    foreign: ClassVar[dict[str, str]] = {
        **BaseShapeConfig.foreign,
        "type_vocab_size": "token_types",
        "attention_probs_dropout_prob": "attention_dropout",
        "pad_token_id": "padding_id",
    }

    architecture: Architecture = field("bert", "Family whose parameter names and details are used: bert, roberta or xlm-roberta.")
    vocabulary_size: PositiveInt | Auto = field("auto", "Rows of the embedding; auto takes the tokenizer's.", unit="tokens")
    layers: Annotated[int, Field(gt=0, le=MOST_LAYERS)] | Auto = field("auto", "Number of layers; auto: the depth.")
    hidden_size: PositiveInt | Auto = field("auto", "Width of the residual stream; auto: 64 a layer.")
    heads: PositiveInt | Auto = field("auto", "Number of attention heads; auto: one for every 64 of hidden_size.")
    feed_forward_size: PositiveInt | Auto = field("auto", "Width inside the feed-forward part; auto: 4 hidden_size.")
    maximum_positions: PositiveInt | Auto = field(
        "auto", "Longest sequence the model is made for; auto: as long as it is trained on.", unit="tokens"
    )
    token_types: PositiveInt | Auto = field("auto", "Kinds of tokens (first text, second text); auto: bert has two, the others one.")
    padding_id: NonNegativeInt | Auto = field(
        "auto", "Id of the padding token, after which the positions of roberta and xlm-roberta begin; auto: 0 for bert, 1 for the others."
    )
    activation: Activation = field("gelu", "Between the two matrices of the feed-forward part: gelu, gelu_new (by tanh), relu, silu or tanh.")
    norm_epsilon: PositiveFloat | Auto = field("auto", "Added to the variance in LayerNorm; auto: 1e-12 for bert, 1e-5 for the others.")
    dropout: Probability = field(0.1, "Share of numbers set to zero in training, after the embedding and after each part.")
    attention_dropout: Probability = field(0.1, "Share of attention weights set to zero in training.")
    classifier_dropout: Probability | None = field(None, "Share of numbers set to zero in training, before a head; none: dropout.")
    tied_embeddings: Literal[True] = field(True, "The embedding is also the output matrix: BERT knows nothing else.")
    initializer: Initializer = field("truncated_normal", INITIALIZER)
    initializer_deviation: PositiveFloat = field(0.02, "Standard deviation of the first values.")

    @model_validator(mode="after")
    def _consistent(self) -> BertShapeConfig:
        values, bert = self.__dict__, self.architecture == "bert"
        for name, automatic in (("token_types", 2 if bert else 1), ("padding_id", 0 if bert else 1), ("norm_epsilon", 1e-12 if bert else 1e-5)):
            if values[name] == "auto":
                values[name] = automatic
        derive_widths(self)
        return self

    @property
    def first_position(self) -> int:
        """Row of the position table that a text begins with."""
        return 0 if self.architecture == "bert" else self.padding_id + 1


# Our field, transformers' key, and what transformers takes when the key is missing (None: it must be there).
KEYS = (
    ("vocabulary_size", "vocab_size", None),
    ("hidden_size", "hidden_size", None),
    ("layers", "num_hidden_layers", None),
    ("heads", "num_attention_heads", None),
    ("feed_forward_size", "intermediate_size", None),
    ("token_types", "type_vocab_size", 2),
    ("norm_epsilon", "layer_norm_eps", 1e-12),
    ("dropout", "hidden_dropout_prob", 0.1),
    ("attention_dropout", "attention_probs_dropout_prob", 0.1),
    ("initializer_deviation", "initializer_range", 0.02),
)


def classes(architecture: str) -> dict[str, str]:
    """transformers' class for each head structure."""
    return {structure: NAMES[architecture] + name for structure, name in STRUCTURES.items()}


def from_json(plain: dict[str, Any], file: str) -> dict[str, Any]:
    """The fields of a shape that the content of a config.json says."""
    kind = plain.get("position_embedding_type") or "absolute"
    if kind != "absolute":
        raise DataError("{file}: position_embedding_type {name!r} is not known", "Luban's BERT has learned absolute positions", file=file, name=kind)
    for key, wanted in (("is_decoder", False), ("add_cross_attention", False), ("tie_word_embeddings", True)):
        if plain.get(key, wanted) is not wanted:
            raise DataError("{file}: {key} {value} is not known", "Luban's BERT is an encoder with tied embeddings", file=file, key=key, value=plain[key])
    values = named_values(plain, (*KEYS, ("maximum_positions", "max_position_embeddings", 512)), file)
    padding = plain.get("pad_token_id")
    if plain["model_type"] != "bert":
        padding = 1 if padding is None else padding
        if isinstance(values["maximum_positions"], int) and isinstance(padding, int):
            values["maximum_positions"] -= padding + 1  # rows before the first position are never read
    return values | {
        "padding_id": 0 if padding is None else padding,
        "activation": read_activation(plain, "hidden_act", "gelu", file),
        "classifier_dropout": plain.get("classifier_dropout"),
    }


def to_json(shape: BertShapeConfig) -> dict[str, Any]:
    """A shape's part of config.json."""
    plain: dict[str, Any] = {theirs: getattr(shape, ours) for ours, theirs, _ in KEYS}
    return plain | {
        "max_position_embeddings": shape.first_position + shape.maximum_positions,
        "position_embedding_type": "absolute",
        "hidden_act": shape.activation,
        "classifier_dropout": shape.classifier_dropout,
        "pad_token_id": shape.padding_id,
        "tie_word_embeddings": True,
    }


def parameters(shape: BertShapeConfig) -> dict[str, int]:
    """Number of parameters by part, with the language model's head, see counts.py.

    ``positions`` are the tables of positions and types; ``transform`` is the dense layer before the tied matrix and
    the bias after it.
    """
    width, inner, vocabulary = shape.hidden_size, shape.feed_forward_size, shape.vocabulary_size
    attention, feed_forward = 4 * width * width, 2 * width * inner
    counts = {
        "embedding": vocabulary * width,
        "positions": (shape.first_position + shape.maximum_positions + shape.token_types) * width,
        "attention": shape.layers * (attention + 4 * width),
        "feed_forward": shape.layers * (feed_forward + inner + width),
        "norms": (2 * shape.layers + 2) * 2 * width,
        "output": 0,
        "transform": width * width + width + vocabulary,
    }
    counts["total"] = sum(counts.values())
    counts["matrices"] = shape.layers * (attention + feed_forward) + width * width + vocabulary * width
    return counts
