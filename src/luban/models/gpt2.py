"""GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners"); its parameters bear transformers' names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.models.base import Model
from luban.models.classic import FUNCTIONS, join_heads, split_heads, text_positions, vector
from luban.models.decoder import visible
from luban.models.embedding import Embedding
from luban.models.given import GivenKeys
from luban.models.gpt2_shape import GPT2ShapeConfig
from luban.models.heads import Head, last_state
from luban.models.layers import Cache
from luban.models.masks import added


class GPT2(Model):
    """Causal tokens to hidden states; the heads are those of transformers' classes (a label from the last token's state)."""

    prefix: ClassVar[str] = "transformer."
    output_names: ClassVar[tuple[str, ...]] = ("c_proj.weight",)
    takes_prefix: ClassVar[bool] = True
    shape: GPT2ShapeConfig

    def __init__(self, shape: GPT2ShapeConfig):
        super().__init__(shape)
        self.transformer = _Trunk(shape)
        if not shape.tied_embeddings:
            self.lm_head = nn.Linear(shape.hidden_size, shape.vocabulary_size, bias=False)

    def forward(
        self, tokens: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None,
        types: Tensor | None = None, cache: Cache | None = None, prefix: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [rows, seq, dim] of tokens [rows, seq], after the last norm; causal.

        ``positions`` [rows, seq] default to 0, 1, … in each segment (after what the cache holds). With ``cache`` the tokens
        continue what it holds, which ``segments`` excludes but for :class:`GivenKeys`. Tokens where ``prefix`` [rows, seq] holds are seen by those of
        them that stand before (prefix language model); the cache must not hold text then. DataError for a text longer than the table of positions.
        """
        assert segments is None or cache is None or isinstance(cache, GivenKeys)
        states = self.enter(tokens, positions, segments, types, cache)
        return self.leave(self.run_layers(states, self.transformer.h, self.beside(states, tokens, positions, segments, types, cache, prefix)))

    def enter(self, tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, types: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        if positions is None:
            positions = cache.positions(tokens.shape[1]) if cache is not None else text_positions(tokens, segments, self.shape.maximum_positions)
        trunk = self.transformer
        return trunk.drop(trunk.wte(tokens) + trunk.wpe(positions))  # [rows, seq, dim]

    def beside(
        self, states: Tensor, tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None,
        types: Tensor | None = None, cache: Cache | None = None, prefix: Tensor | None = None,
    ) -> list[tuple[Any, ...]]:  # fmt: skip
        mask = added(visible(tokens.shape[1], segments, None, tokens.device, prefix, cache), states.dtype)
        return [(mask, cache, index) for index in range(self.shape.layers)]

    def leave(self, states: Tensor) -> Tensor:
        return self.transformer.ln_f(states)

    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.h)

    @property
    def embedding(self) -> nn.Embedding:
        return self.transformer.wte

    def output_layer(self) -> nn.Linear | None:
        return getattr(self, "lm_head", None)

    def attach(self, head: Head) -> None:
        if head.structure in ("choice", "pairs"):
            super().attach(head)
        if hasattr(self, "lm_head"):
            del self.lm_head
        width = self.shape.hidden_size
        if head.structure == "sequence":
            self.score = nn.Linear(width, head.outputs, bias=False)
        elif head.structure == "token":
            self.dropout = nn.Dropout(0.1 if self.shape.classifier_dropout is None else self.shape.classifier_dropout)
            self.classifier = nn.Linear(width, head.outputs)
        elif head.structure == "span":
            self.qa_outputs = nn.Linear(width, 2)

    def family_scores(self, hidden: Tensor, tokens: Tensor, segments: Tensor | None = None, extra: Mapping[str, Tensor] | None = None) -> Tensor:
        structure = self.head.structure
        if structure == "token":
            return self.classifier(self.dropout(hidden))
        if structure == "span":
            return self.qa_outputs(hidden)
        if structure == "vector":
            return vector(self.head, hidden, segments, "last")
        return self.score(last_state(hidden, segments))

    def first_values(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        turned = parameter.dim() == 2 and name.startswith(f"{self.prefix}h.")  # stored [in, out]: their sizes mean the opposite
        super().first_values(name, parameter.t() if turned else parameter, generator)

    @classmethod
    def rename(cls, name: str) -> str | None:
        return None if name.endswith((".attn.bias", ".attn.masked_bias")) else name  # causal masks of old versions


class Conv1D(nn.Module):
    """A dense layer whose weight is stored [in, out], as GPT-2's first code did and every file of it since."""

    transposed = True

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(states, self.weight.t(), self.bias)


class _Trunk(nn.Module):
    """What stands under ``transformer.`` in transformers' names."""

    def __init__(self, shape: GPT2ShapeConfig):
        super().__init__()
        self.wte = Embedding(shape.vocabulary_size, shape.hidden_size)
        self.wpe = Embedding(shape.maximum_positions, shape.hidden_size)
        self.drop = nn.Dropout(shape.embedding_dropout)
        self.h = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.hidden_size, eps=shape.norm_epsilon)


class Block(nn.Module):
    """Attention, then the feed-forward part, each on the normalised stream and added to it."""

    def __init__(self, shape: GPT2ShapeConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.hidden_size, eps=shape.norm_epsilon)
        self.attn = _Attention(shape)
        self.ln_2 = nn.LayerNorm(shape.hidden_size, eps=shape.norm_epsilon)
        self.mlp = _FeedForward(shape)

    def forward(self, states: Tensor, mask: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        states = states + self.attn(self.ln_1(states), mask, cache, layer)
        return states + self.mlp(self.ln_2(states))


class _Attention(nn.Module):
    def __init__(self, shape: GPT2ShapeConfig):
        super().__init__()
        self.heads, self.by_layer = shape.heads, shape.scale_by_layer
        self.attn_dropout = nn.Dropout(shape.attention_dropout)  # of the weights of attention, inside its kernel
        self.scale = 1 / math.sqrt(shape.head_dim)
        self.c_attn = Conv1D(shape.hidden_size, 3 * shape.hidden_size)
        self.c_proj = Conv1D(shape.hidden_size, shape.hidden_size)
        self.resid_dropout = nn.Dropout(shape.dropout)

    def forward(self, states: Tensor, mask: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        queries, keys, values = (split_heads(part, self.heads) for part in self.c_attn(states).chunk(3, dim=-1))
        if cache is not None:
            keys, values = cache.update(layer, keys, values)
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            dropout_p=self.attn_dropout.p if self.training else 0.0,
            is_causal=mask is None and queries.shape[2] > 1,
            scale=self.scale / (layer + 1) if self.by_layer else self.scale,
        )  # [rows, heads, seq, head_dim]
        return self.resid_dropout(self.c_proj(join_heads(attended)))


class _FeedForward(nn.Module):
    def __init__(self, shape: GPT2ShapeConfig):
        super().__init__()
        self.c_fc = Conv1D(shape.hidden_size, shape.feed_forward_size)
        self.c_proj = Conv1D(shape.feed_forward_size, shape.hidden_size)
        self.dropout = nn.Dropout(shape.dropout)
        self.activation = FUNCTIONS[shape.activation]

    def forward(self, states: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.activation(self.c_fc(states))))
