"""The shadows of Luban's model families: the same calls in the same order as their modules, on values that have a size alone (shadow.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from luban.foundation.errors import ConfigError
from luban.planning import own_layer
from luban.planning.shadow import Parameter, Storage, Tape, Value


@dataclass(frozen=True)
class Split:
    """How many devices share a layer's matrices (``tensor``), a sequence (``context``) and a layer's experts (``expert``)."""

    tensor: int = 1
    context: int = 1
    expert: int = 1


OWN = ("adapter", "averages", "shared")  # names of an adapter's parameters (adapting.py)
Wear = Callable[[str], Any]  # a layer's place to the class of what an adapter puts on it, or None


class Linear:
    """A matrix, its bias, and what an adapter puts around it (adapted.py)."""

    def __init__(self, body: Body, place: str, inputs: float, outputs: float, bias: bool = False, quantized: bool = True):
        self.tape, self.outputs = body.tape, outputs
        self.weight = body.parameter(f"{place}.weight", outputs, inputs)
        self.bias = body.parameter(f"{place}.bias", outputs) if bias else None
        kind = body.wear(place)
        self.worn = kind(body, inputs, outputs) if kind else None
        self.quantized = body.quantized if quantized else 0.0
        if self.quantized:
            self.weight.learns, self.weight.width = False, body.quantized

    def __call__(self, values: Value, tokens: float) -> Value:
        if self.worn is not None:
            return self.worn(self._plain, values, tokens)
        return self._plain(values, tokens)

    def _plain(self, values: Value, tokens: float) -> Value:
        if self.quantized:
            return self.tape.quantized_product(values, self.outputs, self.weight, tokens)
        return self.tape.product(values, self.outputs, self.weight, self.bias, tokens)


class Body:
    """A model's layers, from a shape. ``width`` is what the weights are held in; ``learns`` says of each name whether it does."""

    def __init__(self, tape: Tape, shape: Any, split: Split = Split(), width: float = 4.0, learns: Callable[[str], bool] = lambda name: True, wear: Wear = lambda place: None, adapter: Any = None, quantized: float = 0.0):
        self.tape, self.shape, self.split, self.width, self.learns, self.wear, self.adapter, self.quantized = tape, shape, split, width, learns, wear, adapter, quantized
        self.below: list[Parameter] = []  # the blocks: the embedding
        self.above: list[Parameter] = []  # the last norm and the output
        self.inside: list[list[Parameter]] = []  # of each block
        self.blocks: list[Any] = []
        self.widest = [0.0, 0.0]  # inputs and outputs of the matrices beside which something stands that all of them share
        self.before: Any = None  # what stands before every text (before.py)
        self._owner = self.below

    def parameter(self, name: str, *sides: float, table: bool = False, learns: bool | None = None) -> Parameter:
        """A parameter [sides] of what is being built."""
        matrix = len(sides) > 1
        wide = not matrix or name in OWN  # of narrow weights: norms, biases, and what an adapter brings
        width = max(4.0, self.width) if self.tape.narrow and wide else self.width
        made = Parameter(prod(sides), self.learns(name) if learns is None else learns, width, 4.0 if self.tape.narrow else width, sides if matrix else (), table, ".experts." in name)
        self._owner.append(made)
        return made

    def apart(self, owner: list[Parameter], *sides: float) -> Parameter:
        """A parameter [sides] of an adapter that is on no layer; ``owner`` has it."""
        self._owner = owner
        return self.parameter("adapter", *sides, learns=True)

    def build(self, count: int, make: Callable[[int], Any]) -> list[Any]:
        """So many more blocks; what is built after them stands above."""
        made = []
        for number in range(count):
            self._owner = []
            self.inside.append(self._owner)
            made.append(make(number))
        self._owner = self.above
        self.blocks += made
        return made

    def look_up(self, tables: list[Parameter], numbers: float) -> Value:
        """The sum of rows of tables, and of a learned prompt the vectors among them, of which a decoder with a source has none but looks for some."""
        states = looked_up(self.tape, tables, numbers)
        return states if self.before is None else self.before.mixed(states)

    def every(self) -> Iterator[Parameter]:
        """All parameters but what stands before the texts."""
        for parameters in (self.below, self.above, *self.inside):
            yield from parameters

    def tables(self) -> list[Parameter]:
        """What is looked up for a token: the embedding, and tables of learned positions."""
        return [parameter for parameter in self.below if parameter.table]

    def looks_up(self, numbers: Sequence[int]) -> bool:
        """Whether what has these of the blocks looks up tokens in the embedding."""
        return 0 in numbers

    def outside(self, numbers: Sequence[int]) -> list[Parameter]:
        """The parameters outside of the blocks that are held with these of them."""
        last = len(self.blocks) - 1 in numbers
        below = self.below if self.looks_up(numbers) or (last and self.output in self.below) else []
        return [*below, *(self.above if last else [])]

    def passed(self, number: int, tokens: float, source: float) -> float:
        """Of so many tokens in a micro-batch, and in its source, how many states go from stage to stage before the block of a number."""
        return tokens

    def enter(self, rows: float, seq: float) -> Value:
        """The stream that the first block reads."""
        raise NotImplementedError

    def leave(self, states: Value) -> Value:
        """What the output's matrix is multiplied with, of the last block's stream."""
        raise NotImplementedError


class Llama(Body):
    """Llama, Qwen2, Qwen3, Mistral, and the mixtures of experts of that kind (models/decoder.py, layers.py, moe.py)."""

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        shape, tensor = self.shape, self.split.tensor
        self.embedding = self.parameter("embedding", shape.vocabulary_size / tensor, shape.hidden_size, table=True)
        sparse = getattr(shape, "sparse", [False] * shape.layers)
        self.build(shape.layers, lambda index: LlamaLayer(self, f"layers.{index}", sparse[index]))
        self.norm = self.parameter("norm", shape.hidden_size)
        self.output = self.embedding if shape.tied_embeddings else self.parameter("output", shape.vocabulary_size / tensor, shape.hidden_size, table=True)

    def enter(self, rows: float, seq: float) -> Value:
        tape, shape = self.tape, self.shape
        angles = [tape.storage(rows * seq * shape.head_dim, 4 if self.tape.compute == 4 else 2) for _ in "cs"]
        self.angles = angles  # cosines and sines, for all layers
        return self.look_up([self.embedding], rows * seq / self.split.tensor * shape.hidden_size)

    def leave(self, states: Value) -> Value:
        return self.tape.rms_norm(states, states.numbers / self.shape.hidden_size, self.norm)


class LlamaLayer:
    def __init__(self, body: Llama, place: str, sparse: bool):
        shape, tensor = body.shape, body.split.tensor
        self.tape, self.shape, self.split = body.tape, shape, body.split
        self.heads, self.key_value_heads = shape.heads / tensor, max(1.0, shape.key_value_heads / tensor)
        width, queries, keys = shape.hidden_size, self.heads * shape.head_dim, self.key_value_heads * shape.head_dim
        self.width, self.queries, self.keys = width, queries, keys
        self.q, self.k, self.v = (Linear(body, f"{place}.{name}_proj", width, size, shape.query_bias) for name, size in (("q", queries), ("k", keys), ("v", keys)))
        self.o = Linear(body, f"{place}.o_proj", queries, width, shape.output_bias)
        self.norms = [body.parameter(f"{place}.norm{number}", width) for number in (1, 2)]
        self.head_norms = [body.parameter(f"{place}.{name}_norm", shape.head_dim) for name in "qk"] if shape.query_key_norm else None
        self.mixture = Mixture(body, place) if sparse else None
        self.feed_forward = None if sparse else SwiGLU(body, place, shape.feed_forward_size / tensor, getattr(shape, "feed_forward_bias", False))
        self.is_own = own_layer.is_plain(self)

    def __call__(self, states: Value, rows: float, seq: float) -> Value:
        if self.is_own:
            return own_layer.through(self, states, rows * seq)
        tokens = rows * seq / self.split.tensor  # sequence parallel with tensor: the stream is shared out along the sequence
        states = self.tape.add(states, self.attend(self.tape.rms_norm(states, tokens, self.norms[0]), rows, seq))
        inner = self.tape.rms_norm(states, tokens, self.norms[1])
        made = self.mixture(inner, rows * seq) if self.mixture else self.feed_forward(gathered(self.tape, inner, self.split.tensor), rows * seq)
        return self.tape.add(states, scattered(self.tape, made, self.split.tensor))

    def attend(self, states: Value, rows: float, seq: float) -> Value:
        tape, tokens = self.tape, rows * seq
        states = gathered(tape, states, self.split.tensor)
        queries, keys, values = self.q(states, tokens), self.k(states, tokens), self.v(states, tokens)
        if self.head_norms:
            queries, keys = tape.rms_norm(queries, tokens * self.heads, self.head_norms[0]), tape.rms_norm(keys, tokens * self.key_value_heads, self.head_norms[1])
        queries = rotated(tape, queries)
        keys = rotated(tape, keys)
        keys, values = (gathered(tape, one, self.split.context) for one in (keys, values))
        made = tape.attention(queries, keys, values, tokens * self.heads)
        del queries, keys, values
        return scattered(tape, self.o(made, tokens), self.split.tensor)


class SwiGLU:
    def __init__(self, body: Body, place: str, inner: float, bias: bool = False):
        width = body.shape.hidden_size
        self.tape = body.tape
        self.gate, self.up, self.down = Linear(body, f"{place}.gate_proj", width, inner, bias), Linear(body, f"{place}.up_proj", width, inner, bias), Linear(body, f"{place}.down_proj", inner, width, bias)

    def __call__(self, states: Value, tokens: float) -> Value:
        return self.down(self.tape.multiply(self.tape.apply(self.gate(states, tokens)), self.up(states, tokens)), tokens)


class Mixture:
    """Tokens sorted by expert; each expert sees its share, an even one here."""

    def __init__(self, body: Body, place: str):
        shape, tensor = body.shape, body.split.tensor
        self.tape, self.shape, self.split = body.tape, shape, body.split
        self.gate = body.parameter(f"{place}.gate.weight", shape.experts, shape.hidden_size)
        held = shape.experts / body.split.expert
        self.groups = int(min(held, 16))  # a step's peak is hardly another where the many experts of a layer are taken together
        worn, body.wear = body.wear, lambda place: None  # an adapter does not sit on experts
        self.experts = [SwiGLU(body, f"{place}.experts.{number}", shape.expert_size / tensor * held / self.groups) for number in range(self.groups)]
        body.wear = worn
        self.shared = SwiGLU(body, f"{place}.shared_expert", shape.shared_expert_size / tensor) if shape.shared_expert_size else None
        self.shared_gate = body.parameter(f"{place}.shared_expert_gate.weight", 1, shape.hidden_size) if self.shared else None

    def __call__(self, states: Value, tokens: float) -> Value:
        tape, shape = self.tape, self.shape
        states = gathered(tape, states, self.split.tensor)
        chosen = tokens * shape.experts_per_token
        wide = tape.cast(states, 4.0)
        outer, tape.compute = tape.compute, 4.0
        logits = tape.product(wide, shape.experts, self.gate, tokens=tokens)
        tape.compute = outer
        weights = tape.apply_output(logits)  # softmax, then the greatest
        routed = selected(tape, states, chosen * shape.hidden_size)
        each = chosen / self.groups
        parts = split(tape, routed, self.groups)
        del routed
        outputs = [self._expert(expert, part, each) for expert, part in zip(self.experts, parts, strict=True)]
        del parts
        joined = concatenated(tape, outputs)
        del outputs
        mixed = weighted(tape, selected(tape, joined, joined.numbers), weights, tokens * shape.hidden_size)
        del joined
        if self.shared is None:
            return mixed
        gate = tape.apply_output(tape.product(states, 1, self.shared_gate, tokens=tokens))
        shared = self.shared(states, tokens)
        return tape.add(mixed, tape.multiply(gate, shared) if shared.numbers == gate.numbers else weighted(tape, shared, gate, shared.numbers))

    def _expert(self, expert: SwiGLU, part: Value, tokens: float) -> Value:
        """A group of experts is as wide as all of them, but a token passes through one: what it keeps is one's width."""
        share = self.groups * self.split.expert / self.shape.experts
        for layer in (expert.gate, expert.up):
            layer.outputs = self.shape.expert_size / self.split.tensor
        assert share <= 1.0
        return expert(part, tokens)


# ---- what several use ------------------------------------------------------------------------------------------------


def rotated(tape: Tape, states: Value) -> Value:
    """luban.models.rotary.rotate."""
    numbers, width, end = states.numbers, states.width, states.node
    first = tape.storage(numbers, width)
    half = tape.storage(numbers / 2, width)
    turned = tape.storage(numbers, width)
    del half
    second = tape.storage(numbers, width)
    del turned

    def rule(gradient: Storage) -> list[Any]:
        by_sine = tape.gradient(numbers, width)
        half = tape.gradient(numbers / 2, width)
        joined = tape.gradient(numbers, width)
        made = tape.gradient(numbers, width)
        return [(end, made)] if by_sine and half and joined else []

    made = tape.value(numbers, width, rule if states.grows else None)
    del first, second
    return made


def looked_up(tape: Tape, tables: list[Parameter], numbers: float) -> Value:
    """The sum of rows of tables, in the stream's type. A table that learns gets a gradient of its own size."""
    learning = [table for table in tables if table.learns]
    parts = [tape.storage(numbers, tape.stream) for _ in tables]
    joined = tape.storage(numbers, tape.stream) if len(parts) > 1 else parts[0]
    del parts

    def rule(gradient: Storage) -> list[Any]:
        for table in learning:
            tape.receive(table, tape.gradient(table.numbers, table.gradient_width))
        return []

    return tape.value(numbers, tape.stream, rule if learning else None, joined)


def gathered(tape: Tape, values: Value, ranks: int) -> Value:
    """From this rank's part of a sequence all of it, to multiply with this rank's part of the matrices."""
    if ranks == 1:
        return values
    end, numbers, width = values.node, values.numbers, values.width
    values = tape.cast(values, min(width, tape.compute))
    end, width = values.node, values.width

    def rule(gradient: Storage) -> list[Any]:
        laid = tape.in_transit(numbers * ranks, width)
        made = tape.gradient(numbers, width)
        del laid
        return [(end, made)]

    came = tape.in_transit(numbers * ranks, width)
    made = tape.value(numbers * ranks, width, rule if end else None)
    del came
    return made


def scattered(tape: Tape, values: Value, ranks: int) -> Value:
    """The sum over ranks, of which each keeps its part of the sequence."""
    if ranks == 1:
        return values
    end, numbers, width = values.node, values.numbers, values.width

    def rule(gradient: Storage) -> list[Any]:
        came = tape.in_transit(numbers, width)
        made = tape.gradient(numbers, width)
        del came
        return [(end, made)]

    laid = tape.in_transit(numbers, width)
    made = tape.value(numbers / ranks, width, rule if end else None)
    del laid
    return made


def selected(tape: Tape, values: Value, numbers: float) -> Value:
    """Rows by their index."""
    end, before, width = values.node, values.numbers, values.width

    def rule(gradient: Storage) -> list[Any]:
        return [(end, tape.gradient(before, width))]

    return tape.value(numbers, width, rule if values.grows else None)


def split(tape: Tape, values: Value, parts: int) -> list[Value]:
    """Views of equal parts; their gradients are joined into one."""
    held: list[Storage] = []
    end, numbers, width = values.node, values.numbers, values.width

    def joined(gradient: Storage) -> list[Any]:
        made = tape.gradient(numbers, width)
        held.clear()
        return [(end, made)]

    if not values.grows:
        return [Value(values.storage, numbers / parts, width) for _ in range(parts)]
    joint = tape.node(joined)

    def rule(gradient: Storage) -> list[Any]:
        held.append(gradient)
        return [(joint, tape.gradient(0, 1))]

    return [Value(values.storage, numbers / parts, width, tape.node(rule)) for _ in range(parts)]


def concatenated(tape: Tape, values: list[Value]) -> Value:
    """Joined; the gradients of the parts are views of one."""
    ends = [value.node for value in values if value.grows]
    return tape.value(sum(value.numbers for value in values), values[0].width, (lambda gradient: [(end, gradient) for end in ends]) if ends else None)


def weighted(tape: Tape, values: Value, weights: Value, numbers: float) -> Value:
    """Values times a weight for each row of them; added up to ``numbers``."""
    product = tape.storage(values.numbers, values.width) if numbers != values.numbers else None
    saved, end, toward, width, inner = (values.storage if weights.grows else None, weights.storage), values.node, weights.node, values.width, values.numbers

    def rule(gradient: Storage) -> list[Any]:
        assert saved
        made = tape.gradient(inner, width)
        temporary = tape.gradient(inner, width)
        return [(end, made), *([(toward, tape.gradient(weights_numbers, 4))] if toward and temporary else [])]

    weights_numbers = weights.numbers
    made = tape.value(numbers, width, rule if values.grows else None)
    del product
    return made


def unknown(architecture: str) -> ConfigError:
    return ConfigError("the planner does not know the architecture {name}", "it knows the families that Luban has modules for, but for recurrent ones", "rehearse the recipe instead: luban check RECIPE --probe", name=architecture)
