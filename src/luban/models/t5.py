"""T5, T5 v1.1, FLAN-T5 and mT5 (arXiv:1910.10683, arXiv:2002.05202, arXiv:2010.11934); parameters bear transformers' names."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luban.models.base import draw
from luban.models.classic import FUNCTIONS, split_heads
from luban.models.embedding import Embedding
from luban.models.encoder_decoder import Crossing, EncoderDecoder, Stack, attend, source_keys
from luban.models.given import GatheredKeys, GivenKeys, OnePass
from luban.models.heads import Head
from luban.models.layers import RMSNorm
from luban.models.source_cache import SourceCache
from luban.models.t5_shape import T5ShapeConfig


class T5(EncoderDecoder):
    """Source and target tokens to hidden states. Under a head for sequences or tokens the trunk stands below ``transformer.``, as transformers has it."""

    prefix: ClassVar[str] = "transformer."
    output_names: ClassVar[tuple[str, ...]] = ("SelfAttention.o.weight", "EncDecAttention.o.weight", "DenseReluDense.wo.weight")
    shape: T5ShapeConfig

    def __init__(self, shape: T5ShapeConfig):
        super().__init__(shape)
        self.shared = Embedding(shape.vocabulary_size, shape.hidden_size)
        self.encoder = _Stack(shape, decoder=False)
        self.decoder = _Stack(shape, decoder=True)
        if not shape.tied_embeddings:
            self.lm_head = nn.Linear(shape.hidden_size, shape.vocabulary_size, bias=False)

    @property
    def trunk(self) -> nn.Module:
        """What holds the embedding and the stacks."""
        return self._modules.get("transformer") or self

    def enter_stack(self, stack: Stack, tokens: Tensor, segments: Tensor | None, cache: SourceCache | OnePass | None) -> Tensor:
        return stack.dropout(self.trunk.shared(tokens))

    def output_product(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.shape.scaled_output:
            hidden = hidden * self.shape.hidden_size**-0.5
        return hidden, self.output_weight, None

    def blocks(self) -> list[nn.Module]:
        trunk = self.trunk
        return [*trunk.encoder.blocks(), *(trunk.decoder.blocks() if self.has_decoder() else ())]

    def beside_blocks(self) -> list[nn.Module]:
        trunk = self.trunk
        return [stack.first.relative_attention_bias for stack in (trunk.encoder, *((trunk.decoder,) if self.has_decoder() else ())) if "0" in stack.block._modules]

    @property
    def embedding(self) -> nn.Embedding:
        return self.trunk.shared

    def output_layer(self) -> nn.Linear | None:
        return getattr(self, "lm_head", None)

    # ---- heads ---------------------------------------------------------------------------------------------------------

    def drop_outputs(self) -> None:
        if hasattr(self, "lm_head"):
            del self.lm_head

    def arrange(self, head: Head, decoder: bool) -> None:
        below = head.structure in ("sequence", "token")
        parts = {name: module for name, module in self.trunk.named_children() if name in ("shared", "encoder", "decoder")}
        if not decoder:
            parts.pop("decoder", None)
        for name in ("shared", "encoder", "decoder", "transformer"):
            self._modules.pop(name, None)
        owner: nn.Module = self
        if below:
            owner = self.transformer = nn.Module()
        for name, module in parts.items():
            owner.add_module(name, module)

    def is_output(self, name: str) -> bool:
        trunk = ("shared.", "encoder.", "decoder.") if self.has_decoder() else ("shared.", "encoder.")
        return not name.removeprefix(self.prefix).startswith(trunk)

    @classmethod
    def rename(cls, name: str) -> str | None:
        own = name.removeprefix(cls.prefix)
        # Copies of the shared embedding, and a table that early versions wrote and none ever read.
        if own in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight") or own.endswith("EncDecAttention.relative_attention_bias.weight"):
            return None
        return own

    # ---- first values --------------------------------------------------------------------------------------------------

    def first_values(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        if self.shape.initializer != "t5" or parameter.dim() == 1:
            super().first_values(name, parameter, generator)
            return
        # Mesh TensorFlow's rule: products of unit variance without a scale in attention, so that queries carry it.
        shape, leaf = self.shape, name.rpartition(".")[0].rpartition(".")[2]
        width = shape.hidden_size
        deviation = {
            "shared": 1.0,
            "q": (width * shape.head_dim) ** -0.5,
            "o": (shape.heads * shape.head_dim) ** -0.5,
            "wo": shape.feed_forward_size**-0.5,
        }.get(leaf, width**-0.5)
        parameter.copy_(draw(parameter.shape, "normal", shape.initializer_factor * deviation, generator))


class _Stack(Stack):
    """The encoder or the decoder; its first layer holds the biases of relative positions for all."""

    place: ClassVar[str] = "block"

    def __init__(self, shape: T5ShapeConfig, decoder: bool):
        super().__init__()
        self.count = shape.decoder_layers if decoder else shape.layers
        self.block = nn.ModuleList(_Block(shape, decoder, first=index == 0) for index in range(self.count))
        self.final_layer_norm = RMSNorm(shape.hidden_size, shape.norm_epsilon)
        self.dropout = nn.Dropout(shape.dropout)

    @property
    def first(self) -> _Attention:
        """What has the biases."""
        return self.block._modules["0"].layer[0].SelfAttention

    def beside(self, states: Tensor, mask: Tensor | None, memory: Tensor | None, crossing: Crossing | None, cache: SourceCache | OnePass | None) -> list[tuple[Any, ...]]:
        seq, held = states.shape[1], 0 if cache is None else cache.length
        places = cache.places if isinstance(cache, GivenKeys) else None
        total = cache.total if isinstance(cache, GatheredKeys) else held + seq
        bias = self.first.position_bias(seq, held, states.device, places, total)  # [rows or 1, heads, seq, total]
        if mask is not None:
            bias = bias.masked_fill(~mask, -torch.inf)
        return super().beside(states, bias, memory, crossing, cache)

    def finish(self, states: Tensor) -> Tensor:
        return self.dropout(self.final_layer_norm(states))


class _Block(nn.Module):
    """Attention to itself, in the decoder attention to the source, and the feed-forward layer."""

    def __init__(self, shape: T5ShapeConfig, decoder: bool, first: bool):
        super().__init__()
        parts: list[nn.Module] = [_Part(shape, "SelfAttention", _Attention(shape, decoder, first))]
        if decoder:
            parts.append(_Part(shape, "EncDecAttention", _Attention(shape, decoder, False)))
        parts.append(_Part(shape, "DenseReluDense", _Gated(shape) if shape.gated else _Plain(shape)))
        self.layer = nn.ModuleList(parts)

    def forward(
        self, states: Tensor, bias: Tensor, memory: Tensor | None, crossing: Crossing | None, cache: SourceCache | None, index: int
    ) -> Tensor:
        states = self.layer[0](states, bias, cache, index)
        if memory is not None:
            states = self.layer[1](states, crossing, cache, index, memory)
        return self.layer[-1](states)


class _Part(nn.Module):
    """A part of a layer on the normalised stream, added to it."""

    def __init__(self, shape: T5ShapeConfig, name: str, inner: nn.Module):
        super().__init__()
        self.add_module(name, inner)
        self.layer_norm = RMSNorm(shape.hidden_size, shape.norm_epsilon)
        self.dropout = nn.Dropout(shape.dropout)
        self.name = name

    def forward(self, states: Tensor, *rest: object) -> Tensor:
        return states + self.dropout(self.get_submodule(self.name)(self.layer_norm(states), *rest))


class _Attention(nn.Module):
    """Attention whose scores are not scaled, but biased by distance."""

    def __init__(self, shape: T5ShapeConfig, decoder: bool, first: bool):
        super().__init__()
        inner = shape.heads * shape.head_dim
        self.q = nn.Linear(shape.hidden_size, inner, bias=False)
        self.k = nn.Linear(shape.hidden_size, inner, bias=False)
        self.v = nn.Linear(shape.hidden_size, inner, bias=False)
        self.o = nn.Linear(inner, shape.hidden_size, bias=False)
        if first:
            self.relative_attention_bias = Embedding(shape.relative_buckets, shape.heads)
        self.heads, self.dropout, self.decoder = shape.heads, nn.Dropout(shape.dropout), decoder
        self.buckets, self.distance = shape.relative_buckets, shape.relative_distance

    def position_bias(self, seq: int, held: int, device: torch.device, places: Tensor | None = None, total: int = 0) -> Tensor:
        """What is added to the scores [rows or 1, heads, seq, held + seq] of ``seq`` tokens after ``held``, which each document of a row has before
        it where ``places`` [rows or 1, seq] say how far from their first the tokens are. ``total``: of so many keys, where some come after the tokens."""
        keys = torch.arange(max(total, held + seq), device=device)
        ahead = (keys[None, :] - keys[held : held + seq, None])[None]  # [1, seq, held + seq]
        if places is not None:
            before = keys[:held] - places[:, :, None]  # [rows or 1, seq, held]
            ahead = torch.cat([before, ahead[:, :, held:].expand(len(before), -1, -1)], dim=-1)
        return self.relative_attention_bias(bucket(ahead, not self.decoder, self.buckets, self.distance)).permute(0, 3, 1, 2)

    def forward(self, states: Tensor, mask: Tensor | Crossing | None, cache: SourceCache | None, index: int, memory: Tensor | None = None) -> Tensor:
        queries = split_heads(self.q(states), self.heads)
        if memory is not None:
            keys, values = source_keys(memory, self.k, self.v, self.heads, cache, index)
        else:
            keys, values = split_heads(self.k(states), self.heads), split_heads(self.v(states), self.heads)
            if cache is not None:
                keys, values = cache.update(index, keys, values)
        return self.o(attend(queries, keys, values, mask, self.dropout.p if self.training else 0.0, scale=1.0))


class _Plain(nn.Module):
    """Two matrices with an activation between."""

    def __init__(self, shape: T5ShapeConfig):
        super().__init__()
        self.wi = nn.Linear(shape.hidden_size, shape.feed_forward_size, bias=False)
        self.wo = nn.Linear(shape.feed_forward_size, shape.hidden_size, bias=False)
        self.dropout = nn.Dropout(shape.dropout)
        self.activation = FUNCTIONS[shape.activation]

    def forward(self, states: Tensor) -> Tensor:
        return self.wo(self.dropout(self.activation(self.wi(states))))


class _Gated(nn.Module):
    """A gated linear unit (arXiv:2002.05202)."""

    def __init__(self, shape: T5ShapeConfig):
        super().__init__()
        self.wi_0 = nn.Linear(shape.hidden_size, shape.feed_forward_size, bias=False)
        self.wi_1 = nn.Linear(shape.hidden_size, shape.feed_forward_size, bias=False)
        self.wo = nn.Linear(shape.feed_forward_size, shape.hidden_size, bias=False)
        self.dropout = nn.Dropout(shape.dropout)
        self.activation = FUNCTIONS[shape.activation]

    def forward(self, states: Tensor) -> Tensor:
        return self.wo(self.dropout(self.activation(self.wi_0(states)) * self.wi_1(states)))


def bucket(ahead: Tensor, both: bool, buckets: int, distance: int) -> Tensor:
    """The bucket of each distance (key minus query). The nearer half have one each, the others widen by equal factors up to ``distance``.

    With ``both`` directions, half of the buckets are for keys ahead; otherwise what lies ahead counts as distance 0 (it is masked).
    """
    if both:
        buckets //= 2
        side, away = (ahead > 0).long() * buckets, ahead.abs()
    else:
        side, away = torch.zeros_like(ahead), (-ahead).clamp(min=0)
    exact = buckets // 2
    # In float32, and in this order: borders between buckets fall where the models' makers put them.
    grown = torch.log(away.clamp(min=1).float() / exact) / math.log(distance / exact) * (buckets - exact)
    return side + torch.where(away < exact, away, (exact + grown.long()).clamp(max=buckets - 1))
