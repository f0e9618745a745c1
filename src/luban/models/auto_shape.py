"""The shape of an architecture that Luban has no modules for and that runs through transformers."""

from __future__ import annotations

import importlib.util
import json
from functools import lru_cache
from typing import Any, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from luban.foundation.config import field
from luban.foundation.errors import DataError, missing_extra
from luban.models.encoder_decoder_shape import ids_from_json
from luban.models.shape_base import INITIALIZER, MOST_LAYERS, BaseShapeConfig, Initializer, Kind

# What config.json calls it, family by family; the first that is there counts.
NAMES = {
    "vocabulary_size": ("vocab_size",),
    "hidden_size": ("hidden_size", "d_model", "n_embd", "dim", "n_embed"),
    "layers": ("num_hidden_layers", "num_layers", "encoder_layers", "n_layers", "n_layer"),
    "decoder_layers": ("decoder_layers", "num_decoder_layers"),
    "maximum_positions": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"),
    "tied_embeddings": ("tie_word_embeddings",),
    "initializer_deviation": ("initializer_range", "init_std"),
}
SILENT = {"maximum_positions": 2048, "tied_embeddings": True, "initializer_deviation": 0.02}
CLASSES = {"sequence": "SEQUENCE_CLASSIFICATION", "token": "TOKEN_CLASSIFICATION", "span": "QUESTION_ANSWERING", "choice": "MULTIPLE_CHOICE"}
LANGUAGE_MODELS = {"decoder": "CAUSAL_LM", "encoder": "MASKED_LM", "encoder_decoder": "SEQ_TO_SEQ_CAUSAL_LM"}


class AutoShapeConfig(BaseShapeConfig):
    """What the loop asks of a shape; the rest stands in ``settings``, the whole config.json."""

    kind: ClassVar[Any] = property(lambda self: self.reads)

    architecture: Literal["transformers"] = field("transformers", "Modules of transformers, for what Luban has none of its own.")
    model_type: str = field(..., "The model_type that transformers knows.")
    reads: Kind = field(..., "How a model of it reads and writes.")
    vocabulary_size: PositiveInt = field(..., "Rows of the embedding.", unit="tokens")
    layers: PositiveInt = field(..., "Number of layers.")
    decoder_layers: PositiveInt | None = field(None, "Number of layers of the decoder of an encoder–decoder.")
    hidden_size: PositiveInt = field(..., "Width of the residual stream.")
    maximum_positions: PositiveInt = field(2048, "Longest sequence the model is made for.", unit="tokens")
    tied_embeddings: bool = field(True, "Use the embedding also as the output matrix.")
    decoder_start_id: NonNegativeInt = field(0, "Token that the decoder's input starts with, at training and when it writes.")
    end_ids: list[NonNegativeInt] = field(doc="Tokens that end a text the decoder writes.", default_factory=list)
    forced_begin_id: NonNegativeInt | None = field(None, "Token that every written text begins with (a language, for mbart).")
    forced_end_id: NonNegativeInt | list[NonNegativeInt] | None = field(None, "Token that a text ends with when it reaches the greatest length.")
    initializer: Initializer = field("normal", INITIALIZER)
    initializer_deviation: PositiveFloat = field(0.02, "Standard deviation of the first values.")
    settings: dict[str, Any] = field(doc="The whole config.json, in transformers' keys.", default_factory=dict)


def known_to_transformers(architecture: object) -> bool:
    """Whether transformers is installed and has an architecture of this ``model_type``."""
    if not isinstance(architecture, str) or importlib.util.find_spec("transformers") is None:
        return False
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return architecture in CONFIG_MAPPING_NAMES


def refuse_code(plain: dict[str, Any], file: str) -> None:
    """Raise DataError for a directory that brings its own code."""
    if plain.get("auto_map"):
        raise DataError(
            "{file}: auto_map asks to run Python code from the model's directory",
            "code from files that a person may have received can do anything; Luban never runs it",
            "choose a model whose architecture is part of transformers or of Luban",
            file=file,
        )


def transformers_classes(structure: str) -> dict[str, str]:
    """transformers' table of class names by model_type, for a head structure or a kind of language model."""
    try:
        from transformers.models.auto import modeling_auto
    except ImportError:
        raise missing_extra("transformers", "transformers") from None
    title = CLASSES.get(structure) or LANGUAGE_MODELS.get(structure)
    return getattr(modeling_auto, f"MODEL_FOR_{title}_MAPPING_NAMES" if title else "MODEL_MAPPING_NAMES")


def written_structure(plain: dict[str, Any]) -> str:
    """The head structure that the class named in config.json has; "" for a language model."""
    name = str((plain.get("architectures") or [""])[0])
    titles = {"ForSequenceClassification": "sequence", "ForTokenClassification": "token", "ForQuestionAnswering": "span", "ForMultipleChoice": "choice"}
    return next((structure for title, structure in titles.items() if name.endswith(title)), "")


def from_json(plain: dict[str, Any], file: str) -> dict[str, Any]:
    """The fields of a shape that the content of a config.json says."""
    refuse_code(plain, file)
    values: dict[str, Any] = {"model_type": plain["model_type"], "reads": _kind(plain, file), "settings": dict(plain)}
    for ours, keys in NAMES.items():
        value = next((plain[key] for key in keys if plain.get(key) is not None), SILENT.get(ours))
        if value is None and ours != "decoder_layers":
            raise DataError("{file}: {key} is missing", "", "restore the file", file=file, key=keys[0])
        values[ours] = value
    if not isinstance(values["layers"], int) or values["layers"] > MOST_LAYERS:
        raise DataError("{file}: {key} is no whole number", "", "restore the file", file=file, key=NAMES["layers"][0])
    if values["reads"] == "encoder_decoder":
        values |= ids_from_json(plain, file, start=0, end=1, forced_end=None)
    return values


def _kind(plain: dict[str, Any], file: str) -> Kind:
    """How it reads and writes: as its class says, or else as transformers' tables of language models."""
    name, written = plain["model_type"], str((plain.get("architectures") or [""])[0])
    causal, masked = name in transformers_classes("decoder"), name in transformers_classes("encoder")
    if plain.get("is_encoder_decoder") or (name in transformers_classes("encoder_decoder") and not masked and not causal):
        return "encoder_decoder"
    if causal and (not masked or plain.get("is_decoder") or written.endswith(("ForCausalLM", "LMHeadModel"))):
        return "decoder"
    if masked:
        return "encoder"
    raise DataError(
        "{file}: model_type {name!r} is no language model",
        "transformers has no class of it that predicts tokens",
        "choose a model that reads and writes text",
        file=file,
        name=name,
    )


# ---- what it costs: counted on transformers' own modules, without values (see counts.py) ---------------------------------


def parameters(shape: AutoShapeConfig) -> dict[str, int]:
    """Number of parameters by part; ``matrices`` are all of two dimensions but the embeddings, and the output."""
    return dict(_counted(json.dumps({**shape.settings, "vocab_size": shape.vocabulary_size}, sort_keys=True, default=str), shape.reads))


@lru_cache(maxsize=16)
def _counted(settings: str, reads: Kind) -> tuple[tuple[str, int], ...]:
    import torch

    from luban.models.auto import configured, new_model

    with torch.device("meta"):
        model = new_model(configured(json.loads(settings)), reads)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    output = model.get_output_embeddings()
    embedding = model.get_input_embeddings().weight
    sizes = {id(parameter): parameter.numel() for parameter in model.parameters()}
    own_output = output is not None and output.weight is not embedding
    matrices = sum(p.numel() for p in model.parameters() if p.dim() >= 2 and id(p) not in tables)
    counts = {"embedding": embedding.numel(), "output": output.weight.numel() if own_output else 0, "total": sum(sizes.values())}
    counts["layers"] = counts["total"] - counts["embedding"] - counts["output"]
    return tuple((counts | {"matrices": matrices + (0 if own_output else embedding.numel())}).items())


def flops_per_token(shape: AutoShapeConfig, sequence_length: int, *, causal: bool = False, backward: bool = True) -> float:
    """Floating-point operations a token: two a number in the matrices, and attention over the whole length in every layer."""
    attention = 4.0 * (shape.layers + (shape.decoder_layers or 0)) * shape.hidden_size * sequence_length
    return (2.0 * parameters(shape)["matrices"] + attention / (2 if causal else 1)) * (3 if backward else 1)


def key_value_bytes(shape: AutoShapeConfig, tokens: int, dtype: str = "float32") -> int:
    """Bytes kept of a text while it is written: its token ids, from which every step starts anew."""
    return 8 * tokens


def activation_elements(shape: AutoShapeConfig, recompute: bool = False) -> float:
    """Numbers a token that the layers keep for the backward pass: 17 widths a layer, the estimate of arXiv:2205.05198 without attention's weights."""
    layers = shape.layers + (shape.decoder_layers or 0)
    return float((layers + 17 if recompute else 17 * layers) * shape.hidden_size + 2 * shape.hidden_size)
