"""The shadows of learned prompts and prefixes (luban.adapters.before): what is learned stands before every text, and the weights of the base do not know of it."""

from __future__ import annotations

from typing import Any

from luban.planning.job import Job
from luban.planning.shadow import Edge, Parameter, Storage, Tape, Value

ON_STREAM = ("prompt", "p_tuning")  # vectors among the tokens; a prefix is keys and values of attention


class Learned:
    """What a method learns: a table [tokens, width], or the starts and the network that it is made by (luban.adapters.before.Made)."""

    def __init__(self, body: Any, job: Job):
        config, dim = job.adapter, float(job.shape.hidden_size)
        self.tape, self.tokens = body.tape, config.tokens
        self.parameters: list[Parameter] = []
        if config.method != "prefix":
            starts = self.width = dim
            hidden = dim if getattr(config, "width", "auto") == "auto" else float(config.width)
            widths = {"mlp": (dim, hidden, hidden, dim), "lstm": (2 * hidden, 2 * hidden, dim)}.get(getattr(config, "network", ""), ())
        else:
            layers, keys = keys_of(job.shape)
            self.width = 2 * layers * keys
            hidden = dim if config.projection_width == "auto" else float(config.projection_width)
            starts, widths = (keys, (keys, hidden, self.width)) if config.projection else (self.width, ())
        self.starts = self._parameter(body, self.tokens, starts)
        self.cells = [self._parameter(body, *sides) for sides in _cells(starts, hidden, config.layers)] if getattr(config, "network", "") == "lstm" else []
        self.layers = [(self._parameter(body, outputs, inputs), self._parameter(body, outputs)) for inputs, outputs in zip(widths, widths[1:], strict=False)]

    def _parameter(self, body: Any, *sides: float) -> Parameter:
        return body.apart(self.parameters, *sides)

    def __call__(self) -> Value:
        """[tokens, width], of a network with its graph."""
        tape, start = self.tape, self.starts
        received = [start, *self.cells]

        def rule(gradient: Storage) -> list[Edge]:
            for one in received:
                tape.receive(one, tape.gradient(one.numbers, one.gradient_width))
            return []

        rows = self.layers[0][0].sides[1] if self.layers else self.width
        made = tape.value(self.tokens * rows, start.width, rule)
        for number, (weight, bias) in enumerate(self.layers):
            made = tape.product(made if number == 0 else tape.apply_output(made), weight.sides[0], weight, bias, self.tokens)
        return made


class Prompt:
    """Vectors among the tokens: a sequence is as much longer, until its states are taken out at the end."""

    def __init__(self, body: Any, job: Job):
        self.tape, self.learned = body.tape, Learned(body, job)
        self.places = self.learned.tokens

    def begin(self) -> None:
        """Before a forward pass: the vectors come with the embeddings."""

    def mixed(self, states: Value) -> Value:
        """Embeddings of the tokens, and among them the vectors."""
        tape, made, numbers, width = self.tape, self.learned(), states.numbers, states.width
        end, small, each = made.node, made.numbers, made.width
        found = tape.storage(numbers, width)

        def rule(gradient: Storage) -> list[Edge]:
            among = tape.gradient(numbers, width)
            return [(end, tape.gradient(small, each))] if among else []

        mixed = tape.value(numbers, width, rule)
        del found
        return mixed

    def is_done(self) -> None:
        """Its gradients came with those of the stream."""


class Prefix:
    """Keys and values of every layer, which the tape puts beside those of the tokens."""

    places = 0

    def __init__(self, body: Any, job: Job):
        self.tape, self.learned, self.seq = body.tape, Learned(body, job), job.sequence_length
        self.longer = 1 + self.learned.tokens / self.seq  # of keys, over a row's own
        self.made: Value | None = None
        self.slope: Storage | None = None
        body.tape.prefix = self

    def begin(self) -> None:
        """Before a forward pass."""
        self.made = self.learned()

    def mixed(self, states: Value) -> Value:
        """The stream is as it was."""
        return states

    def beside(self, states: Value) -> Value:
        """Keys or values, and the learned ones before those of each row. A layer's are a part of a table, whose gradient is as large as the table."""
        tape, made, numbers, each, end = self.tape, self.made, states.numbers, states.width, states.node

        def rule(gradient: Storage) -> list[Edge]:
            slope = tape.gradient(made.numbers, made.width)
            self.slope = self.slope or slope
            return [(end, gradient)] if end else []

        return tape.value(numbers * self.longer, each, rule)

    def is_done(self) -> None:
        """After a backward pass: what came to the table goes on to what made it."""
        made, slope, self.made, self.slope = self.made, self.slope, None, None
        if slope is not None and made.node is not None:
            self.tape.backward(made.node, slope)


class Prefixed(Tape):
    """A tape whose attention finds a prefix. A text's tokens see all of it, so that no kernel is plainly causal: each takes a mask of its own in the type of the products."""

    prefix: Prefix

    def attention(self, queries: Value, keys: Value, values: Value, statistics: float) -> Value:
        if not self.finds:
            return super().attention(queries, keys, values, statistics)
        mask = self.storage(self.prefix.seq**2 * self.prefix.longer, queries.width)
        made = super().attention(queries, self.prefix.beside(keys), self.prefix.beside(values), statistics)
        end = made.node

        def rule(gradient: Storage) -> list[Edge]:
            return [(end, gradient)] if mask else []

        return self.value(made.numbers, made.width, rule if end else None, made.storage)

    def plain_attention(self, queries: Value, keys: Value, values: Value, scores: float, dropout: float, bias: Value | None = None) -> Value:
        if not self.finds:
            return super().plain_attention(queries, keys, values, scores, dropout, bias)
        return super().plain_attention(queries, self.prefix.beside(keys), self.prefix.beside(values), scores * self.prefix.longer, dropout, bias)


def before_of(body: Any, job: Job) -> Prompt | Prefix | None:
    """What stands before the texts of a job, its parameters on the body."""
    if places_before(job) == 0:
        return None
    return Prefix(body, job) if job.adapter.method == "prefix" else Prompt(body, job)


def places_before(job: Job) -> int:
    """Places of a sequence, or keys of every layer, that a learned prompt or prefix takes."""
    return getattr(job.adapter, "tokens", 0)


def keys_of(shape: Any) -> tuple[int, float]:
    """Layers, and width of keys or values, of the attention that has a prefix (luban.adapters.prefix.attention_of)."""
    layers, heads = (shape.decoder_layers, getattr(shape, "decoder_heads", None) or shape.heads) if shape.kind == "encoder_decoder" else (shape.layers, getattr(shape, "key_value_heads", None) or shape.heads)
    return layers, float(heads * (getattr(shape, "head_dim", None) or shape.hidden_size // shape.heads))


def _cells(inputs: float, width: float, layers: int) -> list[tuple[float, ...]]:
    """Sides of the weights of an LSTM in both directions, as torch has them."""
    return [sides for layer in range(layers) for _ in range(2) for sides in ((4 * width, 2 * width if layer else inputs), (4 * width, width), (4 * width,), (4 * width,))]
