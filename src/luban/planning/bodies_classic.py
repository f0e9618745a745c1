"""The shadows of GPT-2, BERT and RoBERTa, T5, BART and Marian (see bodies.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luban.models.bart_shape import OFFSET
from luban.planning.bodies import Body, Linear, split
from luban.planning.shadow import Parameter, Storage, Tape, Value


class Norm:
    """torch's LayerNorm."""

    def __init__(self, body: Body, place: str, width: float):
        self.tape, self.width = body.tape, width
        self.weight, self.bias = (body.parameter(f"{place}.{leaf}", width) for leaf in ("weight", "bias"))

    def __call__(self, values: Value) -> Value:
        return self.tape.layer_norm(values, values.numbers / self.width, self.weight, self.bias)


def activated(tape: Tape, name: str, values: Value) -> Value:
    return tape.apply_output(values) if name in ("relu", "tanh") else tape.apply(values)


def attended(tape: Tape, queries: Value, keys: Value, values: Value, scores: float, statistics: float, dropout: float) -> Value:
    """A fused kernel where there is one: on a processor only without dropout."""
    if tape.device == "cpu" and dropout and tape.training:
        return tape.plain_attention(queries, keys, values, scores, dropout)
    return tape.attention(queries, keys, values, statistics)


class GPT2(Body):
    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        shape = self.shape
        self.embedding = self.parameter("embedding", shape.vocabulary_size, shape.hidden_size, table=True)
        self.places = self.parameter("positions", shape.maximum_positions, shape.hidden_size, table=True)
        self.build(shape.layers, lambda index: GPT2Layer(self, f"h.{index}"))
        self.norm = Norm(self, "ln_f", shape.hidden_size)
        self.output = self.embedding if shape.tied_embeddings else self.parameter("output", shape.vocabulary_size, shape.hidden_size, table=True)


    def enter(self, rows: float, seq: float) -> Value:
        return self.tape.dropout(self.look_up(self.tables(), rows * seq * self.shape.hidden_size), self.shape.dropout)

    def leave(self, states: Value) -> Value:
        return self.norm(states)


class GPT2Layer:
    def __init__(self, body: GPT2, place: str):
        shape = body.shape
        self.tape, self.shape, self.tensor = body.tape, shape, body.split.tensor
        width, inner = shape.hidden_size, shape.feed_forward_size
        self.norms = [Norm(body, f"{place}.ln_{number}", width) for number in (1, 2)]
        self.attn, self.proj = Linear(body, f"{place}.attn.c_attn", width, 3 * width / self.tensor, True), Linear(body, f"{place}.attn.c_proj", width / self.tensor, width, True)
        self.fc, self.down = Linear(body, f"{place}.mlp.c_fc", width, inner / self.tensor, True), Linear(body, f"{place}.mlp.c_proj", inner / self.tensor, width, True)

    def __call__(self, states: Value, rows: float, seq: float) -> Value:
        tape, shape, tokens = self.tape, self.shape, rows * seq
        states = tape.add(states, self._attend(self.norms[0](states), rows, seq))
        inner = activated(tape, shape.activation, self.fc(self.norms[1](states), tokens))
        return tape.add(states, tape.dropout(self.down(inner, tokens), shape.dropout))

    def _attend(self, states: Value, rows: float, seq: float) -> Value:
        tape, shape, tokens = self.tape, self.shape, rows * seq
        queries, keys, values = split(tape, self.attn(states, tokens), 3)
        heads = shape.heads / self.tensor
        made = attended(tape, queries, keys, values, tokens * heads * seq, tokens * heads, shape.attention_dropout)
        del queries, keys, values
        return tape.dropout(self.proj(made, tokens), shape.dropout)


class Bert(Body):
    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        shape = self.shape
        width = shape.hidden_size
        self.embedding = self.parameter("embedding", shape.vocabulary_size, width, table=True)
        self.places = self.parameter("positions", shape.first_position + shape.maximum_positions, width, table=True)
        self.types = self.parameter("types", shape.token_types, width, table=True)
        self.first_norm = Norm(self, "embeddings.LayerNorm", width)
        self.build(shape.layers, lambda index: BertLayer(self, f"layer.{index}"))
        self.dense = Linear(self, "cls.dense", width, width, True)
        self.dense.worn = None
        self.last_norm, self.bias = Norm(self, "cls.norm", width), self.parameter("cls.bias", shape.vocabulary_size)
        self.output = self.embedding

    def enter(self, rows: float, seq: float) -> Value:
        tokens = rows * seq
        return self.tape.dropout(self.first_norm(self.look_up(self.tables(), tokens * self.shape.hidden_size)), self.shape.dropout)

    def leave(self, states: Value) -> Value:
        """For masked tokens a dense layer, activation and norm come before the output's matrix."""
        tokens = states.numbers / self.shape.hidden_size
        return self.last_norm(activated(self.tape, self.shape.activation, self.dense(states, tokens)))


class BertLayer:
    def __init__(self, body: Bert, place: str):
        shape = body.shape
        self.tape, self.shape, self.tensor = body.tape, shape, body.split.tensor
        width, inner, part = shape.hidden_size, shape.feed_forward_size, shape.hidden_size / body.split.tensor
        self.parts = [Linear(body, f"{place}.attention.self.{name}", width, part, True) for name in ("query", "key", "value")]
        self.added, self.added_norm = Linear(body, f"{place}.attention.output.dense", part, width, True), Norm(body, f"{place}.attention.norm", width)
        self.inner, self.outer = Linear(body, f"{place}.intermediate", width, inner / self.tensor, True), Linear(body, f"{place}.output.dense", inner / self.tensor, width, True)
        self.norm = Norm(body, f"{place}.output.norm", width)

    def __call__(self, states: Value, rows: float, seq: float) -> Value:
        tape, shape, tokens = self.tape, self.shape, rows * seq
        states = self._attend(states, rows, seq)
        made = self.outer(activated(tape, shape.activation, self.inner(states, tokens)), tokens)
        return self.norm(tape.add(tape.dropout(made, shape.dropout), states))

    def _attend(self, states: Value, rows: float, seq: float) -> Value:
        tape, shape, tokens, heads = self.tape, self.shape, rows * seq, self.shape.heads / self.tensor
        queries, keys, values = (part(states, tokens) for part in self.parts)
        made = attended(tape, queries, keys, values, tokens * heads * seq, tokens * heads, shape.attention_dropout)
        del queries, keys, values
        return self.added_norm(tape.add(tape.dropout(self.added(made, tokens), shape.dropout), states))


class Pairs(Body):
    """T5 and BART: an encoder and a decoder; the decoder's blocks also attend to the source."""

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        shape = self.shape
        self.t5 = shape.architecture in ("t5", "mt5")
        self.embedding = self.parameter("embedding", shape.vocabulary_size, shape.hidden_size, table=True)
        self.encoder = self.build(shape.layers, lambda index: PairLayer(self, f"encoder.{index}", False, index == 0))
        self.decoder = self.build(shape.decoder_layers, lambda index: PairLayer(self, f"decoder.{index}", True, index == 0))
        self.output = self.embedding if shape.tied_embeddings else self.parameter("output", shape.vocabulary_size, shape.hidden_size, table=True)
        self.finals = list(self.above)  # what is used behind the last block of all
        self.embedding_norms, self.norms, self.places = [], [], []
        self.entered: list[list[Parameter]] = []  # what is used before a stack's first block, beside the embedding
        self.left: list[list[Parameter]] = []  # and behind its last
        for stack in ("encoder", "decoder"):
            begin = len(self.above)
            if not self.t5:
                self.places += [self.parameter(f"{stack}.positions", shape.maximum_positions + OFFSET, shape.hidden_size, table=True)] if shape.learned_positions else []
                self.embedding_norms += [Norm(self, f"{stack}.embedding_norm", shape.hidden_size)] if shape.embedding_norm else []
            self.entered.append(self.above[begin:])
            begin = len(self.above)
            if self.t5:
                self.norms.append(self.parameter(f"{stack}.norm", shape.hidden_size))
            elif shape.norm_first:
                self.norms.append(Norm(self, f"{stack}.norm", shape.hidden_size))
            self.left.append(self.above[begin:])
        if not self.t5:
            self.finals.append(self.parameter("final_logits_bias", shape.vocabulary_size, learns=False))

    def looks_up(self, numbers: Sequence[int]) -> bool:
        return 0 in numbers or len(self.encoder) in numbers

    def outside(self, numbers: Sequence[int]) -> list[Parameter]:
        last = len(self.blocks) - 1 in numbers
        found = [self.embedding] if self.looks_up(numbers) or (last and self.output is self.embedding) else []
        start = 0
        for blocks, entered, left in zip((self.encoder, self.decoder), self.entered, self.left, strict=True):
            end = start + len(blocks)
            found += [*(entered if start in numbers else []), *(left if end - 1 in numbers else [])]
            if self.t5 and start not in numbers and any(start < number < end for number in numbers):
                found.append(blocks[0].table)
            start = end
        return found + (self.finals if last else [])

    def passed(self, number: int, tokens: float, source: float) -> float:
        return source + (tokens if number > len(self.encoder) else 0.0)

    def embed(self, tokens: float, stack: int) -> Value:
        """The stream that a stack reads: 0 the encoder's, 1 the decoder's."""
        shape = self.shape
        states = self.look_up([self.embedding, *self.places[stack : stack + 1]], tokens * shape.hidden_size)
        if not self.t5 and not shape.learned_positions:
            states = self.tape.add(states, Value(states.storage, states.numbers, states.width))
        if self.embedding_norms:
            states = self.embedding_norms[stack](states)
        return self.tape.dropout(states, shape.dropout)

    def finish(self, states: Value, stack: int) -> Value:
        if self.t5:
            return self.tape.dropout(self.tape.rms_norm(states, states.numbers / self.shape.hidden_size, self.norms[stack]), self.shape.dropout)
        return self.norms[stack](states) if self.norms else states

    def bias(self, stack: int, seq: float) -> Value | None:
        """T5's biases of positions for a whole stack, [heads, seq, seq]; they learn."""
        if not self.t5:
            return None
        tape, table = self.tape, (self.encoder, self.decoder)[stack][0].table
        numbers = self.shape.heads * seq * seq

        def rule(gradient: Storage) -> list[Any]:
            tape.receive(table, tape.gradient(table.numbers, table.gradient_width))
            return []

        return tape.value(numbers, table.width, rule if table.learns else None)


class PairLayer:
    def __init__(self, body: Pairs, place: str, decoder: bool, first: bool):
        shape = body.shape
        self.tape, self.shape, self.t5, self.is_decoder, self.tensor = body.tape, shape, body.t5, decoder, body.split.tensor
        width, bias = shape.hidden_size, not self.t5
        self.heads = (shape.heads if self.t5 else shape.decoder_heads if decoder else shape.heads) / self.tensor
        inner = (shape.heads * shape.head_dim if self.t5 else width) / self.tensor
        hidden = (shape.feed_forward_size if self.t5 else shape.inner_sizes[decoder]) / self.tensor
        names = ["self", "cross"] if decoder else ["self"]
        self.attentions = [[Linear(body, f"{place}.{name}.{leaf}", *((inner, width) if leaf == "o" else (width, inner)), bias) for leaf in "qkvo"] for name in names]
        self.norms: list[Any] = [body.parameter(f"{place}.norm{number}", width) if self.t5 else Norm(body, f"{place}.norm{number}", width) for number in range(len(names) + 1)]
        self.table = body.parameter(f"{place}.bias", shape.relative_buckets, shape.heads) if self.t5 and first else None
        gated = self.t5 and shape.gated
        self.inner = [Linear(body, f"{place}.wi_{number}", width, hidden, bias) for number in range(2 if gated else 1)]
        self.outer = Linear(body, f"{place}.wo", hidden, width, bias)

    def __call__(self, states: Value, rows: float, seq: float, bias: Value | None = None, memory: Value | None = None, source: float = 0.0) -> Value:
        states = self._part(states, 0, lambda given: self._attend(self.attentions[0], given, given, rows, seq, seq, bias))
        if self.is_decoder:
            states = self._part(states, 1, lambda given: self._attend(self.attentions[1], given, memory, rows, seq, source, None))
        return self._part(states, len(self.norms) - 1, lambda given: self._feed(given, rows * seq))

    def _part(self, states: Value, number: int, inner: Any) -> Value:
        tape, shape, norm = self.tape, self.shape, self.norms[number]
        if self.t5:
            return tape.add(states, tape.dropout(inner(tape.rms_norm(states, states.numbers / shape.hidden_size, norm)), shape.dropout))
        if shape.norm_first:
            return tape.add(states, tape.dropout(inner(norm(states)), shape.dropout))
        return norm(tape.add(states, tape.dropout(inner(states), shape.dropout)))

    def _attend(self, layers: list[Linear], states: Value, toward: Value, rows: float, seq: float, keys_seq: float, bias: Value | None) -> Value:
        tape, shape, tokens, others = self.tape, self.shape, rows * seq, rows * keys_seq
        queries, keys, values = layers[0](states, tokens), layers[1](toward, others), layers[2](toward, others)
        tape.finds = self.is_decoder and toward is states
        scores, dropout = rows * self.heads * seq * keys_seq, shape.dropout if self.t5 else shape.attention_dropout
        if bias is not None:  # it learns, which no fused kernel of a processor knows
            made = tape.plain_attention(queries, keys, values, scores, dropout if tape.training else 0.0, bias)
        else:
            made = attended(tape, queries, keys, values, scores, tokens * self.heads, dropout)
        del queries, keys, values
        return layers[3](made, tokens)

    def _feed(self, states: Value, tokens: float) -> Value:
        tape, shape = self.tape, self.shape
        inner = activated(tape, shape.activation, self.inner[0](states, tokens))
        if len(self.inner) == 2:
            inner = tape.multiply(inner, self.inner[1](states, tokens))
        share = shape.dropout if self.t5 else shape.activation_dropout
        return self.outer(tape.dropout(inner, share), tokens)
