"""What the shapes of all families share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from luban.foundation.config import Config, build
from luban.foundation.errors import ConfigError, DataError

MOST_LAYERS = 10_000  # a lying config.json must not keep the machine busy making layers
Initializer = Literal["normal", "truncated_normal", "depth_scaled", "zero_output", "xavier_uniform", "xavier_normal", "he_uniform", "he_normal"]
INITIALIZER = (
    "First values of the matrices: normal; truncated_normal (at two deviations); depth_scaled divides those that write to the "
    "residual stream by sqrt(2 layers); zero_output sets them to zero; xavier_* and he_* (uniform or normal) take the scale from each matrix's sizes."
)
Kind = Literal["decoder", "encoder", "encoder_decoder"]


class BaseShapeConfig(Config):
    """Base of every family's shape. Each has at least ``architecture`` (a Literal of the ``model_type`` names it is written
    under), ``vocabulary_size``, ``layers``, ``hidden_size``, ``maximum_positions``, ``tied_embeddings``, ``initializer`` and
    ``initializer_deviation``. ``kind`` says how a model of it reads and writes."""

    kind: ClassVar[Kind] = "decoder"

    foreign: ClassVar[dict[str, str]] = {
        "model_type": "architecture",
        "vocab_size": "vocabulary_size",
        "num_hidden_layers": "layers",
        "n_layer": "layers",
        "n_layers": "layers",
        "num_layers": "layers",
        "num_attention_heads": "heads",
        "n_head": "heads",
        "n_heads": "heads",
        "num_heads": "heads",
        "n_embd": "hidden_size",
        "d_model": "hidden_size",
        "n_inner": "feed_forward_size",
        "d_ff": "feed_forward_size",
        "intermediate_size": "feed_forward_size",
        "max_position_embeddings": "maximum_positions",
        "n_positions": "maximum_positions",
        "rms_norm_eps": "norm_epsilon",
        "layer_norm_eps": "norm_epsilon",
        "layer_norm_epsilon": "norm_epsilon",
        "tie_word_embeddings": "tied_embeddings",
        "hidden_dropout_prob": "dropout",
        "dropout_rate": "dropout",
        "hidden_act": "activation",
        "initializer_range": "initializer_deviation",
    }

    @property
    def depth(self) -> int:
        """Blocks in all."""
        return self.layers + (getattr(self, "decoder_layers", 0) or 0)

    def _derive_heads(self, values: dict[str, Any]) -> None:
        """Set ``heads`` and ``head_dim`` where they are auto: 64 wide, or what divides the width. ValueError where neither does."""
        if self.heads == "auto":
            width = 64 if self.head_dim == "auto" else self.head_dim
            if self.hidden_size % width:
                raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {width}; give heads")
            values["heads"] = self.hidden_size // width
        if self.head_dim == "auto":
            if self.hidden_size % self.heads:
                raise ValueError(f"hidden_size {self.hidden_size} is no multiple of heads {self.heads}; give head_dim")
            values["head_dim"] = self.hidden_size // self.heads

    def resolved(self, *, depth: int | None = None, vocabulary_size: int | None = None, maximum_positions: int | None = None) -> Any:
        """The shape with every ``auto`` replaced: by the one dial ``depth``, the tokenizer's size and the length trained on.

        What is written in the shape stays. Raises ConfigError naming what is still auto.
        """
        values = {name: value for name, value in self.model_dump().items() if value != "auto"}
        depth = values.get("layers", depth)
        given = {"layers": depth, "hidden_size": depth and 64 * depth, "vocabulary_size": vocabulary_size, "maximum_positions": maximum_positions}
        whole = build(type(self), {name: value for name, value in given.items() if value is not None} | values)
        whole.require_resolved()
        return whole

    def require_resolved(self) -> None:
        """Raise ConfigError if anything is still ``auto``."""
        if left := [name for name in type(self).model_fields if getattr(self, name) == "auto"]:
            raise ConfigError(
                "the model's shape is not whole; still auto: {names}",
                "a model is built from numbers",
                "give them, or depth",
                names=", ".join(left),
            )


def named_values(plain: dict[str, Any], keys: Iterable[tuple[str, str, Any]], file: str) -> dict[str, Any]:
    """Fields by (our name, the key in config.json, what transformers takes when it is missing; None: it must be there)."""
    values = {}
    for ours, theirs, default in keys:
        values[ours] = plain.get(theirs, default)
        if values[ours] is None:
            raise DataError("{file}: {key} is missing", "", "restore the file", file=file, key=theirs)
    return values
