"""The shadows of adapters (luban.adapters): which weights learn, and what a layer keeps for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from luban.planning.job import Job
from luban.planning.shadow import Parameter, Storage, Tape, Value

PRODUCTS = ("lora", "rslora", "dora", "lora_plus", "pissa", "adalora", "vera")
ENDS = {"feed_forward": ("down_proj", "mlp.c_proj", "output.dense", "wo"), "attention": ("o_proj", "attn.c_proj", "attention.output.dense", "self.o"), "keys": ("k_proj", "v_proj", "self.key", "self.value", "self.k", "self.v", "attn.c_attn")}


# What the ends of places here are called in a model's own names, where they are called otherwise.
CALLED = {
    **{f"{part}_proj": f"self_attn.{part}_proj" for part in "qkvo"}, **{f"{part}_proj": f"mlp.{part}_proj" for part in ("gate", "up", "down")}, "intermediate": "intermediate.dense",
}  # fmt: skip
CALLED_IN_PAIRS = {
    True: {**{f"{side}.{part}": f"{name}.{part}" for side, name in (("self", "SelfAttention"), ("cross", "EncDecAttention")) for part in "qkvo"}, "wi_0": "DenseReluDense.wi_0", "wi_1": "DenseReluDense.wi_1", "wo": "DenseReluDense.wo"},
    False: {**{f"{side}.{part}": f"{name}.{'out' if part == 'o' else part}_proj" for side, name in (("self", "self_attn"), ("cross", "encoder_attn")) for part in "qkvo"}, "wi_0": "fc1", "wo": "fc2"},
}  # of T5, of BART


def name_of(place: str, shape: Any) -> str:
    """A linear layer's place as the model's own names end."""
    pairs, t5 = shape.kind == "encoder_decoder", shape.architecture in ("t5", "mt5")
    called = CALLED_IN_PAIRS[t5] if pairs else CALLED
    size = 2 if pairs and place.rpartition(".")[2] in tuple("qkvo") else 1
    head, end = place.split(".")[:-size], ".".join(place.split(".")[-size:])
    if t5 and end == "wi_0" and not shape.gated:
        return ".".join([*head, "DenseReluDense.wi"])
    return ".".join([*head, place.rpartition(".")[2] if "shared_expert" in head else called.get(end, end)])


def learning(job: Job) -> Callable[[str], bool]:
    """Whether a parameter of the base learns, by its name here."""
    if job.adapter is None:
        return lambda name: True
    also = job.adapter.also_train

    def learns(name: str) -> bool:
        return any((part == "embeddings" and name == "embedding") or (part == "output" and name == "output") or (part == "norms" and "norm" in name) or (part == "biases" and name.endswith("bias")) or part in name for part in also)

    return learns


class Worn:
    """What an adapter puts around a layer: called with the layer, its input and its tokens."""

    def __init__(self, body: Any, inputs: float, outputs: float):
        self.body, self.tape, self.config, self.inputs, self.outputs = body, body.tape, body.adapter, inputs, outputs
        self.make(body.parameter)

    def make(self, parameter: Callable[..., Parameter]) -> None:
        raise NotImplementedError


class Product(Worn):
    """B · A beside the weight: the layer's input and the thin middle are kept. DoRA also keeps the sum that it scales, and makes the whole weight for its lengths."""

    def make(self, parameter: Callable[..., Parameter]) -> None:
        config = self.config
        self.rank = getattr(config, "start_rank", config.rank)
        fixed = config.method == "vera"
        self.a, self.b = parameter("adapter", self.rank, self.inputs, learns=not fixed), parameter("adapter", self.outputs, self.rank, learns=not fixed)
        if fixed:  # all layers share the two
            self.a.width = self.b.width = 0.0
        self.vectors = {"dora": [self.outputs], "adalora": [self.rank], "vera": [self.rank, self.outputs]}.get(config.method, [])
        self.vectors = [parameter("adapter", size, learns=True) for size in self.vectors]
        self.dora = bool(getattr(config, "decomposed", False))
        if config.method == "adalora":  # of each entry two averages
            parameter("averages", 2 * (self.a.numbers + self.b.numbers + self.rank), learns=False)
        if fixed:
            self._share(parameter)

    def _share(self, parameter: Callable[..., Parameter]) -> None:
        """The two random matrices of all layers, as wide as the widest of them; a tensor group does not cut them."""
        body, sides = self.body, (self.inputs, self.outputs)
        whole = [side if side == body.shape.hidden_size else side * body.split.tensor for side in sides]
        wider = [max(known, side) for known, side in zip(body.widest, whole, strict=True)]
        parameter("shared", self.rank * (sum(wider) - sum(body.widest)), learns=False)
        body.widest = wider

    def __call__(self, plain: Callable[[Value, float], Value], states: Value, tokens: float) -> Value:
        tape = self.tape
        if self.dora:
            whole = [tape.storage(self.inputs * self.outputs, 4, "temporary") for _ in range(3)]
            del whole
        base = plain(states, tokens)
        inner = tape.product(tape.dropout(states, self.config.dropout), self.rank, self.a, tokens=tokens)
        inner = self._scaled(inner, self.vectors[0] if self.vectors and not self.dora else None)
        change = tape.product(inner, self.outputs, self.b, tokens=tokens)
        if self.config.method == "vera":
            change = self._scaled(change, self.vectors[1])
        made = tape.add(base, change)
        del base, change, inner
        return self._scaled(made, self.vectors[0]) if self.dora else made

    def _scaled(self, values: Value, factors: Parameter | None) -> Value:
        return scaled(self.tape, values, factors)


def scaled(tape: Tape, values: Value, factors: Parameter | None) -> Value:
    """Values times a number, or times a factor for each column, which keeps the values."""
    end, numbers, width = values.node, values.numbers, values.width
    saved = values.storage if factors is not None and factors.learns else None

    def rule(gradient: Storage) -> list[Any]:
        made = tape.gradient(numbers, width) if end else None
        if saved is not None:
            temporary = tape.gradient(numbers, width)
            tape.receive(factors, tape.gradient(factors.numbers, factors.gradient_width))
            del temporary
        return [(end, made)] if end else []

    return tape.value(numbers, width, rule if end or saved is not None else None)


class Factors(Worn):
    """(IA)³: a factor for each output, or at the end of a feed-forward part for each input."""

    inside = False

    def make(self, parameter: Callable[..., Parameter]) -> None:
        self.factors = parameter("adapter", self.inputs if self.inside else self.outputs, learns=True)

    def __call__(self, plain: Callable[[Value, float], Value], states: Value, tokens: float) -> Value:
        if self.inside:
            return plain(scaled(self.tape, states, self.factors), tokens)
        return scaled(self.tape, plain(states, tokens), self.factors)


class Inside(Factors):
    inside = True


class Small(Worn):
    """Houlsby's and Pfeiffer's small layers behind a part of a block."""

    def make(self, parameter: Callable[..., Parameter]) -> None:
        self.inner = max(1, int(self.outputs) // self.config.reduction)
        self.down, self.up = (parameter("adapter", *sides, learns=True) for sides in ((self.inner, self.outputs), (self.outputs, self.inner)))
        self.biases = [parameter("adapter", size, learns=True) for size in (self.inner, self.outputs)]

    def __call__(self, plain: Callable[[Value, float], Value], states: Value, tokens: float) -> Value:
        tape = self.tape
        output = plain(states, tokens)
        low = tape.product(output, self.inner, self.down, self.biases[0], tokens)
        low = tape.apply_output(low) if self.config.activation == "relu" else tape.apply(low)
        return tape.add(output, tape.dropout(tape.product(low, self.outputs, self.up, self.biases[1], tokens), self.config.dropout))


class Offset(Worn):
    """BitFit: an offset to the output."""

    def make(self, parameter: Callable[..., Parameter]) -> None:
        self.offset = parameter("adapter", self.outputs, learns=True)

    def __call__(self, plain: Callable[[Value, float], Value], states: Value, tokens: float) -> Value:
        tape, base = self.tape, plain(states, tokens)
        end = base.node

        def rule(gradient: Storage) -> list[Any]:
            tape.receive(self.offset, tape.gradient(self.offset.numbers, self.offset.gradient_width))
            return [(end, gradient)] if end else []

        return tape.value(base.numbers, base.width, rule)


def _same(name: str, end: str) -> bool:
    """Whether a name ends as is asked, or the other way round where the whole of it is given."""
    return name.endswith(end) or end.endswith(name)


def wearing(job: Job) -> Callable[[str], type[Worn] | None]:
    """The kind of adapter that sits on a linear layer of a place, or none."""
    config = job.adapter
    method = config.method if config is not None else ""
    if method in PRODUCTS:
        targets = config.targets
        return lambda place: Product if targets == "auto" or any(_same(f".{name_of(place, job.shape)}", f".{end}") for end in targets) else None
    if method == "ia3":
        return lambda place: Factors if place.endswith(ENDS["keys"]) else Inside if place.endswith(ENDS["feed_forward"]) and not place.endswith(ENDS["attention"]) else None
    if method in ("houlsby", "pfeiffer"):
        return lambda place: Small if (place.endswith(ENDS["feed_forward"]) and not place.endswith(ENDS["attention"])) or (method == "houlsby" and place.endswith(ENDS["attention"])) else None
    if method == "bitfit":
        return lambda place: Offset
    return lambda place: None
