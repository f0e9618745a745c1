"""The typed configs of `adapter`: which few weights learn on a model that stays as it is."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from luban.foundation.config import Auto, Config, field, one_of

Share = Annotated[float, Field(ge=0, lt=1)]


class AdapterConfig(Config):
    """What all methods share."""

    also_train: list[str] = field([], "What else learns, and is saved whole beside the adapter: embeddings, output, norms, biases, or a part of a parameter's name.")


class TargetedConfig(AdapterConfig):
    """Methods that sit on linear layers."""

    targets: list[str] | Auto = field("auto", "Ends of the names of the layers that are adapted, such as [q_proj, v_proj]; auto: every linear or recurrent layer of the blocks (of experts: the attention and what all tokens share); ia3: keys, values and the last matrix of each feed-forward layer.")


class LoraConfig(TargetedConfig):
    """A product of two thin matrices beside each weight (Hu et al. 2021, arXiv:2106.09685), and what was made of it."""

    method: Literal["lora", "rslora", "dora", "lora_plus", "pissa"] = field(
        "lora",
        "lora; rslora: scaled by the root of the rank (Kalajdzievski 2023); dora: direction and magnitude apart (Liu et al. 2024); lora_plus: B learns faster than A (Hayou et al. 2024); pissa: begins with the weight's own largest directions (Meng et al. 2024).",
    )
    rank: PositiveInt = field(8, "Columns of the thin matrices.")
    alpha: PositiveFloat | Auto = field("auto", "The product counts alpha/rank (rslora: alpha/√rank); auto makes that factor 2, of pissa 1.")
    dropout: Share = field(0.0, "Dropout before the thin matrices.")
    rank_stabilized: bool | Auto = field("auto", "Divide alpha by the root of the rank; auto: only with rslora.")
    weight_decomposed: bool | Auto = field("auto", "Learn each output's magnitude apart from its direction; auto: only with dora.")
    initial: Literal["auto", "zero", "pissa"] = field("auto", "First values: zero leaves the model as it is; pissa takes the weight's largest singular directions out of it; auto: as the method says.")
    b_rate: PositiveFloat | Auto = field("auto", "Learning rate of B as a multiple of A's; auto: 16 with lora_plus, else 1.")

    foreign: ClassVar[dict[str, str]] = {
        "r": "rank", "lora_rank": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets", "lora_target": "targets", "use_rslora": "rank_stabilized",
        "use_dora": "weight_decomposed", "init_lora_weights": "initial", "loraplus_lr_ratio": "b_rate", "modules_to_save": "also_train", "additional_target": "also_train",
    }  # fmt: skip

    @property
    def scale(self) -> float:
        """The factor of the product B·A."""
        by = self.rank**0.5 if self.stabilized else self.rank
        if self.alpha == "auto":
            return 1.0 if self.starts_with_pissa else 2.0
        return self.alpha / by

    @property
    def stabilized(self) -> bool:
        return self.method == "rslora" if self.rank_stabilized == "auto" else self.rank_stabilized

    @property
    def decomposed(self) -> bool:
        return self.method == "dora" if self.weight_decomposed == "auto" else self.weight_decomposed

    @property
    def starts_with_pissa(self) -> bool:
        return self.method == "pissa" if self.initial == "auto" else self.initial == "pissa"

    @property
    def rate_of_b(self) -> float:
        return (16.0 if self.method == "lora_plus" else 1.0) if self.b_rate == "auto" else self.b_rate


class AdaLoraConfig(TargetedConfig):
    """LoRA as singular values and vectors, whose ranks move to the layers that need them (Zhang et al. 2023, arXiv:2303.10512)."""

    method: Literal["adalora"] = field("adalora", "The method.")
    rank: PositiveInt = field(8, "Mean rank a layer at the end.")
    initial_rank: PositiveInt | Auto = field("auto", "Rank of every layer at the beginning; auto: half as much again.")
    warmup_share: Share = field(0.1, "Share of the run before ranks move.")
    final_share: Share = field(0.3, "Share of the run, at its end, in which ranks no longer move.")
    every: PositiveInt | Auto = field("auto", "Steps between two allocations; auto: a hundredth of the run.", unit="steps")
    alpha: PositiveFloat | Auto = field("auto", "The product counts alpha/initial_rank; auto makes that factor 2.")
    dropout: Share = field(0.0, "Dropout before the vectors.")
    orthogonality: NonNegativeFloat = field(0.5, "Weight of the loss that keeps the vectors orthogonal.")
    sensitivity_decay: Share = field(0.85, "Decay of the average of each value's importance.")
    uncertainty_decay: Share = field(0.85, "Decay of the average of how much that importance varies.")

    foreign: ClassVar[dict[str, str]] = {
        "init_r": "initial_rank", "target_r": "rank", "tinit": "warmup_share", "tfinal": "final_share", "deltaT": "every", "orth_reg_weight": "orthogonality",
        "beta1": "sensitivity_decay", "beta2": "uncertainty_decay", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets",
    }  # fmt: skip

    @model_validator(mode="after")
    def _consistent(self) -> AdaLoraConfig:
        if self.start_rank < self.rank:
            raise ValueError(f"initial_rank {self.start_rank} is below rank {self.rank}; ranks only fall")
        if self.warmup_share + self.final_share >= 1:
            raise ValueError("warmup_share and final_share leave no steps in which ranks could move")
        return self

    @property
    def start_rank(self) -> int:
        """Rank of every matrix at the beginning."""
        return -(-3 * self.rank // 2) if self.initial_rank == "auto" else self.initial_rank

    @property
    def scale(self) -> float:
        """The factor of the product, the same at every rank."""
        return 2.0 if self.alpha == "auto" else self.alpha / self.start_rank


class VeraConfig(TargetedConfig):
    """Fixed random matrices that all layers share, and two learned vectors a layer (Kopiczko et al. 2024, arXiv:2310.11454)."""

    method: Literal["vera"] = field("vera", "The method.")
    rank: PositiveInt = field(256, "Columns of the random matrices.")
    initial: PositiveFloat = field(0.1, "First value of the vector d.")
    projection_seed: NonNegativeInt = field(0, "Seed of the random matrices.")
    dropout: Share = field(0.0, "Dropout before the matrices.")

    foreign: ClassVar[dict[str, str]] = {"r": "rank", "d_initial": "initial", "projection_prng_key": "projection_seed", "vera_dropout": "dropout", "target_modules": "targets"}


class IA3Config(TargetedConfig):
    """Factors for keys, values and the inside of the feed-forward layers (Liu et al. 2022, arXiv:2205.05638)."""

    method: Literal["ia3"] = field("ia3", "The method.")
    feed_forward: list[str] | Auto = field("auto", "Those of the targets whose input is scaled rather than their output; auto: those that are the last matrix of a feed-forward layer.")

    foreign: ClassVar[dict[str, str]] = {"target_modules": "targets", "feedforward_modules": "feed_forward"}


class BottleneckConfig(AdapterConfig):
    """Small layers of their own inside each block: houlsby after attention and after the feed-forward layer (Houlsby et al. 2019), pfeiffer after the latter (Pfeiffer et al. 2021)."""

    method: Literal["houlsby", "pfeiffer"] = field("pfeiffer", "Where the small layers sit.")
    reduction: PositiveInt = field(16, "The model's width over the small layer's.")
    activation: Literal["relu", "gelu", "silu"] = field("relu", "Between the two matrices.")
    dropout: Share = field(0.0, "Dropout of the small layer's output.")

    foreign: ClassVar[dict[str, str]] = {"reduction_factor": "reduction", "non_linearity": "activation"}


class PrefixConfig(AdapterConfig):
    """Learned keys and values before the first token, in each layer (Li & Liang 2021, arXiv:2101.00190)."""

    method: Literal["prefix"] = field("prefix", "The method.")
    tokens: PositiveInt = field(20, "Length of the prefix.", unit="tokens")
    projection: bool = field(False, "Learn the prefix through a two-layer network, as the paper does; the network is not saved.")
    projection_width: PositiveInt | Auto = field("auto", "Width of that network; auto: the model's.")

    foreign: ClassVar[dict[str, str]] = {"num_virtual_tokens": "tokens", "prefix_projection": "projection", "encoder_hidden_size": "projection_width"}


class PTuningConfig(AdapterConfig):
    """Learned vectors before the text, made by a small network (Liu et al. 2021, arXiv:2103.10385)."""

    method: Literal["p_tuning"] = field("p_tuning", "The method.")
    tokens: PositiveInt = field(20, "How many vectors.", unit="tokens")
    network: Literal["mlp", "lstm"] = field("mlp", "What makes them.")
    width: PositiveInt | Auto = field("auto", "Width of the network; auto: the model's.")
    layers: PositiveInt = field(2, "Layers of the lstm.", unit="layers")

    foreign: ClassVar[dict[str, str]] = {"num_virtual_tokens": "tokens", "encoder_reparameterization_type": "network", "encoder_hidden_size": "width"}


class PromptConfig(AdapterConfig):
    """Learned vectors before the text (Lester et al. 2021, arXiv:2104.08691)."""

    method: Literal["prompt"] = field("prompt", "The method.")
    tokens: PositiveInt = field(20, "How many vectors.", unit="tokens")
    text: str = field("", "A text whose tokens' embeddings they begin with; empty: those of tokens drawn at random.")

    foreign: ClassVar[dict[str, str]] = {"num_virtual_tokens": "tokens", "prompt_tuning_init_text": "text"}


class BitFitConfig(AdapterConfig):
    """The biases alone (Ben Zaken et al. 2022, arXiv:2106.10199)."""

    method: Literal["bitfit"] = field("bitfit", "The method.")
    add: bool | Auto = field("auto", "Give linear layers that have no bias one; auto: where the model has no bias at all.")


METHODS = (LoraConfig, AdaLoraConfig, VeraConfig, IA3Config, BottleneckConfig, PrefixConfig, PTuningConfig, PromptConfig, BitFitConfig)
NAMES = {name: cls for cls in METHODS for name in get_args(cls.model_fields["method"].annotation)}


def _from_name(value: Any) -> Any:
    """``adapter: lora`` is short for ``adapter: {method: lora}``; "none" for no adapter."""
    if value == "none":
        return None
    return {"method": value} if isinstance(value, str) else value


AnyAdapter = Annotated[one_of("method", *METHODS) | None, BeforeValidator(_from_name)]


class MergeConfig(Config):
    """Make adapters, or models tuned from one base, part of that base: one model, or one adapter, of them all."""

    sources: str | list[str] = field(..., "Adapter directories, or model directories tuned from one base.", input=True)
    base: str = field("", "The base they were made of; empty: the one that the adapters name.", input=True)
    weights: list[float] = field([], "How much of each source's change is added; empty: 1 for one source, equal shares for several.")
    combine: Literal["linear", "ties", "dare", "dare_ties"] = field(
        "linear",
        "How several changes become one: linear: their weighted sum; ties: the largest of each, and of these the ones that agree in sign (Yadav et al. 2023); dare: a random part of each, scaled up (Yu et al. 2024); dare_ties: both.",
    )
    density: Annotated[float, Field(gt=0, le=1)] = field(0.2, "Share of each change that is kept (ties, dare).")
    into: Literal["model", "adapter"] = field("model", "Write a whole model, or a LoRA adapter of the combined change.")
    rank: PositiveInt | Auto = field("auto", "Rank of that adapter; auto: the sum of the sources' ranks, which is exact for linear.")
    dtype: Literal["float32", "bfloat16", "float16"] = field("float32", "Type of the numbers in the model that is written; all are computed in float32. bfloat16 and float16 halve it, and round.")

    @model_validator(mode="after")
    def _consistent(self) -> MergeConfig:
        if self.into == "adapter" and self.dtype != "float32":
            raise ValueError(f"dtype {self.dtype} is of a whole model; an adapter is written in float32")
        return self
