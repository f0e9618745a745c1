"""The shape of the classic recurrent encoder–decoder with soft attention."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from luban.foundation.config import Auto, field
from luban.models.encoder_decoder_shape import ids_from_json, ids_to_json
from luban.models.lstm_shape import BYTES, RECURRENT_FOREIGN
from luban.models.shape_base import INITIALIZER, MOST_LAYERS, BaseShapeConfig, Initializer, Kind


class RecurrentShapeConfig(BaseShapeConfig):
    """GRU layers read a source in both directions; GRU layers write, and look back at it by attention before each token."""

    kind: ClassVar[Kind] = "encoder_decoder"
    foreign: ClassVar[dict[str, str]] = {
        **{theirs: ours for theirs, ours in RECURRENT_FOREIGN.items() if ours != "cell_size"},
        "encoder_layers": "layers",
        "decoder_start_token_id": "decoder_start_id",
        "eos_token_id": "end_ids",
        "cell_size": "hidden_size",
    }

    architecture: Literal["luban-recurrent"] = field("luban-recurrent", "The recurrent encoder–decoder with soft attention.")
    attention: Literal["additive", "dot"] = field(
        "additive", "How a source token is weighed: additive, by a small network before each step (Bahdanau et al. 2015), or dot, by a product after it (Luong et al. 2015); dot trains faster."
    )
    vocabulary_size: PositiveInt | Auto = field("auto", "Rows of the embedding, which source and target share; auto takes the tokenizer's.", unit="tokens")
    layers: Annotated[int, Field(gt=0, le=MOST_LAYERS)] | Auto = field("auto", "Number of layers of the encoder; auto: the depth.")
    decoder_layers: Annotated[int, Field(gt=0, le=MOST_LAYERS)] | Auto = field("auto", "Number of layers of the decoder; auto: as many as the encoder.")
    hidden_size: PositiveInt | Auto = field("auto", "Width of embedding and states, even (two directions share it in the encoder); auto: 64 a layer.")
    maximum_positions: PositiveInt | Auto = field(
        "auto", "Longest sequence the model is made for; auto: as long as it is trained on.", unit="tokens"
    )
    tied_embeddings: bool = field(True, "Use the embedding also as the output matrix.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = field(0.2, "Share of values set to zero in training: of the embedding, between layers and at the end.")
    decoder_start_id: NonNegativeInt = field(0, "Token that the decoder's input starts with, at training and when it writes.")
    end_ids: list[NonNegativeInt] = field(doc="Tokens that end a text the decoder writes.", default_factory=list)
    forced_begin_id: NonNegativeInt | None = field(None, "Token that every written text begins with (a language, for mbart).")
    forced_end_id: NonNegativeInt | list[NonNegativeInt] | None = field(None, "Token that a text ends with when it reaches the greatest length.")
    initializer: Initializer = field("xavier_uniform", INITIALIZER)
    initializer_deviation: PositiveFloat = field(0.02, "Standard deviation of the first values.")

    @model_validator(mode="after")
    def _consistent(self) -> RecurrentShapeConfig:
        if self.decoder_layers == "auto" and self.layers != "auto":
            self.__dict__["decoder_layers"] = self.layers
        if self.hidden_size != "auto" and self.hidden_size % 2:
            raise ValueError(f"hidden_size {self.hidden_size} is odd; two directions share it")
        return self


FIELDS = ("attention", "layers", "decoder_layers", "hidden_size", "tied_embeddings", "dropout", "initializer", "initializer_deviation")


def classes(architecture: str) -> dict[str, str]:
    """The name of its class; no library but Luban has it."""
    return {"": "LubanRecurrentForConditionalGeneration"}


def from_json(plain: dict[str, Any], file: str) -> dict[str, Any]:
    """The fields of a shape that the content of a config.json says."""
    said = {name: plain[name] for name in FIELDS if name in plain}
    said |= {ours: plain[theirs] for ours, theirs in (("vocabulary_size", "vocab_size"), ("maximum_positions", "max_position_embeddings")) if theirs in plain}
    return said | ids_from_json(plain, file, start=0, end=0, forced_end=None)


def to_json(shape: RecurrentShapeConfig) -> dict[str, Any]:
    """A shape's part of config.json: Luban's own keys, and transformers' for what tools look at."""
    plain = {name: getattr(shape, name) for name in FIELDS} | ids_to_json(shape)
    return plain | {"vocab_size": shape.vocabulary_size, "max_position_embeddings": shape.maximum_positions, "num_hidden_layers": shape.layers, "tie_word_embeddings": shape.tied_embeddings}


# ---- closed forms (see counts.py) -------------------------------------------------------------------------------------


def _matrices(shape: RecurrentShapeConfig) -> tuple[int, int]:
    """Numbers in the matrices that a source token and a target token is multiplied with, without the output."""
    width, half = shape.hidden_size, shape.hidden_size // 2
    additive = shape.attention == "additive"
    encoder = shape.layers * 2 * 3 * half * (width + half) + additive * width * width  # with the keys
    decoder = shape.decoder_layers * 6 * width * width
    return encoder, decoder + (3 * width + width + 6 * width) * width * additive + 2 * width * width * (not additive)


def parameters(shape: RecurrentShapeConfig) -> dict[str, int]:
    """Number of parameters by part; ``matrices`` are those that a pair of a source and a target token is multiplied with."""
    width, half = shape.hidden_size, shape.hidden_size // 2
    encoder, decoder = _matrices(shape)
    additive = shape.attention == "additive"
    biases = shape.layers * 2 * 6 * half + shape.decoder_layers * 6 * width
    initial = shape.decoder_layers * width * (half + 1)
    counts = {
        "embedding": shape.vocabulary_size * width,
        "recurrent": encoder + decoder + biases + initial + (width + 2 * width + width if additive else width),
        "output": 0 if shape.tied_embeddings else shape.vocabulary_size * width,
    }
    counts["total"] = sum(counts.values())
    counts["matrices"] = encoder + decoder + shape.vocabulary_size * width
    return counts


def flops_per_token(
    shape: RecurrentShapeConfig, sequence_length: int, *, causal: bool = False, backward: bool = True, source_length: int | None = None
) -> float:
    """Floating-point operations for each token of a target of ``sequence_length``, its share of reading the source included.

    The source is ``source_length`` long (as the target, where not given); each target token weighs all of it and sums it up.
    """
    source = sequence_length if source_length is None else source_length
    encoder, decoder = _matrices(shape)
    initial = shape.decoder_layers * shape.hidden_size * (shape.hidden_size // 2) / sequence_length
    forward = 2.0 * (shape.vocabulary_size * shape.hidden_size + decoder + initial + encoder * source / sequence_length)
    forward += 4.0 * shape.hidden_size * source
    return forward * (3 if backward else 1)


def key_value_bytes(shape: RecurrentShapeConfig, tokens: int, dtype: str = "float32") -> int:
    """Bytes of the decoder's state, the same for any number of tokens, and of what is kept of a source of ``tokens``."""
    return shape.hidden_size * (shape.decoder_layers + tokens) * BYTES[dtype]


def activation_elements(shape: RecurrentShapeConfig, recompute: bool = False) -> float:
    """Numbers for each pair of a source and a target token that the layers keep for the backward pass, without the loss.

    A GRU keeps ten numbers a unit with its input and dropout; additive attention besides a hidden vector for each token of a source
    that is read: counted here for sources of 50 tokens.
    """
    width = shape.hidden_size
    weighing = 50 * (width + 2) if shape.attention == "additive" else 50 * 3
    return float(10 * width * (shape.layers + shape.decoder_layers) + 8 * width + weighing)
