"""The families of models: one line each, none imported before it is used."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luban.foundation.errors import DataError, installing

if TYPE_CHECKING:
    from luban.models.base import Model
    from luban.models.shape_base import BaseShapeConfig


@dataclass(frozen=True)
class Family:
    """``shape_module`` holds the shape's class with ``from_json(plain, file)`` (config.json to its fields), ``to_json(shape)`` and
    ``classes(architecture)`` (transformers' class for each head structure, "" for the language model); ``model_module`` the torch modules."""

    shape_module: str
    shape_name: str
    model_module: str
    model_name: str
    architectures: tuple[str, ...]

    @property
    def shape(self) -> type[BaseShapeConfig]:
        return getattr(self._shapes, self.shape_name)

    @property
    def model(self) -> type[Model]:
        return getattr(importlib.import_module(f"luban.models.{self.model_module}"), self.model_name)

    @property
    def _shapes(self) -> Any:
        return importlib.import_module(f"luban.models.{self.shape_module}")

    def from_json(self, plain: dict[str, Any], file: str) -> dict[str, Any]:
        """The shape's fields that the content of a config.json says."""
        return self._shapes.from_json(plain, file)

    def classes(self, architecture: str) -> dict[str, str]:
        """Head structure ("" is the language model) to transformers' class of that name."""
        return self._shapes.classes(architecture)

    def to_json(self, shape: BaseShapeConfig) -> dict[str, Any]:
        """A shape's part of config.json, in transformers' keys."""
        return self._shapes.to_json(shape)

    def closed_form(self, name: str) -> Any:
        """The family's own function of that name (see counts.py), or None where the general one holds."""
        return getattr(self._shapes, name, None)


FAMILIES = (
    Family("shape", "ShapeConfig", "decoder", "Decoder", ("llama", "qwen2", "qwen3", "mistral")),
    Family("gpt2_shape", "GPT2ShapeConfig", "gpt2", "GPT2", ("gpt2",)),
    Family("bert_shape", "BertShapeConfig", "bert", "Bert", ("bert", "roberta", "xlm-roberta")),
    Family("moe_shape", "MixtureShapeConfig", "moe", "Mixture", ("mixtral", "qwen2_moe", "qwen3_moe")),
    Family("lstm_shape", "LstmShapeConfig", "lstm", "Lstm", ("luban-lstm",)),
    Family("lstm_shape", "BilstmShapeConfig", "lstm", "Lstm", ("luban-bilstm",)),
    Family("t5_shape", "T5ShapeConfig", "t5", "T5", ("t5", "mt5")),
    Family("bart_shape", "BartShapeConfig", "bart", "Bart", ("bart", "mbart")),
    Family("bart_shape", "BartShapeConfig", "bart", "Marian", ("marian",)),
    Family("recurrent_shape", "RecurrentShapeConfig", "recurrent", "Recurrent", ("luban-recurrent",)),
)
AUTO = Family("auto_shape", "AutoShapeConfig", "auto", "AutoModelAdapter", ("transformers",))  # whatever else transformers has
BY_ARCHITECTURE = {name: family for family in (*FAMILIES, AUTO) for name in family.architectures}


def family_of(architecture: object, where: str = "config.json") -> Family:
    """The family that a ``model_type`` belongs to. Raises DataError for one that neither Luban nor an installed transformers has modules for."""
    if isinstance(architecture, str) and architecture in BY_ARCHITECTURE:
        return BY_ARCHITECTURE[architecture]
    from luban.models.auto_shape import known_to_transformers

    if known_to_transformers(architecture):
        return AUTO
    raise DataError(
        "{file}: model_type {name!r} is not known",
        "Luban has its own modules for: {known}",
        "choose a model of one of these families; others run through transformers where it is installed and knows them ({how})",
        file=where,
        name=architecture,
        how=installing("transformers"),
        known=", ".join(name for family in FAMILIES for name in family.architectures),
    )


def build_model(shape: BaseShapeConfig) -> Model:
    """A model of a shape, its weights not yet drawn."""
    return family_of(shape.architecture).model(shape)
