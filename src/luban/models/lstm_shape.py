"""The shape of a recurrent language model: LSTM or GRU layers, forward (a decoder) or in both directions (an encoder)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from luban.foundation.config import Auto, field
from luban.models.shape_base import INITIALIZER, MOST_LAYERS, BaseShapeConfig, Initializer, Kind

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
RECURRENT_FOREIGN = {**BaseShapeConfig.foreign, "rnn_type": "cell", "emsize": "hidden_size", "embedding_dim": "hidden_size", "nhid": "cell_size", "nlayers": "layers"}


class LstmShapeConfig(BaseShapeConfig):
    """The shape of a recurrent language model: an embedding, LSTM or GRU layers, a projection where widths differ, the output."""

    foreign: ClassVar[dict[str, str]] = RECURRENT_FOREIGN

    architecture: Literal["luban-lstm"] = field("luban-lstm", "A recurrent language model that reads forward.")
    cell: Literal["lstm", "gru"] = field("lstm", "Kind of recurrent cell: lstm (Hochreiter & Schmidhuber 1997) or gru (Cho et al. 2014).")
    vocabulary_size: PositiveInt | Auto = field("auto", "Rows of the embedding; auto takes the tokenizer's.", unit="tokens")
    layers: Annotated[int, Field(gt=0, le=MOST_LAYERS)] | Auto = field("auto", "Number of layers; auto: the depth.")
    hidden_size: PositiveInt | Auto = field("auto", "Width of the embedding and of what comes out; auto: 64 a layer.")
    cell_size: PositiveInt | Auto = field("auto", "Width of the recurrent state, of both directions together; auto: hidden_size. Where it differs, a projection follows the last layer.")
    maximum_positions: PositiveInt | Auto = field(
        "auto", "Longest sequence the model is made for; auto: as long as it is trained on.", unit="tokens"
    )
    tied_embeddings: bool = field(True, "Use the embedding also as the output matrix.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = field(0.2, "Share of values set to zero in training: of the embedding, between layers and at the end.")
    initializer: Initializer = field("xavier_uniform", INITIALIZER)
    initializer_deviation: PositiveFloat = field(0.02, "Standard deviation of the first values.")

    @model_validator(mode="after")
    def _consistent(self) -> LstmShapeConfig:
        if self.cell_size == "auto" and self.hidden_size != "auto":
            self.__dict__["cell_size"] = self.hidden_size
        if self.directions == 2 and self.cell_size != "auto" and self.cell_size % 2:
            raise ValueError(f"cell_size {self.cell_size} is odd; two directions share it")
        return self

    @property
    def directions(self) -> int:
        """Two where the layers read forward and backward."""
        return 1

    @property
    def gates(self) -> int:
        """Products that a cell makes of its input and of its state."""
        return 4 if self.cell == "lstm" else 3


class BilstmShapeConfig(LstmShapeConfig):
    """The shape of a recurrent encoder that reads in both directions: the classic of tagging and classification."""

    kind: ClassVar[Kind] = "encoder"

    architecture: Literal["luban-bilstm"] = field("luban-bilstm", "A recurrent encoder that reads forward and backward.")

    @property
    def directions(self) -> int:
        return 2


FIELDS = ("cell", "layers", "hidden_size", "cell_size", "tied_embeddings", "dropout", "initializer", "initializer_deviation")


def classes(architecture: str) -> dict[str, str]:
    """Names of classes for each head structure; no library but Luban has them."""
    name = {"luban-lstm": "LubanLstm", "luban-bilstm": "LubanBilstm"}[architecture]
    model = "ForCausalLM" if architecture == "luban-lstm" else "ForMaskedLM"
    heads = {"sequence": "SequenceClassification", "token": "TokenClassification", "span": "QuestionAnswering", "choice": "MultipleChoice"}
    return {"": name + model} | {structure: f"{name}For{title}" for structure, title in heads.items()} | {"vector": f"{name}Model"}


def from_json(plain: dict[str, Any], file: str) -> dict[str, Any]:
    """The fields of a shape that the content of a config.json says."""
    said = {name: plain[name] for name in FIELDS if name in plain}
    said |= {ours: plain[theirs] for ours, theirs in (("vocabulary_size", "vocab_size"), ("maximum_positions", "max_position_embeddings")) if theirs in plain}
    return said


def to_json(shape: LstmShapeConfig) -> dict[str, Any]:
    """A shape's part of config.json: Luban's own keys, and transformers' for what tools look at."""
    plain = {name: getattr(shape, name) for name in FIELDS}
    return plain | {"vocab_size": shape.vocabulary_size, "max_position_embeddings": shape.maximum_positions, "num_hidden_layers": shape.layers, "tie_word_embeddings": shape.tied_embeddings}


# ---- closed forms (see counts.py) -------------------------------------------------------------------------------------


def parameters(shape: LstmShapeConfig) -> dict[str, int]:
    """Number of parameters by part; ``matrices`` are those that a token is multiplied with."""
    width, cell = shape.hidden_size, shape.cell_size // shape.directions
    weights = biases = 0
    for layer in range(shape.layers):
        entering = shape.cell_size if layer else width
        weights += shape.directions * shape.gates * cell * (entering + cell)
        biases += shape.directions * shape.gates * cell * 2
    projection = shape.cell_size * width if shape.cell_size != width else 0
    counts = {
        "embedding": shape.vocabulary_size * width,
        "recurrent": weights + biases,
        "projection": projection,
        "output": 0 if shape.tied_embeddings else shape.vocabulary_size * width,
    }
    counts["total"] = sum(counts.values())
    counts["matrices"] = weights + projection + shape.vocabulary_size * width
    return counts


def flops_per_token(shape: LstmShapeConfig, sequence_length: int, *, causal: bool = False, backward: bool = True) -> float:
    """Floating-point operations a token, forward and backward: two a weight and token, whatever the sequence's length, and twice as many backward."""
    return 2.0 * parameters(shape)["matrices"] * (3 if backward else 1)


def key_value_bytes(shape: LstmShapeConfig, tokens: int, dtype: str = "float32") -> int:
    """Bytes of the state that a text is continued from: the same for any number of tokens."""
    return (2 if shape.cell == "lstm" else 1) * shape.layers * shape.cell_size * BYTES[dtype]


def activation_elements(shape: LstmShapeConfig, recompute: bool = False) -> float:
    """Numbers a token that the layers keep for the backward pass, without the loss.

    A layer keeps its input, two numbers a unit where there is dropout, and what torch's kernels for processors keep: 7 numbers a unit of a
    GRU, 17 of an LSTM (24 in two directions; 8 where documents differ in length).
    """
    unit = 7 if shape.cell == "gru" else 17 if shape.directions == 1 else 24
    unit += 2 if shape.dropout else 0
    layers = [(shape.cell_size if layer else shape.hidden_size) + unit * shape.cell_size for layer in range(shape.layers)]
    kept = sum(shape.cell_size for _ in layers) + max(layers) if recompute else sum(layers)
    return float(kept + shape.hidden_size)
