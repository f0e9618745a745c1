"""Recurrent language models and encoders (LSTM: Hochreiter & Schmidhuber 1997; GRU: Cho et al. 2014, arXiv:1406.1078; sizes as in arXiv:1708.02182)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luban.models.base import Model, draw
from luban.models.classic import vector
from luban.models.embedding import Embedding
from luban.models.heads import Head, last_state, mean_state
from luban.models.lstm_shape import LstmShapeConfig
from luban.models.states import Documents, StateCache, StateRows, run_cells


class Lstm(Model):
    """Tokens to hidden states through recurrent layers, forward or in both directions.

    A state never passes a document's border: whatever is packed into a row, each document is read as if alone. Sequences are labelled
    from the last state (forward) or the mean of all (both directions).
    """

    shape: LstmShapeConfig
    shards: ClassVar[bool] = False
    output_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, shape: LstmShapeConfig):
        super().__init__(shape)
        self.model = _Trunk(shape)
        if not shape.tied_embeddings:
            self.lm_head = nn.Linear(shape.hidden_size, shape.vocabulary_size, bias=False)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(
        self, tokens: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None,
        types: Tensor | None = None, cache: StateRows | None = None,
    ) -> Tensor:
        """Hidden states [rows, seq, dim] of tokens [rows, seq]; zeros in padding. ``positions`` and ``types`` say nothing to it."""
        assert segments is None or cache is None
        assert cache is None or self.shape.directions == 1, "what reads backward cannot be continued"
        rows, seq = tokens.shape
        if segments is None:
            segments = torch.zeros_like(tokens) if cache is None else cache.segments(seq)
        documents = Documents.of(segments)
        if not len(documents.order):  # nothing but padding
            return self.embedding.weight.new_zeros(rows, seq, self.shape.hidden_size)
        packed = documents.pack(self.dropout(self.model.embed_tokens(tokens)))
        held = None if cache is None else [state[documents.rows] for state in cache.read()]  # each [documents, layers, cell]
        data, ends = packed.data, []
        for index, layer in enumerate(self.model.layers):
            start = None if held is None else self._start([state[:, index : index + 1].transpose(0, 1).contiguous() for state in held])
            data, end = self.through(run_cells, layer, data, packed.batch_sizes, start)
            data = self.dropout(data)
            ends.append(end if isinstance(end, tuple) else (end,))
        if cache is not None:
            after = [torch.cat(parts).transpose(0, 1) for parts in zip(*ends, strict=True)]  # each [documents, layers, cell]
            cache.write([torch.empty_like(state).index_copy_(0, documents.rows, state) for state in after], seq)
        return documents.unpack(data if self.model.projection is None else self.model.projection(data), rows, seq)

    def _start(self, states: list[Tensor]) -> Any:
        return tuple(states) if self.shape.cell == "lstm" else states[0]

    def new_cache(self, slots: int, maximum: int) -> StateCache:
        """States for ``slots`` texts: what generation continues from, of the same size for texts of any length."""
        size = (slots, self.shape.layers, self.shape.cell_size)
        return StateCache([torch.zeros(size, dtype=self.dtype, device=self.device) for _ in range(2 if self.shape.cell == "lstm" else 1)], maximum)

    def blocks(self) -> list[nn.Module]:
        return list(self.model.layers)

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.embed_tokens

    def output_layer(self) -> nn.Linear | None:
        return getattr(self, "lm_head", None)

    def attach(self, head: Head) -> None:
        if head.structure == "pairs":
            super().attach(head)
        for name in ("lm_head", "score", "qa_outputs"):
            if hasattr(self, name):
                delattr(self, name)
        if head.structure == "span":
            self.qa_outputs = nn.Linear(self.shape.hidden_size, 2)
        elif head.structure != "vector":
            self.score = nn.Linear(self.shape.hidden_size, head.outputs)

    def family_scores(self, hidden: Tensor, tokens: Tensor, segments: Tensor | None = None, extra: Mapping[str, Tensor] | None = None) -> Tensor:
        if self.head.structure == "span":
            return self.qa_outputs(hidden)
        if self.head.structure == "token":
            return self.score(hidden)
        if self.head.structure == "vector":
            return vector(self.head, hidden, segments, "last" if self.shape.directions == 1 else "mean")
        return self.score(last_state(hidden, segments) if self.shape.directions == 1 else mean_state(hidden, segments))

    def first_values(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        first_recurrent_values(self, name, parameter, generator, super().first_values)


def first_recurrent_values(model: Model, name: str, parameter: Tensor, generator: torch.Generator, otherwise: Any) -> None:
    """A cell's matrices are drawn gate by gate, each by its own sizes; an LSTM begins by remembering: the biases of its forget gate are one
    (Jozefowicz et al. 2015)."""
    leaf = name.rpartition(".")[2]
    gates = 4 if getattr(model.shape, "cell", "gru") == "lstm" else 3
    if leaf.startswith(("weight_ih", "weight_hh")):
        shape = model.shape
        for gate in parameter.chunk(gates):
            gate.copy_(draw(gate.shape, shape.initializer, shape.initializer_deviation, generator))
    elif leaf.startswith("bias_ih") and gates == 4:
        parameter.zero_()
        parameter.chunk(4)[1].fill_(1.0)
    else:
        otherwise(name, parameter, generator)


class _Trunk(nn.Module):
    """The embedding, layers of one recurrent module each, and the projection."""

    def __init__(self, shape: LstmShapeConfig):
        super().__init__()
        self.embed_tokens = Embedding(shape.vocabulary_size, shape.hidden_size)
        kind = nn.LSTM if shape.cell == "lstm" else nn.GRU
        width = shape.cell_size // shape.directions
        self.layers = nn.ModuleList(
            kind(shape.cell_size if index else shape.hidden_size, width, bidirectional=shape.directions == 2) for index in range(shape.layers)
        )
        self.projection = nn.Linear(shape.cell_size, shape.hidden_size, bias=False) if shape.cell_size != shape.hidden_size else None
