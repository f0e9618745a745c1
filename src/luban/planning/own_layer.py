"""The shadow of a decoder's layer that Luban runs as one step of autograd on a processor (models/own_layers.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luban.planning.before import Prefixed
from luban.planning.shadow import Edge, Parameter, Storage, Value

if TYPE_CHECKING:
    from luban.planning.bodies import LlamaLayer

PART = 64  # rows whose contributions to a norm's gradient are summed first


def is_plain(layer: LlamaLayer) -> bool:
    """Whether the layer's own code can run it, as ``own_layers.fits`` has it."""
    tape, shape = layer.tape, layer.shape
    if not tape.own or isinstance(tape, Prefixed) or tape.narrow or tape.compute != 4 or layer.split.tensor > 1 or layer.split.context > 1 or layer.mixture or any(getattr(shape, "windows", ())):
        return False
    return all(linear.bias is None and linear.worn is None and not linear.quantized for linear in linears(layer))


def linears(layer: LlamaLayer) -> list:
    feed = layer.feed_forward
    return [layer.q, layer.k, layer.v, layer.o, feed.gate, feed.up, feed.down]


def through(layer: LlamaLayer, states: Value, tokens: float) -> Value:
    """What the layer makes of ``states`` of so many tokens: what its forward keeps, and what its backward pass holds at each moment."""
    tape = layer.tape
    dim, queries, keys, inner = layer.width, layer.queries, layer.keys, layer.feed_forward.gate.outputs
    heads = layer.heads + layer.key_value_heads

    def make(numbers: float) -> Storage:
        return tape.storage(numbers * tokens, 4)

    def norm_heads() -> list[Storage]:
        return [make(queries), make(keys), make(heads)] if layer.head_norms else []

    first, side_by_side = [make(dim), make(1)], make(queries + 2 * keys)
    normed = norm_heads()
    attended = [make(queries), make(layer.heads)]
    del normed
    middle, second, both = make(dim), [make(dim), make(1)], make(2 * inner)
    hidden = make(inner)
    saved = (states.storage, first, side_by_side, attended, middle, second, both)
    made, end = make(dim), states.node
    del hidden

    def rule(gradient: Storage) -> list[Edge]:
        assert saved
        found: list[tuple[Parameter, Storage]] = []

        def back(numbers: float) -> Storage:
            return tape.gradient(numbers * tokens, 4)

        def of_weight(*weights: Parameter) -> None:
            found.extend((weight, tape.gradient(weight.numbers, 4)) for weight in weights if weight.learns)

        def of_norm(weight: Parameter) -> None:
            parts = back(weight.numbers / PART)
            of_weight(weight)
            del parts

        hidden, by_both = back(inner), back(2 * inner)
        of_weight(layer.feed_forward.down.weight)
        del hidden
        of_weight(layer.feed_forward.gate.weight, layer.feed_forward.up.weight)
        by_middle = back(dim)
        del by_both
        of_norm(layer.norms[1])
        of_weight(layer.o.weight)
        by_heads, normed = back(queries + 2 * keys), norm_heads()
        by_attended = back(queries)
        del by_attended, normed
        for weight in layer.head_norms or ():
            of_norm(weight)
        of_weight(layer.q.weight, layer.k.weight, layer.v.weight)
        by_stream = back(dim)
        del by_heads
        of_norm(layer.norms[0])
        del by_middle
        for weight, slope in found:
            tape.receive(weight, slope)
        return [(end, by_stream)] if end else []

    learns = states.grows or any(weight.learns for weight in (*(linear.weight for linear in linears(layer)), *layer.norms, *(layer.head_norms or ())))
    return tape.value(tokens * dim, 4, rule if learns else None, made)
