"""The shape of a decoder of the Llama kind: everything config.json says about it, under the field's standard names."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from luban.foundation.config import Auto, Config, field
from luban.foundation.errors import DataError
from luban.models.shape_base import INITIALIZER, MOST_LAYERS, BaseShapeConfig, Initializer, named_values

Architecture = Literal["llama", "qwen2", "qwen3", "mistral"]
LayerType = Literal["full_attention", "sliding_attention"]


class RopeScalingConfig(Config):
    """How rotary positions are stretched beyond the length a model was trained on; the keys are those of config.json."""

    renamed: ClassVar[dict[str, str]] = {"type": "rope_type"}

    rope_type: Literal["linear", "dynamic", "llama3", "yarn"] = field(
        ..., "Kind of scaling: linear (interpolation), dynamic (as unscaled up to maximum_positions, no further), llama3 or yarn."
    )
    factor: PositiveFloat = field(..., "How many times the original length is reached.")
    original_max_position_embeddings: PositiveInt | None = field(
        None, "Length before scaling (llama3, yarn); when left out, maximum_positions.", unit="tokens"
    )
    low_freq_factor: PositiveFloat | None = field(None, "llama3: waves longer than the original length over this are slowed by factor.")
    high_freq_factor: PositiveFloat | None = field(None, "llama3: waves shorter than the original length over this stay as they are.")
    attention_factor: NonNegativeFloat | None = field(None, "yarn: scale of cosines and sines; when left out, 0.1 ln(factor) + 1.")
    beta_fast: PositiveFloat | None = field(None, "yarn: turns over the original length above which a wave stays as it is (32).")
    beta_slow: PositiveFloat | None = field(None, "yarn: turns over the original length below which a wave is slowed by factor (1).")
    mscale: NonNegativeFloat | None = field(None, "yarn: numerator of the attention factor, with mscale_all_dim.")
    mscale_all_dim: NonNegativeFloat | None = field(None, "yarn: denominator of the attention factor, with mscale.")
    truncate: bool | None = field(None, "yarn: round the borders of the ramp to whole dimensions (true).")

    @model_validator(mode="after")
    def _llama3_is_whole(self) -> RopeScalingConfig:
        if self.rope_type == "llama3":
            if self.low_freq_factor is None or self.high_freq_factor is None:
                raise ValueError("llama3 scaling needs low_freq_factor and high_freq_factor")
            if self.high_freq_factor <= self.low_freq_factor:
                raise ValueError("high_freq_factor must be above low_freq_factor")
        return self


class ShapeConfig(BaseShapeConfig):
    """The shape of a decoder of the Llama and Qwen family."""

    foreign: ClassVar[dict[str, str]] = {
        **BaseShapeConfig.foreign,
        "num_key_value_heads": "key_value_heads",
        "n_kv_heads": "key_value_heads",
        "mlp_bias": "feed_forward_bias",
    }

    architecture: Architecture = field("llama", "Family whose parameter names and details are used: llama, qwen2, qwen3 or mistral.")
    vocabulary_size: PositiveInt | Auto = field("auto", "Rows of the embedding; auto takes the tokenizer's.", unit="tokens")
    layers: Annotated[int, Field(gt=0, le=MOST_LAYERS)] | Auto = field("auto", "Number of layers; auto: the depth.")
    hidden_size: PositiveInt | Auto = field("auto", "Width of the residual stream; auto: 64 a layer.")
    heads: PositiveInt | Auto = field("auto", "Number of attention heads; auto: one for every 64 of hidden_size.")
    key_value_heads: PositiveInt | Auto = field("auto", "Heads of keys and values, each shared by heads / key_value_heads; auto: heads.")
    head_dim: PositiveInt | Auto = field("auto", "Width of one head, even; auto: hidden_size / heads.")
    feed_forward_size: PositiveInt | Auto = field("auto", "Width inside SwiGLU; auto: 8/3 hidden_size, rounded up to a multiple of 64.")
    maximum_positions: PositiveInt | Auto = field(
        "auto", "Longest sequence the model is made for; auto: as long as it is trained on.", unit="tokens"
    )
    rope_theta: PositiveFloat = field(10000.0, "Base of the rotary wavelengths.")
    rope_scaling: RopeScalingConfig | None = field(None, "Stretching of the rotary positions.")
    norm_epsilon: PositiveFloat = field(1e-6, "Added to the mean square in RMSNorm.")
    tied_embeddings: bool = field(True, "Use the embedding also as the output matrix.")
    attention_bias: bool = field(
        False, "Biases in attention: on queries, keys, values and output (llama, qwen3). qwen2 always has the first three; mistral none."
    )
    feed_forward_bias: bool = field(False, "Biases in SwiGLU (llama only).")
    query_key_norm: bool | Auto = field("auto", "RMSNorm on each head's queries and keys; auto: qwen3 has it, the others do not.")
    sliding_window: PositiveInt | None = field(None, "A token sees this many, itself included, in sliding layers.", unit="tokens")
    layer_types: list[LayerType] | None = field(
        None, "full_attention or sliding_attention for each layer; when left out, all slide if sliding_window is given."
    )
    initializer: Initializer = field("depth_scaled", INITIALIZER)
    initializer_deviation: PositiveFloat = field(0.02, "Standard deviation of the first values.")

    @model_validator(mode="after")
    def _consistent(self) -> ShapeConfig:
        """Replace ``auto`` by the number it stands for as far as that is known, and refuse what does not fit together."""
        self._derive()
        known = {name: getattr(self, name) for name in ("layers", "hidden_size", "heads", "key_value_heads", "head_dim")}
        known = {name: value for name, value in known.items() if value != "auto"}
        if known.get("head_dim", 2) % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions turn pairs of dimensions")
        if "heads" in known and known["heads"] % known.get("key_value_heads", 1):
            raise ValueError(f"heads {self.heads} is no multiple of key_value_heads {self.key_value_heads}")
        if self.layer_types is not None and len(self.layer_types) != known.get("layers", len(self.layer_types)):
            raise ValueError(f"layer_types names {len(self.layer_types)} layers of {self.layers}")
        if self.layer_types and "sliding_attention" in self.layer_types and self.sliding_window is None:
            raise ValueError("layer_types has sliding_attention, but sliding_window is not given")
        self._fits_architecture()
        return self

    def _derive(self) -> None:
        """Written past the validation of assignments, which would come back here."""
        values = self.__dict__
        if self.query_key_norm == "auto":
            values["query_key_norm"] = self.architecture == "qwen3"
        if self.hidden_size == "auto":
            return
        self._derive_heads(values)
        if self.key_value_heads == "auto":
            values["key_value_heads"] = self.heads
        if self.feed_forward_size == "auto":
            values["feed_forward_size"] = -(-8 * self.hidden_size // (3 * 64)) * 64

    def _fits_architecture(self) -> None:
        """transformers would drop what its class of that name does not have, so it is refused here."""
        name = self.architecture
        if self.attention_bias and name == "mistral":
            raise ValueError("mistral has no attention biases")
        if self.feed_forward_bias and name != "llama":
            raise ValueError(f"{name} has no feed_forward_bias; llama has")
        if self.query_key_norm != (name == "qwen3"):
            raise ValueError("qwen3 has query_key_norm; llama, qwen2 and mistral have not")
        if self.sliding_window is not None and name == "llama":
            raise ValueError("llama has no sliding_window; mistral, qwen2 and qwen3 have")
        if name == "mistral" and self.layer_types and len(set(self.layer_types)) > 1:
            raise ValueError("mistral has one kind of layer; qwen2 and qwen3 can mix")
        if (
            name == "qwen2"
            and "auto" not in (self.head_dim, self.heads, self.hidden_size)
            and self.head_dim * self.heads != self.hidden_size
        ):
            raise ValueError(f"qwen2 has no head_dim of its own: it is hidden_size / heads ({self.hidden_size} / {self.heads})")

    @property
    def query_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.attention_bias or self.architecture == "qwen2"

    @property
    def output_bias(self) -> bool:
        """Whether attention's output matrix has a bias."""
        return self.attention_bias and self.architecture != "qwen2"

    @property
    def windows(self) -> list[int | None]:
        """For each layer the number of tokens a token sees, or None for all."""
        if self.sliding_window is None:
            return [None] * self.layers
        kinds = self.layer_types or ["sliding_attention"] * self.layers
        return [self.sliding_window if kind == "sliding_attention" else None for kind in kinds]


# Our field, transformers' key, and what transformers takes when the key is missing (None: it must be there).
KEYS = (
    ("vocabulary_size", "vocab_size", None),
    ("hidden_size", "hidden_size", None),
    ("layers", "num_hidden_layers", None),
    ("heads", "num_attention_heads", None),
    ("feed_forward_size", "intermediate_size", None),
    ("norm_epsilon", "rms_norm_eps", 1e-6),
    ("tied_embeddings", "tie_word_embeddings", False),
    ("initializer_deviation", "initializer_range", 0.02),
)
POSITIONS = {"llama": 2048, "qwen2": 32768, "qwen3": 32768, "mistral": 131072}


def classes(architecture: str) -> dict[str, str]:
    """transformers' class for each head structure."""
    name = architecture.capitalize()
    return {"": f"{name}ForCausalLM", "sequence": f"{name}ForSequenceClassification", "token": f"{name}ForTokenClassification", "vector": f"{name}Model"}


def from_json(plain: dict[str, Any], file: str) -> dict[str, Any]:
    """The fields of a shape that the content of a config.json says."""
    name = plain["model_type"]
    if (activation := plain.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise DataError("{file}: hidden_act {name!r} is not known", "Luban's decoder has silu", file=file, name=activation)
    values = named_values(plain, KEYS, file)
    values["key_value_heads"] = plain.get("num_key_value_heads") or (
        8 if name == "mistral" and "num_key_value_heads" not in plain else "auto"
    )
    values["maximum_positions"] = plain.get("max_position_embeddings", POSITIONS[name])
    values["head_dim"] = plain.get("head_dim") or (128 if name == "qwen3" else "auto")
    if name == "qwen2":
        values["head_dim"] = "auto"
    if name in ("llama", "qwen3"):
        values["attention_bias"] = bool(plain.get("attention_bias", False))
    if name == "llama":
        values["feed_forward_bias"] = bool(plain.get("mlp_bias", False))
    return values | rope_from_json(plain, file) | _windows(plain, name, file)


def rope_from_json(plain: dict[str, Any], file: str) -> dict[str, Any]:
    """rope_parameters (transformers 5), or rope_theta and rope_scaling (before)."""
    parameters = plain.get("rope_parameters") or plain.get("rope_scaling") or {}
    if not isinstance(parameters, dict) or any(isinstance(value, dict) for value in parameters.values()):
        raise DataError("{file}: rotary positions that differ between layers are not known", file=file)
    scaling = {key: value for key, value in parameters.items() if value is not None and key not in ("type", "rope_theta")}
    theta = parameters.get("rope_theta") or plain.get("rope_theta") or 10000.0
    kind = scaling.setdefault("rope_type", parameters.get("type", "default"))
    if scaling.pop("partial_rotary_factor", 1.0) != 1.0 or plain.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise DataError("{file}: partial rotary positions are not known", "Luban's decoder turns whole heads", file=file)
    if kind == "default":
        return {"rope_theta": theta}
    if kind not in ("linear", "dynamic", "llama3", "yarn"):
        raise DataError(
            "{file}: rope_type {name!r} is not known", "Luban knows default, linear, dynamic, llama3 and yarn", file=file, name=kind
        )
    if kind in ("llama3", "yarn") and plain.get("original_max_position_embeddings"):
        scaling["original_max_position_embeddings"] = plain["original_max_position_embeddings"]
    return {"rope_theta": theta, "rope_scaling": scaling}


def _windows(plain: dict[str, Any], name: str, file: str) -> dict[str, Any]:
    if name == "llama":
        return {}
    if name == "mistral":
        return {"sliding_window": plain.get("sliding_window", 4096)}
    if not plain.get("use_sliding_window", False):
        return {}
    window, layers, first = plain.get("sliding_window", 4096), plain["num_hidden_layers"], plain.get("max_window_layers", 28)
    for key, value in (("num_hidden_layers", layers), ("max_window_layers", first)):
        if not isinstance(value, int):
            raise DataError("{file}: {key} is no whole number", "", "restore the file", file=file, key=key)
    kinds = plain.get("layer_types") or [
        "sliding_attention" if index >= first else "full_attention" for index in range(min(layers, MOST_LAYERS))
    ]
    return {"sliding_window": window, "layer_types": kinds} if window else {}


def to_json(shape: ShapeConfig) -> dict[str, Any]:
    """A shape's part of config.json. Rotary positions are written in the old form and in the new."""
    plain: dict[str, Any] = {"hidden_act": "silu"}
    plain |= {theirs: getattr(shape, ours) for ours, theirs, _ in KEYS}
    plain |= {
        "num_key_value_heads": shape.key_value_heads,
        "max_position_embeddings": shape.maximum_positions,
        "head_dim": shape.head_dim,
        "attention_dropout": 0.0,
    }
    plain |= rope_to_json(shape.rope_theta, shape.rope_scaling, shape.maximum_positions)
    if shape.architecture in ("llama", "qwen3"):
        plain["attention_bias"] = shape.attention_bias
    if shape.architecture == "llama":
        plain["mlp_bias"] = shape.feed_forward_bias
    if shape.architecture == "mistral":
        plain["sliding_window"] = shape.sliding_window if any(shape.windows) else None
    if shape.architecture in ("qwen2", "qwen3"):
        sliding = [window is not None for window in shape.windows]
        plain |= {
            "use_sliding_window": any(sliding),
            "sliding_window": shape.sliding_window if any(sliding) else None,
            "max_window_layers": sliding.index(True) if any(sliding) else shape.layers,
            "layer_types": ["sliding_attention" if slides else "full_attention" for slides in sliding],
        }
    return plain


def rope_to_json(theta: float, scaling: RopeScalingConfig | None, maximum_positions: int) -> dict[str, Any]:
    """Rotary positions in the old form of config.json and in the new."""
    said = scaling.model_dump(exclude_none=True) if scaling else None
    if said and said["rope_type"] in ("llama3", "yarn"):
        said.setdefault("original_max_position_embeddings", maximum_positions)
    return {"rope_theta": theta, "rope_scaling": said, "rope_parameters": {"rope_theta": theta, **(said or {"rope_type": "default"})}}
