"""The shape of a decoder whose feed-forward layers are mixtures of experts: Mixtral, Qwen2-MoE, Qwen3-MoE."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from luban.foundation.config import Auto, field
from luban.foundation.errors import DataError
from luban.models.shape import ShapeConfig, rope_from_json, rope_to_json
from luban.models.shape_base import MOST_LAYERS, named_values


class MixtureShapeConfig(ShapeConfig):
    """The shape of a decoder of the Llama kind in which a router sends each token to a few of many feed-forward experts."""

    foreign: ClassVar[dict[str, str]] = {
        **ShapeConfig.foreign,
        "num_local_experts": "experts",
        "num_experts": "experts",
        "num_experts_per_tok": "experts_per_token",
        "moe_intermediate_size": "expert_size",
        "shared_expert_intermediate_size": "shared_expert_size",
        "norm_topk_prob": "normalize_weights",
        "decoder_sparse_step": "sparse_step",
        "mlp_only_layers": "dense_layers",
        "router_aux_loss_coef": "load_balance_weight",
        "router_z_loss_coef": "router_z_weight",
        "router_jitter_noise": "router_jitter",
    }

    architecture: Literal["mixtral", "qwen2_moe", "qwen3_moe"] = field(
        "mixtral", "Family whose parameter names and details are used: mixtral, qwen2_moe (with a shared expert) or qwen3_moe."
    )
    experts: PositiveInt = field(8, "Number of experts in a layer.")
    experts_per_token: PositiveInt = field(2, "How many experts a token is sent to.")
    expert_size: PositiveInt | Auto = field(
        "auto", "Width inside one expert; auto: feed_forward_size (mixtral), or that over experts_per_token, rounded up to a multiple of 64."
    )
    shared_expert_size: NonNegativeInt | Auto = field(
        "auto", "Width inside the expert that every token goes through; auto: feed_forward_size for qwen2_moe, 0 (none) for the others."
    )
    normalize_weights: bool | Auto = field(
        "auto", "Scale the weights of a token's experts to sum one; auto: mixtral and qwen3_moe do, qwen2_moe does not."
    )
    sparse_step: PositiveInt = field(1, "Every so many layers one is a mixture, the others dense (qwen2_moe, qwen3_moe).", unit="layers")
    dense_layers: list[NonNegativeInt] = field(doc="Layers, from 0, that are dense in any case (qwen2_moe, qwen3_moe).", default_factory=list)
    load_balance_weight: NonNegativeFloat = field(0.01, "Weight of the load-balancing loss, which keeps experts equally used (arXiv:2101.03961).")
    router_z_weight: NonNegativeFloat = field(0.0, "Weight of the router's z-loss, which keeps its logits small (arXiv:2202.08906); 0.001 is usual.")
    router_jitter: Annotated[float, Field(ge=0, lt=1)] = field(
        0.0, "In training, what a mixture reads is multiplied by random numbers between 1 - this and 1 + this."
    )

    def _derive(self) -> None:
        values = self.__dict__
        if self.query_key_norm == "auto":
            values["query_key_norm"] = self.architecture == "qwen3_moe"
        if self.normalize_weights == "auto":
            values["normalize_weights"] = self.architecture != "qwen2_moe"
        super()._derive()
        if self.feed_forward_size == "auto":
            return
        if self.expert_size == "auto":
            part = -(-self.feed_forward_size // (64 * self.experts_per_token)) * 64
            values["expert_size"] = self.feed_forward_size if self.architecture == "mixtral" else part
        if self.shared_expert_size == "auto":
            values["shared_expert_size"] = self.feed_forward_size if self.architecture == "qwen2_moe" else 0

    def _fits_architecture(self) -> None:
        """transformers would drop what its class of that name does not have, so it is refused here."""
        name = self.architecture
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} is more than experts {self.experts}")
        if self.attention_bias and name != "qwen3_moe":
            raise ValueError(f"{name} has no attention_bias; qwen3_moe has")
        if self.feed_forward_bias:
            raise ValueError(f"{name} has no feed_forward_bias")
        if self.query_key_norm != (name == "qwen3_moe"):
            raise ValueError("qwen3_moe has query_key_norm; mixtral and qwen2_moe have not")
        if self.shared_expert_size not in ("auto", 0) and name != "qwen2_moe":
            raise ValueError(f"{name} has no shared expert; qwen2_moe has")
        if self.shared_expert_size == 0 and name == "qwen2_moe":
            raise ValueError("qwen2_moe always has a shared expert; qwen3_moe has none")
        if name == "mixtral" and (self.sparse_step != 1 or self.dense_layers or not self.normalize_weights):
            raise ValueError("in mixtral every layer is a mixture with normalised weights; qwen2_moe and qwen3_moe can choose")
        if name == "mixtral" and self.expert_size not in ("auto", self.feed_forward_size):
            raise ValueError("mixtral has no expert_size of its own: it is feed_forward_size")
        if name != "qwen2_moe" and self.layer_types and len(set(self.layer_types)) > 1:
            raise ValueError(f"{name} has one kind of layer; qwen2_moe can mix")
        whole = "auto" not in (self.head_dim, self.heads, self.hidden_size)
        if name == "qwen2_moe" and whole and self.head_dim * self.heads != self.hidden_size:
            raise ValueError(f"qwen2_moe has no head_dim of its own: it is hidden_size / heads ({self.hidden_size} / {self.heads})")

    @property
    def query_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.attention_bias or self.architecture == "qwen2_moe"

    @property
    def output_bias(self) -> bool:
        """Whether attention's output matrix has a bias."""
        return self.attention_bias

    @property
    def sparse(self) -> list[bool]:
        """For each layer whether it is a mixture."""
        return [index not in self.dense_layers and (index + 1) % self.sparse_step == 0 for index in range(self.layers)]

    @property
    def auxiliary_weights(self) -> dict[str, float]:
        """The weight in the whole loss of what ``Model.auxiliary`` returns under each name; a name that is not here is only logged."""
        return {"load_balance": self.load_balance_weight, "router_z": self.router_z_weight}


KEYS = (
    ("vocabulary_size", "vocab_size", None),
    ("hidden_size", "hidden_size", None),
    ("layers", "num_hidden_layers", None),
    ("heads", "num_attention_heads", None),
    ("feed_forward_size", "intermediate_size", None),
    ("tied_embeddings", "tie_word_embeddings", False),
    ("initializer_deviation", "initializer_range", 0.02),
    ("load_balance_weight", "router_aux_loss_coef", 0.001),
    ("router_z_weight", "router_z_loss_coef", 0.0),
    ("router_jitter", "router_jitter_noise", 0.0),
)
QWEN_KEYS = (("normalize_weights", "norm_topk_prob", False), ("sparse_step", "decoder_sparse_step", 1))
# What transformers takes where config.json is silent: keys and values, epsilon, positions, experts, experts of a token, and the width of one.
SILENT = {
    "mixtral": {"key_value_heads": 8, "norm_epsilon": 1e-5, "maximum_positions": 131072, "experts": 8, "experts_per_token": 2},
    "qwen2_moe": {"key_value_heads": 16, "norm_epsilon": 1e-6, "maximum_positions": 32768, "experts": 60, "experts_per_token": 4, "expert_size": 1408},
    "qwen3_moe": {"key_value_heads": 4, "norm_epsilon": 1e-6, "maximum_positions": 32768, "experts": 128, "experts_per_token": 8, "expert_size": 768},
}
TITLES = {"mixtral": "Mixtral", "qwen2_moe": "Qwen2Moe", "qwen3_moe": "Qwen3Moe"}


def classes(architecture: str) -> dict[str, str]:
    """transformers' class for each head structure."""
    name = TITLES[architecture]
    return {"": f"{name}ForCausalLM", "sequence": f"{name}ForSequenceClassification", "token": f"{name}ForTokenClassification", "vector": f"{name}Model"}


def from_json(plain: dict[str, Any], file: str) -> dict[str, Any]:
    """The fields of a shape that the content of a config.json says."""
    name = plain["model_type"]
    if (activation := plain.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise DataError("{file}: hidden_act {name!r} is not known", "Luban's decoder has silu", file=file, name=activation)
    if name == "qwen2_moe" and plain.get("qkv_bias", True) is not True:
        raise DataError("{file}: {key} is not known to be {value}", "Luban's {name} always has these biases", file=file, key="qkv_bias", value=plain["qkv_bias"], name=name)
    values = named_values(plain, KEYS, file) | SILENT[name]
    for ours, theirs in (
        ("norm_epsilon", "rms_norm_eps"), ("maximum_positions", "max_position_embeddings"), ("experts_per_token", "num_experts_per_tok"),
        ("experts", "num_local_experts"), ("experts", "num_experts"),
    ):  # fmt: skip
        values[ours] = plain.get(theirs, values[ours])
    if "num_key_value_heads" in plain:
        values["key_value_heads"] = plain["num_key_value_heads"] or "auto"
    values["head_dim"] = "auto" if name == "qwen2_moe" else plain.get("head_dim") or "auto"
    if name != "mixtral":
        values |= named_values(plain, QWEN_KEYS, file)
        values["expert_size"] = plain.get("moe_intermediate_size", values["expert_size"])
        values["dense_layers"] = plain.get("mlp_only_layers") or []
    if name == "qwen2_moe":
        values["shared_expert_size"] = plain.get("shared_expert_intermediate_size", 5632)
    if name == "qwen3_moe":
        values["attention_bias"] = bool(plain.get("attention_bias", False))
    theta = {"rope_theta": 1e6} if name == "mixtral" else {}
    return values | rope_from_json(theta | plain, file) | _windows(plain, name, file)


def _windows(plain: dict[str, Any], name: str, file: str) -> dict[str, Any]:
    if name == "mixtral":
        return {"sliding_window": plain.get("sliding_window")}
    if not plain.get("use_sliding_window", False):
        return {}
    window = plain.get("sliding_window", 4096)
    if name == "qwen3_moe" or not window:
        return {"sliding_window": window or None}
    layers, last = plain["num_hidden_layers"], plain.get("max_window_layers", 28)
    for key, value in (("num_hidden_layers", layers), ("max_window_layers", last)):
        if not isinstance(value, int):
            raise DataError("{file}: {key} is no whole number", "", "restore the file", file=file, key=key)
    kinds = plain.get("layer_types") or [
        "sliding_attention" if index % 2 == 0 and index < last else "full_attention" for index in range(min(layers, MOST_LAYERS))
    ]
    return {"sliding_window": window, "layer_types": kinds}


def to_json(shape: MixtureShapeConfig) -> dict[str, Any]:
    """A shape's part of config.json. Rotary positions are written in the old form and in the new."""
    name = shape.architecture
    plain: dict[str, Any] = {"hidden_act": "silu"} | {theirs: getattr(shape, ours) for ours, theirs, _ in KEYS}
    plain |= {
        "rms_norm_eps": shape.norm_epsilon,
        "num_key_value_heads": shape.key_value_heads,
        "max_position_embeddings": shape.maximum_positions,
        "head_dim": shape.head_dim,
        "attention_dropout": 0.0,
        "num_experts_per_tok": shape.experts_per_token,
        "num_local_experts" if name == "mixtral" else "num_experts": shape.experts,
        "output_router_logits": False,
    }
    plain |= rope_to_json(shape.rope_theta, shape.rope_scaling, shape.maximum_positions)
    sliding = [window is not None for window in shape.windows]
    window = shape.sliding_window if any(sliding) else None
    if name == "mixtral":
        return plain | {"sliding_window": window}
    plain |= {theirs: getattr(shape, ours) for ours, theirs, _ in QWEN_KEYS}
    plain |= {"moe_intermediate_size": shape.expert_size, "mlp_only_layers": shape.dense_layers, "use_sliding_window": window is not None, "sliding_window": window}
    if name == "qwen3_moe":
        return plain | {"attention_bias": shape.attention_bias}
    kinds = ["sliding_attention" if slides else "full_attention" for slides in sliding]
    return plain | {"shared_expert_intermediate_size": shape.shared_expert_size, "qkv_bias": True, "layer_types": kinds, "max_window_layers": shape.layers}


# ---- closed forms (see counts.py) -------------------------------------------------------------------------------------


def parameters(shape: MixtureShapeConfig) -> dict[str, int]:
    """Number of parameters by part; ``total`` counts every expert, ``matrices`` only those that a token is multiplied with."""
    width, queries, keys = shape.hidden_size, shape.heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    attention = 2 * width * queries + 2 * width * keys
    biases = (queries + 2 * keys) * shape.query_bias + width * shape.output_bias
    sparse, dense = shape.sparse.count(True), shape.sparse.count(False)
    shared = 3 * width * shape.shared_expert_size + (width if shape.shared_expert_size else 0)
    always = dense * 3 * width * shape.feed_forward_size + sparse * (shared + width * shape.experts)
    one = 3 * width * shape.expert_size
    counts = {
        "embedding": shape.vocabulary_size * width,
        "attention": shape.layers * (attention + biases),
        "feed_forward": always + sparse * shape.experts * one,
        "norms": shape.layers * (2 * width + 2 * shape.head_dim * shape.query_key_norm) + width,
        "output": 0 if shape.tied_embeddings else shape.vocabulary_size * width,
    }
    counts["total"] = sum(counts.values())
    counts["matrices"] = shape.layers * attention + always + sparse * shape.experts_per_token * one + shape.vocabulary_size * width
    return counts


def activation_elements(shape: MixtureShapeConfig, recompute: bool = False) -> float:
    """Numbers a token that the layers keep for the backward pass, without the loss.

    Beside what a dense layer keeps (see counts.py), a mixture keeps for each of a token's experts the input, the output in two
    orders and the four tensors inside, and for the router three tensors of its experts.
    """
    queries, keys = shape.heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    attention = 6 * shape.hidden_size + (2 * queries + 2 * keys) * (2 if shape.query_key_norm else 1)
    dense = attention + 4 * shape.feed_forward_size
    shared = 4 * shape.shared_expert_size + (2 + shape.hidden_size if shape.shared_expert_size else 0)
    sparse = attention + shape.experts_per_token * (2 * shape.hidden_size + 4 * shape.expert_size + 4) + shape.experts + shared
    layers = [sparse if mixed else dense for mixed in shape.sparse]
    kept = shape.layers * shape.hidden_size + max(layers) if recompute else sum(layers)
    return kept + 2 * shape.hidden_size
