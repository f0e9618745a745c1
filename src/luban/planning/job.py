"""What is to be trained, and how several devices share it: plain numbers, of a recipe or of nothing but a shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WIDTHS = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


@dataclass(frozen=True)
class Habits:
    """What a trainer holds a number of, in bytes, and what it does with logits and attention: Luban's own by default. Others' are for comparing with what they published."""

    weights: float = 4.0
    gradients: float = 4.0
    states: float | None = None  # of the optimizer, for each number that learns; None: as Luban's optimizer of that name holds them
    stream: float = 4.0  # of the residual stream and its norms
    gathered: float = 4.0  # of weights that are gathered from shards
    reduced: float = 4.0  # of gradients that are summed over ranks
    logits: str = "chunked"  # whole: all of a micro-batch at once, in the products' type, in float32, and their gradient; split: in float32 an eighth at a time
    copies: bool = True  # autocast copies weights and inputs into the products' type; else weights are gathered in it, or held in it
    fused_norm: bool | None = None
    second_products: bool = False  # selective recompute keeps the results of every second product only
    plain_attention: bool = False  # scores are made, of all pairs, and go through memory
    rate: float = 1.0  # of products, over the device's: 2 in 8 bits


@dataclass(frozen=True)
class Layout:
    """Who holds what. Of ``pipeline · replicas · shards · context · tensor`` devices; ``expert`` of those that hold replicas, shards and context share a layer's experts."""

    replicas: int = 1
    shards: int = 1
    shard: str = "none"  # of weights, gradients and states: none, gradients, full
    tensor: int = 1
    context: int = 1
    expert: int = 1
    pipeline: int = 1
    schedule: str = "1f1b"
    stages_per_rank: int = 1

    @property
    def devices(self) -> int:
        return self.pipeline * self.replicas * self.shards * self.context * self.tensor

    @property
    def turning(self) -> bool:
        """Whether a pipeline's stages go through the devices and back, so that the first and the last are the same one's."""
        return self.schedule == "zero_bubble" and self.stages_per_rank == 2

    @property
    def readers(self) -> int:
        """Devices that read rows of their own."""
        return self.replicas * self.shards

    @property
    def held(self) -> int:
        """Devices over which weights or gradients are cut into shards."""
        return self.shards * self.context if self.shard != "none" else 1

    def cut(self, of_expert: bool) -> int:
        """Devices over which a parameter that this one has a part of is cut into shards; those of experts lie on the devices with the same experts."""
        return self.held if not of_expert or self.expert == 1 or self.shard == "none" else self.replicas * self.shards * self.context // self.expert

    def text(self) -> str:
        """What of it is not 1, for people: ``replicas 8 × tensor 2``."""
        parts = [f"{name} {value}" for name in ("pipeline", "replicas") if (value := getattr(self, name)) > 1]
        if self.shards > 1:
            parts.append(f"shards {self.shards} ({self.shard})")
        parts += [f"{name} {value}" for name in ("context", "tensor", "expert") if (value := getattr(self, name)) > 1]
        return " × ".join(parts) or "one device"

    def recipe(self) -> dict[str, Any]:
        """The ``layout`` block of a recipe that asks for it."""
        block: dict[str, Any] = {"shard": self.shard if self.shards > 1 else "none", "replicas": self.replicas}
        block |= {name: value for name in ("tensor", "context", "expert", "pipeline") if (value := getattr(self, name)) > 1}
        if self.pipeline > 1:
            block |= {"schedule": self.schedule, "stages_per_rank": self.stages_per_rank}
        return block


def may_be_own(config: Any, device: str, precision: str) -> bool:
    """Whether a training runs Luban's own layers, as far as its config says: on a processor with a compiler (luban.training.precision.choose_layers)."""
    plain = config.engine == "torch" and config.compile is not True and config.recompute in ("none", "full")
    return device == "cpu" and precision == "float32" and plain and "torch" not in (config.layers, config.attention)


@dataclass(frozen=True)
class Job:
    """One training. ``rows`` are those of a micro-batch on one device, ``step_rows`` those of a step on all of them."""

    shape: Any
    sequence_length: int
    step_rows: int
    rows: int = 1
    tokens: float = 0.0  # to read in all
    optimizer: str = "adamw"
    momentum: float = 0.0  # of Adafactor and SGD
    precision: str = "float32"
    weights: str = "float32"
    engine: str = "torch"
    recompute: str | int = "none"
    adapter: Any = None  # a config of luban.adapters
    quantization: Any = None
    objective: str = "causal"
    head_outputs: int = 0  # of a task; 0: a language model
    averaged: bool = False
    scored: float = 1.0  # share of the places that are scored
    device: str = "cpu"  # or a device with fused kernels
    source_length: int = 0  # of an encoder–decoder
    compile: bool = False
    own_layers: bool = False  # on a processor: see luban.models.own_layers
    state: str = "memory"  # of the optimizer, or disk: in files of which one matrix's at a time is read
    sends: bool = True  # ranks are there that send each other something, of which gloo makes copies
    offload: bool = False  # weights, gradients and states wait in the host's memory, in shards
    written: tuple[tuple[str, Any], ...] = ()  # what the recipe says of its layout
    habits: Habits = Habits()

    @property
    def compute(self) -> float:
        """Bytes of a number in products."""
        return WIDTHS[self.precision]

    @property
    def away(self) -> bool:
        """Whether what waits in the host's memory is not in the device's."""
        return self.offload and self.device != "cpu"

    def micro_batches(self, layout: Layout) -> int:
        """Forward passes of a device in a step."""
        return max(1, -(-self.step_rows // (layout.readers * self.rows)))


def bytes_of_codes(config: Any) -> float:
    """Bytes of a number of a quantised matrix, its scales included (luban.models.quantized_values)."""
    codes = {"nf4": 0.5, "int4": 0.5, "int8": 1.0}[config.format]
    group = config.group_size if isinstance(config.group_size, int) else {"nf4": 64, "int4": 32}.get(config.format, 0)
    if not group:
        return codes + 0.002  # a scale for each row
    scale = (1.0 + 8.0 / 256) if config.double_quantization else 4.0
    return codes + scale / group + (1.0 / group if config.format == "int4" and not config.symmetric else 0.0)
