"""What the shapes of GPT-2 and BERT share: activations by name, widths that follow from others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from luban.foundation.errors import DataError
from luban.models.shape_base import BaseShapeConfig

Activation = Literal["gelu", "gelu_new", "relu", "silu", "tanh"]
# Names in config.json; those that compute the same, or gelu's formula by tanh in another order of operations, are one here.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class ClassicShapeConfig(BaseShapeConfig):
    """Base of the shapes whose every head sees everything and has keys and values of its own."""

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.heads

    @property
    def key_value_heads(self) -> int:
        """Every query head has keys and values of its own."""
        return self.heads

    @property
    def windows(self) -> list[int | None]:
        """For each layer the number of tokens a token sees: all."""
        return [None] * self.layers


def derive_widths(shape: Any) -> None:
    """Replace ``auto`` in heads (one for every 64 of the width) and feed_forward_size (4 times it). ValueError for heads that do not divide the width."""
    values = shape.__dict__  # past the validation of assignments, which would come back here
    if shape.hidden_size == "auto":
        return
    if shape.heads == "auto":
        if shape.hidden_size % 64:
            raise ValueError(f"hidden_size {shape.hidden_size} is no multiple of 64; give heads")
        values["heads"] = shape.hidden_size // 64
    if shape.hidden_size % shape.heads:
        raise ValueError(f"hidden_size {shape.hidden_size} is no multiple of heads {shape.heads}")
    if shape.feed_forward_size == "auto":
        values["feed_forward_size"] = 4 * shape.hidden_size


def read_activation(plain: dict[str, Any], key: str, default: Activation, file: str) -> Activation:
    """The activation that a config.json names. Raises DataError for one that Luban does not compute."""
    name = plain.get(key, default)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise DataError(
            "{file}: {key} {name!r} is not known", "Luban knows: {known}", file=file, key=key, name=name, known=", ".join(ACTIVATIONS)
        )
    return ACTIVATIONS[name]


def activation_elements(shape: Any, recompute: bool = False) -> float:
    """Numbers a token that the layers keep for the backward pass, without the loss and without what dropout keeps.

    A layer keeps 8 D (queries, keys, values, attention's output, and of two norms the input and the output) and 2 F (before and after the
    activation); with ``recompute`` its input alone, and one layer at a time is computed again. Attention dropout
    costs more where no fused kernel has it (processors): there every weight of attention is kept.
    """
    layer = 8 * shape.hidden_size + 2 * shape.feed_forward_size
    kept = shape.layers * shape.hidden_size + layer if recompute else shape.layers * layer
    return kept + 2 * shape.hidden_size
