"""BERT (arXiv:1810.04805), RoBERTa (arXiv:1907.11692) and XLM-R (arXiv:1911.02116); their parameters bear transformers' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.foundation.errors import ConfigError
from luban.models.base import Model, resized
from luban.models.bert_shape import BertShapeConfig
from luban.models.classic import FUNCTIONS, join_heads, segment_mask, split_heads, text_positions, vector
from luban.models.embedding import Embedding
from luban.models.given import OnePass
from luban.models.heads import Head, Projection, first_state
from luban.models.layers import Cache
from luban.models.masks import added

OUTPUTS = ("cls", "lm_head", "classifier", "qa_outputs")  # modules that stand above the trunk


class Bert(Model):
    """Tokens that all see each other to hidden states; without a head, ``logits`` are those of masked tokens.

    The three architectures differ in names, in the row of the position table that a text begins with, in the kinds of tokens,
    and in the head for a sequence: BERT's is a dense layer on the pooler, the others' have a projection of their own.
    """

    output_names: ClassVar[tuple[str, ...]] = ("output.dense.weight",)
    # The pooler is trained by next-sentence prediction or by a head; files of masked language models lack it or have it.
    optional: ClassVar[tuple[str, ...]] = ("bert.pooler.", "roberta.pooler.", "pooler.")
    shape: BertShapeConfig

    def __init__(self, shape: BertShapeConfig):
        super().__init__(shape)
        trunk = "bert" if shape.architecture == "bert" else "roberta"
        self.prefix = f"{trunk}."
        setattr(self, trunk, _Trunk(shape))
        if trunk == "bert":
            self.cls = _BertOutput(shape)
        else:
            self.lm_head = _RobertaOutput(shape)

    def forward(
        self, tokens: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None,
        types: Tensor | None = None, cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states [rows, seq, dim] of tokens [rows, seq]; each token sees its whole segment.

        ``positions`` [rows, seq] default to 0, 1, … in each segment, ``types`` [rows, seq] to 0. DataError for a text longer than the
        table of positions, ConfigError for a cache other than :class:`OnePass`: an encoder does not write.
        """
        if cache is not None and not isinstance(cache, OnePass):
            raise ConfigError("{name} does not write text", "it is an encoder: every token sees those after it", "choose a decoder", name=self.shape.architecture)
        states = self.enter(tokens, positions, segments, types)
        return self.run_layers(states, self.blocks(), self.beside(states, tokens, positions, segments, types, cache))

    def enter(self, tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, types: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        if positions is None:
            positions = text_positions(tokens, segments, self.shape.maximum_positions)
        return self.trunk.embeddings(tokens, positions + self.shape.first_position, types)  # [rows, seq, dim]

    def beside(
        self, states: Tensor, tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None,
        types: Tensor | None = None, cache: Cache | None = None, prefix: Tensor | None = None,
    ) -> list[tuple[Any, ...]]:  # fmt: skip
        mask = segment_mask(segments)
        if cache is not None:
            mask = cache.beside(mask)
        mask = added(mask, states.dtype)
        return [(mask, cache, index) for index in range(self.shape.layers)]

    def blocks(self) -> list[nn.Module]:
        return list(self.trunk.encoder.layer)

    @property
    def embedding(self) -> nn.Embedding:
        return self.trunk.embeddings.word_embeddings

    def output_product(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A dense layer and LayerNorm, then the tied matrix and a bias for each token."""
        output = self._output
        return output.transform(hidden), self.output_weight, output.bias

    @property
    def _output(self) -> _Predictions | _RobertaOutput:
        return self.cls.predictions if hasattr(self, "cls") else self.lm_head

    def attach(self, head: Head) -> None:
        if head.structure == "pairs":
            super().attach(head)
        for name in OUTPUTS:
            if hasattr(self, name):
                delattr(self, name)
        shape, width, bert = self.shape, self.shape.hidden_size, self.shape.architecture == "bert"
        self._pool(head.structure in ("choice", "vector") or (bert and head.structure == "sequence"))
        share = shape.dropout if shape.classifier_dropout is None else shape.classifier_dropout
        self.dropout = nn.Dropout(share)
        if hasattr(self.trunk, "pooler"):
            # With vectors it is carried along for whoever reads it: they are made without it.
            self.trunk.pooler.requires_grad_(head.structure != "vector")
        if head.structure == "vector":
            return
        if head.structure == "span":
            self.qa_outputs = nn.Linear(width, 2)
        elif head.structure == "sequence" and not bert:
            self.classifier = Projection(width, head.outputs, share)
        else:
            self.classifier = nn.Linear(width, head.outputs)

    def _pool(self, wanted: bool) -> None:
        trunk = self.trunk
        if wanted and not hasattr(trunk, "pooler"):
            trunk.pooler = _Pooler(self.shape.hidden_size)
        elif not wanted and hasattr(trunk, "pooler"):
            del trunk.pooler

    def family_scores(self, hidden: Tensor, tokens: Tensor, segments: Tensor | None = None, extra: Mapping[str, Tensor] | None = None) -> Tensor:
        structure = self.head.structure
        if structure == "vector":
            return vector(self.head, hidden, segments, "mean")
        if structure == "span":
            return self.qa_outputs(hidden)
        if structure == "token":
            return self.classifier(self.dropout(hidden))
        state = first_state(hidden)  # [rows, dim]
        if isinstance(self.classifier, Projection):
            return self.classifier(state)
        return self.classifier(self.dropout(self.trunk.pooler(state)))

    def resize_vocabulary(self, size: int, pieces: Mapping[int, Sequence[int]] | None = None) -> Self:
        if hasattr(self, "cls") or hasattr(self, "lm_head"):
            self._output.bias = resized(self._output.bias, size, pieces or {})
        return super().resize_vocabulary(size, pieces)

    @classmethod
    def rename(cls, name: str) -> str | None:
        if name.endswith(("embeddings.position_ids", "embeddings.token_type_ids")) or name.startswith("cls.seq_relationship."):
            return None  # buffers of old versions; the head of next-sentence prediction
        if name.startswith(("cls.predictions.decoder.", "lm_head.decoder.")):
            return None  # the embedding and the bias, written a second time
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            if name.endswith(old):
                return name.removesuffix(old) + new
        return name


class _Trunk(nn.Module):
    """What stands under ``bert.`` or ``roberta.`` in transformers' names."""

    def __init__(self, shape: BertShapeConfig):
        super().__init__()
        self.embeddings = _Embeddings(shape)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(Layer(shape) for _ in range(shape.layers))


class _Embeddings(nn.Module):
    def __init__(self, shape: BertShapeConfig):
        super().__init__()
        self.word_embeddings = Embedding(shape.vocabulary_size, shape.hidden_size)
        self.position_embeddings = Embedding(shape.first_position + shape.maximum_positions, shape.hidden_size)
        self.token_type_embeddings = Embedding(shape.token_types, shape.hidden_size)
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, eps=shape.norm_epsilon)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, tokens: Tensor, positions: Tensor, types: Tensor | None) -> Tensor:
        # A model with one kind of token has no use for types: RoBERTa's pairs are told apart by their separators.
        kinds = self.token_type_embeddings(positions.new_zeros(()) if types is None or self.token_type_embeddings.num_embeddings == 1 else types)
        return self.dropout(self.LayerNorm(self.word_embeddings(tokens) + kinds + self.position_embeddings(positions)))


class Layer(nn.Module):
    """Attention, then the feed-forward part; each is added to its input, and the sum normalised."""

    def __init__(self, shape: BertShapeConfig):
        super().__init__()
        self.attention = _Attention(shape)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(shape.hidden_size, shape.feed_forward_size)
        self.output = _Added(shape.feed_forward_size, shape)
        self.activation = FUNCTIONS[shape.activation]

    def forward(self, states: Tensor, mask: Tensor | None, given: OnePass | None = None, index: int = 0) -> Tensor:
        states = self.attention(states, mask, given, index)
        return self.output(self.activation(self.intermediate.dense(states)), states)


class _Attention(nn.Module):
    def __init__(self, shape: BertShapeConfig):
        super().__init__()
        self.heads = shape.heads
        self.dropout = nn.Dropout(shape.attention_dropout)  # of the weights of attention, inside its kernel
        self.self = nn.ModuleDict({name: nn.Linear(shape.hidden_size, shape.hidden_size) for name in ("query", "key", "value")})
        self.output = _Added(shape.hidden_size, shape)
        self.read = nn.Identity()  # what attention looks at, apart from the stream that its output is added to

    def forward(self, states: Tensor, mask: Tensor | None, given: OnePass | None, index: int) -> Tensor:
        queries, keys, values = (split_heads(part(read), self.heads) for read in [self.read(states)] for part in self.self.values())  # [rows, heads, seq, head_dim]
        if given is not None:
            keys, values = given.update(index, keys, values)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=self.dropout.p if self.training else 0.0)
        return self.output(join_heads(attended), states)


class _Added(nn.Module):
    """A dense layer whose output is added to the stream before LayerNorm."""

    def __init__(self, inputs: int, shape: BertShapeConfig):
        super().__init__()
        self.dense = nn.Linear(inputs, shape.hidden_size)
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, eps=shape.norm_epsilon)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, states: Tensor, stream: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(states)) + stream)


class _Pooler(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, state: Tensor) -> Tensor:
        return torch.tanh(self.dense(state))


class _BertOutput(nn.Module):
    """What stands under ``cls.``."""

    def __init__(self, shape: BertShapeConfig):
        super().__init__()
        self.predictions = _Predictions(shape)


class _Predictions(nn.Module):
    def __init__(self, shape: BertShapeConfig):
        super().__init__()
        self.transform = _Transform(shape)
        self.bias = nn.Parameter(torch.zeros(shape.vocabulary_size))


class _Transform(nn.Module):
    def __init__(self, shape: BertShapeConfig):
        super().__init__()
        self.dense = nn.Linear(shape.hidden_size, shape.hidden_size)
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, eps=shape.norm_epsilon)
        self.activation = FUNCTIONS[shape.activation]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.LayerNorm(self.activation(self.dense(hidden)))


class _RobertaOutput(nn.Module):
    """What stands under ``lm_head.``; its activation is GELU whatever the layers have."""

    def __init__(self, shape: BertShapeConfig):
        super().__init__()
        self.dense = nn.Linear(shape.hidden_size, shape.hidden_size)
        self.layer_norm = nn.LayerNorm(shape.hidden_size, eps=shape.norm_epsilon)
        self.bias = nn.Parameter(torch.zeros(shape.vocabulary_size))

    def transform(self, hidden: Tensor) -> Tensor:
        return self.layer_norm(F.gelu(self.dense(hidden)))
