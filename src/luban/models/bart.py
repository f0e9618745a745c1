"""BART, mBART and Marian, the original Transformer (arXiv:1910.13461, arXiv:2001.08210, arXiv:1706.03762); parameters bear transformers' names."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.foundation.errors import DataError
from luban.models.bart_shape import OFFSET, BartShapeConfig
from luban.models.base import draw
from luban.models.classic import FUNCTIONS, split_heads, text_positions
from luban.models.embedding import Embedding
from luban.models.encoder_decoder import Crossing, EncoderDecoder, Stack, attend, source_keys
from luban.models.given import GatheredKeys, OnePass
from luban.models.heads import Head
from luban.models.source_cache import SourceCache


class Bart(EncoderDecoder):
    """Source and target tokens to hidden states; learned positions or sinusoids, norms after each part or before, as the shape says."""

    output_names: ClassVar[tuple[str, ...]] = ("attn.out_proj.weight", "fc2.weight")
    optional: ClassVar[tuple[str, ...]] = ("final_logits_bias",)
    shape: BartShapeConfig

    def __init__(self, shape: BartShapeConfig):
        super().__init__(shape)
        self.model = _Trunk(shape)
        # Added to the logits and not trained: zero but in models that Marian made. A buffer in transformers.
        self.final_logits_bias = nn.Parameter(torch.zeros(1, shape.vocabulary_size))
        self.dropout = nn.Dropout(shape.dropout)
        self._sinusoids: dict[torch.device, Tensor] = {}

    def enter_stack(self, stack: Stack, tokens: Tensor, segments: Tensor | None, cache: SourceCache | OnePass | None) -> Tensor:
        """Embeddings with positions [rows, seq, dim], normalised where the family does."""
        shape = self.shape
        states = self.model.shared(tokens)
        if shape.scaled_embedding:
            states = states * math.sqrt(shape.hidden_size)
        limit = shape.maximum_positions if shape.learned_positions else sys.maxsize
        held = 0 if cache is None else cache.length
        positions = cache.positions(tokens.shape[1]) if isinstance(cache, GatheredKeys) else held + text_positions(tokens, segments, limit)  # [rows or 1, seq]
        if shape.learned_positions:
            if held + tokens.shape[1] > limit and (longest := int(positions.max()) + 1) > limit:
                raise DataError(
                    "a text of {count} tokens is longer than the {limit} positions of the model",
                    "it has learned no positions beyond", "cut it, or read it in windows", count=longest, limit=limit,
                )  # fmt: skip
            states = states + stack.embed_positions(positions + OFFSET)
        else:
            states = states + self._table(held + tokens.shape[1], tokens.device)[positions].to(states.dtype)
        if shape.embedding_norm:
            states = stack.layernorm_embedding(states)
        return self.dropout(states)

    def _table(self, length: int, device: torch.device) -> Tensor:
        """Sines and cosines [at least length, dim] of the original paper, the sines in the first half."""
        table = self._sinusoids.get(device)
        if table is None or len(table) < length:
            rows = max(length, self.shape.maximum_positions)
            waves = 10000.0 ** (-torch.arange(0, self.shape.hidden_size, 2, device="cpu", dtype=torch.float64) / self.shape.hidden_size)
            angles = torch.arange(rows, device="cpu", dtype=torch.float64)[:, None] * waves
            table = self._sinusoids[device] = torch.cat((angles.sin(), angles.cos()), dim=1).float().to(device)
        return table

    def output_product(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return hidden, self.output_weight, self.final_logits_bias.detach()[0]

    def blocks(self) -> list[nn.Module]:
        return [*self.model.encoder.blocks(), *(self.model.decoder.blocks() if self.has_decoder() else ())]

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.shared

    # ---- heads ---------------------------------------------------------------------------------------------------------

    def drop_outputs(self) -> None:
        if hasattr(self, "final_logits_bias"):
            del self.final_logits_bias

    def arrange(self, head: Head, decoder: bool) -> None:
        if not decoder and self.has_decoder():
            del self.model.decoder

    def is_output(self, name: str) -> bool:
        return not name.startswith("model.") or (name.startswith("model.decoder.") and not self.has_decoder())

    @classmethod
    def rename(cls, name: str) -> str | None:
        # Copies of the shared embedding, and version numbers of the first files.
        own = name.removeprefix("model.")
        return None if own in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "encoder.version", "decoder.version") else name

    # ---- first values and vocabulary -----------------------------------------------------------------------------------

    def first_values(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        if name == "final_logits_bias":
            parameter.zero_()
        elif name == "model.shared.weight" and self.shape.initializer.startswith(("xavier", "he")):
            # A look-up has no fan in: with the root of hidden_size as its scale, embedded tokens have unit variance.
            parameter.copy_(draw(parameter.shape, "normal", self.shape.hidden_size**-0.5, generator))
        else:
            super().first_values(name, parameter, generator)

    @torch.no_grad()
    def resize_vocabulary(self, size: int, pieces: Mapping[int, Sequence[int]] | None = None) -> Self:
        super().resize_vocabulary(size, pieces)
        if hasattr(self, "final_logits_bias"):
            old = self.final_logits_bias
            self.final_logits_bias = nn.Parameter(F.pad(old[:, :size], (0, max(0, size - old.shape[1]))))
        return self


class Marian(Bart):
    """The original Transformer as Marian has it; its sinusoids, which old files hold, are computed."""

    @classmethod
    def rename(cls, name: str) -> str | None:
        return None if name.endswith("embed_positions.weight") else super().rename(name)


class _Trunk(nn.Module):
    """What stands under ``model.`` in transformers' names."""

    def __init__(self, shape: BartShapeConfig):
        super().__init__()
        self.shared = Embedding(shape.vocabulary_size, shape.hidden_size)
        self.encoder = _Stack(shape, decoder=False)
        self.decoder = _Stack(shape, decoder=True)


class _Stack(Stack):
    place: ClassVar[str] = "layers"

    def __init__(self, shape: BartShapeConfig, decoder: bool):
        super().__init__()
        self.count = shape.decoder_layers if decoder else shape.layers
        if shape.learned_positions:
            self.embed_positions = Embedding(shape.maximum_positions + OFFSET, shape.hidden_size)
        self.layers = nn.ModuleList(_Layer(shape, decoder) for _ in range(self.count))
        if shape.embedding_norm:
            self.layernorm_embedding = nn.LayerNorm(shape.hidden_size)
        if shape.norm_first:
            self.layer_norm = nn.LayerNorm(shape.hidden_size)

    def finish(self, states: Tensor) -> Tensor:
        """The norm after the last layer, where the family has one."""
        return self.layer_norm(states) if hasattr(self, "layer_norm") else states


class _Layer(nn.Module):
    """Attention to itself, in the decoder attention to the source, and two matrices with an activation between."""

    def __init__(self, shape: BartShapeConfig, decoder: bool):
        super().__init__()
        width, heads, inner = shape.hidden_size, shape.decoder_heads if decoder else shape.heads, shape.inner_sizes[decoder]
        self.self_attn = _Attention(width, heads, shape.attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        if decoder:
            self.encoder_attn = _Attention(width, heads, shape.attention_dropout)
            self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.activation, self.norm_first = FUNCTIONS[shape.activation], shape.norm_first
        self.dropout, self.activation_dropout = nn.Dropout(shape.dropout), nn.Dropout(shape.activation_dropout)

    def forward(
        self, states: Tensor, mask: Tensor | None, memory: Tensor | None, crossing: Crossing | None, cache: SourceCache | None, index: int
    ) -> Tensor:
        norm = self.self_attn_layer_norm
        states = self._added(states, self.self_attn(self._before(norm, states), mask, cache, index), norm)
        if memory is not None:
            norm = self.encoder_attn_layer_norm
            states = self._added(states, self.encoder_attn(self._before(norm, states), crossing, cache, index, memory), norm)
        inner = self.activation(self.fc1(self._before(self.final_layer_norm, states)))
        return self._added(states, self.fc2(self.activation_dropout(inner)), self.final_layer_norm)

    def _before(self, norm: nn.LayerNorm, states: Tensor) -> Tensor:
        return norm(states) if self.norm_first else states

    def _added(self, states: Tensor, part: Tensor, norm: nn.LayerNorm) -> Tensor:
        states = states + self.dropout(part)
        return states if self.norm_first else norm(states)


class _Attention(nn.Module):
    """Attention with biases, to the states themselves or to a source's."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.heads, self.dropout = heads, nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor | Crossing | None, cache: SourceCache | None, index: int, memory: Tensor | None = None) -> Tensor:
        queries = split_heads(self.q_proj(states), self.heads)
        if memory is not None:
            keys, values = source_keys(memory, self.k_proj, self.v_proj, self.heads, cache, index)
        else:
            keys, values = split_heads(self.k_proj(states), self.heads), split_heads(self.v_proj(states), self.heads)
            if cache is not None:
                keys, values = cache.update(index, keys, values)
        return self.out_proj(attend(queries, keys, values, mask, self.dropout.p if self.training else 0.0))
