"""The recurrent encoder–decoder with soft attention: Bahdanau, Cho & Bengio 2015 (arXiv:1409.0473); Luong, Pham & Manning 2015 (arXiv:1508.04025)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from luban.foundation.errors import ConfigError
from luban.models.base import Model
from luban.models.embedding import Embedding
from luban.models.lstm import first_recurrent_values
from luban.models.recurrent_shape import RecurrentShapeConfig
from luban.models.states import Documents, StateCache, StateRows, run_cells


class Recurrent(Model):
    """A source to a memory of states in both directions; target tokens to hidden states with an eye on the memory.

    ``additive`` is Bahdanau's model: before each step the decoder's last state weighs the memory, the weighted sum enters the step, and a
    maxout layer over state, sum and last token comes out. ``dot`` is Luong's without input feeding: after a step the product with its
    state weighs the memory, and tanh of a layer over both comes out; all steps of a layer run in one call. Both use torch's GRU, which applies the reset gate after
    the product with the state. A document of the target sees the source document of the same number.

    With ``keep_attention`` the weights of the last pass stay in ``attention`` [rows, seq, source_seq]: the picture of an alignment.
    """

    shape: RecurrentShapeConfig
    shards: ClassVar[bool] = False
    output_names: ClassVar[tuple[str, ...]] = ()
    shares_memory: ClassVar[bool] = True

    def __init__(self, shape: RecurrentShapeConfig):
        super().__init__(shape)
        self.model = _Trunk(shape)
        if not shape.tied_embeddings:
            self.lm_head = nn.Linear(shape.hidden_size, shape.vocabulary_size, bias=False)
        self.dropout = nn.Dropout(shape.dropout)
        self.keep_attention = False
        self.attention: Tensor | None = None

    def forward(
        self, tokens: Tensor, *, source: Tensor | None = None, source_segments: Tensor | None = None, memory: Tensor | None = None,
        segments: Tensor | None = None, cache: StateRows | None = None, positions: Tensor | None = None, types: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [rows, seq, dim] of the decoder's tokens [rows, seq]; zeros in padding.

        Either ``source`` [rows, source_seq] or the ``memory`` [rows, source_seq, dim] that :meth:`encode` made of it; ``source_segments``
        [rows, source_seq] in both cases. With ``cache`` the tokens continue what it holds, one document a row. Of more rows than sources
        as many neighbours share one (beams). ``positions`` and ``types`` say nothing to it.
        """
        assert segments is None or cache is None
        if source is None and memory is None:
            raise ConfigError(
                "{name} reads a source and writes a target; it was given one text",
                "an encoder–decoder without a task head has nothing to do with a single text",
                "train it on pairs (translation, summarisation, denoising), or give it a task head",
                name=self.shape.architecture,
            )
        if memory is None:
            memory = self.encode(source, source_segments)
        rows, seq = tokens.shape
        if segments is None:
            segments = torch.zeros_like(tokens) if cache is None else cache.segments(seq)
        if source_segments is None:
            source_segments = tokens.new_zeros(memory.shape[:2])
        if (share := rows // len(memory)) > 1:
            memory, source_segments = memory.repeat_interleave(share, 0), source_segments.repeat_interleave(share, 0)
        documents = Documents.of(segments)
        self.attention = memory.new_zeros(rows, seq, memory.shape[1]) if self.keep_attention else None
        if not len(documents.order):  # nothing but padding
            return memory.new_zeros(rows, seq, memory.shape[2])
        packed = documents.pack(self.dropout(self.model.embed_tokens(tokens)))
        number = segments[documents.rows, documents.starts]  # [documents]
        seen = source_segments[documents.rows] == number[:, None]  # [documents, source_seq]
        state = self._start(memory[documents.rows], seen)  # [decoder_layers, documents, dim]
        if cache is not None:
            (held,) = cache.read()  # [rows, decoder_layers, dim]
            begun = torch.tensor(cache.lengths, device=tokens.device)[documents.rows] > 0
            state = torch.where(begun[None, :, None], held[documents.rows].transpose(0, 1), state)
        write = self._write_additive if self.shape.attention == "additive" else self._write_dot
        hidden, state = write(packed, documents, state, memory, segments, source_segments)
        if cache is not None:
            cache.write([torch.empty_like(state.transpose(0, 1)).index_copy_(0, documents.rows, state.transpose(0, 1))], seq)
        return self.dropout(hidden)

    def encode(self, source: Tensor, source_segments: Tensor | None = None) -> Tensor:
        """Memory [rows, source_seq, dim] of a source [rows, source_seq]: forward states beside backward ones; zeros in padding."""
        documents = Documents.of(torch.zeros_like(source) if source_segments is None else source_segments)
        if not len(documents.order):
            return self.embedding.weight.new_zeros(*source.shape, self.shape.hidden_size)
        packed = documents.pack(self.dropout(self.model.embed_tokens(source)))
        data = packed.data
        for layer in self.model.encoder.layers:
            data, _ = self.through(run_cells, layer, data, packed.batch_sizes)
            data = self.dropout(data)
        return documents.unpack(data, *source.shape)

    def _start(self, memory: Tensor, seen: Tensor) -> Tensor:
        """The decoder's first states [decoder_layers, documents, dim]: from the backward state of the source's first token."""
        first = memory[torch.arange(len(memory), device=memory.device), seen.int().argmax(1)]  # [documents, dim]
        states = torch.tanh(self.model.decoder.initial(first.chunk(2, dim=-1)[1]))
        return states.view(len(memory), self.shape.decoder_layers, -1).transpose(0, 1).contiguous()

    def _write_additive(
        self, packed: PackedSequence, documents: Documents, state: Tensor, memory: Tensor, segments: Tensor, source_segments: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [rows, seq, dim] and each document's last state; one step after the other, the longest documents first."""
        decoder = self.model.decoder
        own = memory[documents.rows]  # [documents, source_seq, dim]
        keys = decoder.keys(memory)[documents.rows]
        number = segments[documents.rows, documents.starts]
        hidden_from = (source_segments[documents.rows] != number[:, None])[..., None]  # [documents, source_seq, 1]
        outputs, weights, ended = [], [], []
        for entering in packed.data.split(packed.batch_sizes.tolist()):  # [running, dim]
            running = len(entering)
            ended.append(state[:, running:])
            state = state[:, :running].contiguous()
            scores = decoder.energy(torch.tanh(keys[:running] + decoder.query(state[-1])[:, None]))  # [running, source_seq, 1]
            weight = weighed(scores, hidden_from[:running], dim=1)
            context = (weight.transpose(1, 2) @ own[:running])[:, 0]  # [running, dim]
            state = self._step(torch.cat([entering, context], dim=-1), state)
            joined = decoder.readout(torch.cat([state[-1], context, entering], dim=-1))
            outputs.append(joined.unflatten(-1, (-1, 2)).amax(-1))  # maxout over pairs
            weights.append(weight[..., 0])
        ended.append(state)
        if self.keep_attention:
            self.attention = documents.unpack(torch.cat(weights).detach(), *segments.shape)
        return documents.unpack(torch.cat(outputs), *segments.shape), torch.cat(ended[::-1], dim=1)

    def _step(self, entering: Tensor, state: Tensor) -> Tensor:
        """The states [decoder_layers, running, dim] after one more token."""
        after = []
        for index, layer in enumerate(self.model.decoder.layers):
            out, end = layer(entering[None], state[index : index + 1])
            entering = self.dropout(out[0])
            after.append(end)
        return torch.cat(after)

    def _write_dot(
        self, packed: PackedSequence, documents: Documents, state: Tensor, memory: Tensor, segments: Tensor, source_segments: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [rows, seq, dim] and each document's last state; layer by layer."""
        data, after = packed.data, []
        for index, layer in enumerate(self.model.decoder.layers):
            data, end = self.through(run_cells, layer, data, packed.batch_sizes, state[index : index + 1].contiguous())
            data = self.dropout(data)
            after.append(end)
        states = documents.unpack(data, *segments.shape)  # [rows, seq, dim]
        weight = weighed(states @ memory.transpose(1, 2), segments[:, :, None] != source_segments[:, None, :], dim=2)
        if self.keep_attention:
            self.attention = (weight * (segments >= 0)[..., None]).detach()
        joined = torch.cat([weight @ memory, states], dim=-1)
        return torch.tanh(self.model.decoder.readout(joined)) * (segments >= 0)[..., None], torch.cat(after)

    def new_cache(self, slots: int, maximum: int) -> StateCache:
        """The decoder's states for ``slots`` texts; the memory is given with each call."""
        size = (slots, self.shape.decoder_layers, self.shape.hidden_size)
        return StateCache([torch.zeros(size, dtype=self.dtype, device=self.device)], maximum)

    def blocks(self) -> list[nn.Module]:
        return [*self.model.encoder.layers, *self.model.decoder.layers]

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.embed_tokens

    def output_layer(self) -> nn.Linear | None:
        return getattr(self, "lm_head", None)

    def first_values(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        first_recurrent_values(self, name, parameter, generator, super().first_values)


def weighed(scores: Tensor, hidden_from: Tensor, dim: int) -> Tensor:
    """Weights that sum to one over what may be seen, zeros elsewhere; all zeros where nothing may be."""
    weights = scores.masked_fill(hidden_from, torch.finfo(scores.dtype).min).softmax(dim=dim)
    return weights.masked_fill(hidden_from, 0.0)


class _Trunk(nn.Module):
    def __init__(self, shape: RecurrentShapeConfig):
        super().__init__()
        self.embed_tokens = Embedding(shape.vocabulary_size, shape.hidden_size)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(nn.GRU(shape.hidden_size, shape.hidden_size // 2, bidirectional=True) for _ in range(shape.layers))
        self.decoder = _Decoder(shape)


class _Decoder(nn.Module):
    def __init__(self, shape: RecurrentShapeConfig):
        super().__init__()
        width, additive = shape.hidden_size, shape.attention == "additive"
        self.initial = nn.Linear(width // 2, shape.decoder_layers * width)
        self.layers = nn.ModuleList(nn.GRU(2 * width if additive and not index else width, width) for index in range(shape.decoder_layers))
        if additive:
            self.query = nn.Linear(width, width)
            self.keys = nn.Linear(width, width, bias=False)
            self.energy = nn.Linear(width, 1, bias=False)
        self.readout = nn.Linear(3 * width, 2 * width) if additive else nn.Linear(2 * width, width)
