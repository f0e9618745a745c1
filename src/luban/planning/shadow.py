"""A model's shadow: tensors that have a size and nothing else, and the tape that says when their memory is free.

Operations take and give what torch's do in Luban's modules, and their derivatives too; a storage lives as long as something refers to it, as torch's does, so Python's own
reference counts say when it is given back. A training step of a model of any size passes in milliseconds, without a tensor and without torch; the most that was held at once,
by purpose, is what the step needs. benchmarks/planner measures how near that comes to the allocator's own count."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

PURPOSES = ("weights", "gradients", "optimizer", "activations", "logits", "temporary", "communication")
CHUNK_BYTES, DEVICE_CHUNK_BYTES = 8 * 2**20, 64 * 2**20  # of float32 weights that luban.models.quantized makes at a time
Edge = tuple["Node | None", "Storage"]


class Account:
    """Bytes that are held now and were held at the most, by purpose."""

    def __init__(self) -> None:
        self.live = dict.fromkeys(PURPOSES, 0)
        self.total = self.peak = 0
        self.at_peak = dict(self.live)
        self.moment = self.peak_moment = ""

    def take(self, purpose: str, size: int) -> None:
        self.live[purpose] += size
        self.total += size
        if self.total > self.peak:
            self.peak, self.at_peak, self.peak_moment = self.total, dict(self.live), self.moment


class Storage:
    """Memory that is held for as long as this object lives."""

    __slots__ = ("account", "purpose", "size")

    def __init__(self, account: Account, size: float, purpose: str):
        self.account, self.size, self.purpose = account, round(size), purpose
        account.take(purpose, self.size)

    def __del__(self) -> None:
        self.account.live[self.purpose] -= self.size
        self.account.total -= self.size


class Node:
    """A step of the backward pass: ``rule`` takes the gradient of an output and gives those of the inputs; what the rule refers to is what autograd saved."""

    __slots__ = ("number", "rule")

    def __init__(self, number: int, rule: Callable[[Storage], Sequence[Edge]]):
        self.number, self.rule = number, rule

    def __lt__(self, other: Node) -> bool:
        return self.number > other.number  # the latest is the first to go back


@dataclass(slots=True)
class Parameter:
    """``numbers`` weights of which each takes ``width`` bytes. ``gradient`` lies there after a backward pass."""

    numbers: float
    learns: bool = True
    width: float = 4.0
    gradient_width: float = 4.0
    sides: tuple[float, ...] = ()  # rows and columns of a matrix
    table: bool = False  # an embedding or the output's matrix
    of_expert: bool = False
    used_again: bool = False  # tied: its gradient comes from two places, and is added up before it is given
    gradient: Storage | None = None
    waiting: Storage | None = None


@dataclass(slots=True)
class Value:
    """A tensor: its storage (which views share), its numbers, the bytes of each, and where it came from."""

    storage: Storage
    numbers: float
    width: float
    node: Node | None = None

    @property
    def grows(self) -> bool:
        return self.node is not None


@dataclass
class Kept:
    """What selective recompute keeps of a block (luban.models.recompute): results of products and attention, in their order."""

    results: list[tuple[Storage, ...]] = field(default_factory=list)
    given: int = 0


class Tape:
    """Operations on values. ``stream`` and ``compute`` are bytes a number of the residual stream and of products: where products are narrower, autocast is at work."""

    def __init__(self, account: Account, stream: float = 4.0, compute: float = 4.0, device: str = "cpu", fused_norm: bool | None = None):
        self.account, self.stream, self.compute, self.device = account, stream, compute, device
        self.fused_norm, self.gloo = device != "cpu" if fused_norm is None else fused_norm, device == "cpu"
        self.casts: dict[int, Storage] = {}
        self.recording = self.training = True  # whether gradients are asked for; whether dropout drops
        self.keep: Kept | None = None
        self.give: Kept | None = None
        self.finds = True  # attention finds a prefix, where there is one (before.py)
        self.second_products = False  # selective recompute keeps those of every second one only
        self.numbered = self.products = 0
        self.narrow = self.drops = False  # matrices are held in bfloat16 and learn; what is cast of weights is dropped with them
        self.own = False  # layers and cross-entropy are Luban's own, as on a processor (luban.models.own_layers)
        self.scratch: Storage | None = None
        self.mask: Storage | None = None  # what attention reads of documents that share rows
        self.on_gradient: Callable[[Parameter], None] | None = None

    # ---- storages and nodes ------------------------------------------------------------------------------------------

    def storage(self, numbers: float, width: float, purpose: str = "activations") -> Storage:
        return Storage(self.account, numbers * width, purpose)

    def value(self, numbers: float, width: float, rule: Callable[[Storage], Sequence[Edge]] | None = None, storage: Storage | None = None) -> Value:
        """A new tensor, and where ``rule`` is given and gradients are asked for, its node."""
        return Value(storage or self.storage(numbers, width), numbers, width, self.node(rule) if rule and self.recording else None)

    def node(self, rule: Callable[[Storage], Sequence[Edge]]) -> Node:
        self.numbered += 1
        return Node(self.numbered, rule)

    def gradient(self, numbers: float, width: float) -> Storage:
        return Storage(self.account, numbers * width, "temporary")

    def in_transit(self, numbers: float, width: float) -> Storage:
        """What ranks send each other, laid out as it is sent; gloo makes a copy of its own meanwhile."""
        made = self.storage(numbers, width, "communication")
        if self.gloo:
            copy = self.storage(numbers, width, "communication")
            del copy
        return made

    def receive(self, parameter: Parameter, found: Storage) -> None:
        """A parameter's gradient is there: it is taken over, or added to what is there."""
        if parameter.used_again and parameter.waiting is None:
            parameter.waiting = found
            return
        if parameter.waiting is not None:
            parameter.waiting = None  # added in place
        if parameter.gradient is None:
            found.account.live[found.purpose] -= found.size
            found.account.live["gradients"] += found.size
            found.purpose = "gradients"
            parameter.gradient = found
        if self.on_gradient:
            self.on_gradient(parameter)

    def backward(self, root: Node, first: Storage) -> None:
        """The whole backward pass from ``root``."""
        waiting: dict[Node, Storage] = {root: first}
        ready = [root]
        del first
        while ready:
            node = heapq.heappop(ready)
            found = node.rule(waiting.pop(node))
            node.rule = _spent
            for target, gradient in found:
                if target is None:
                    continue
                if target in waiting:
                    if sys.getrefcount(waiting[target]) > 2:  # the other holder still needs it as it is
                        waiting[target] = self.gradient(gradient.size, 1)
                else:
                    waiting[target] = gradient
                    heapq.heappush(ready, target)
            del found, node
            target = gradient = None

    # ---- elementwise -------------------------------------------------------------------------------------------------

    def add(self, left: Value, right: Value) -> Value:
        ends = [value.node for value in (left, right) if value.grows]
        width = max(left.width, right.width)
        turned = [(value.node, value.numbers, value.width) for value in (left, right) if value.grows and value.width < width]

        def rule(gradient: Storage) -> list[Edge]:
            narrow = {id(node): self.gradient(numbers, bytes_each) for node, numbers, bytes_each in turned}
            return [(end, narrow.get(id(end), gradient)) for end in ends]

        return self.value(left.numbers, width, rule if ends else None)

    def multiply(self, left: Value, right: Value) -> Value:
        """Of equal shapes: each is saved for the other's derivative."""
        saved = (left.storage if right.grows else None, right.storage if left.grows else None)
        ends = [(value.node, value.numbers, value.width) for value in (left, right) if value.grows]

        def rule(gradient: Storage) -> list[Edge]:
            assert saved
            return [(node, self.gradient(numbers, width)) for node, numbers, width in ends]

        return self.value(left.numbers, max(left.width, right.width), rule if ends else None)

    def apply(self, values: Value) -> Value:
        """An activation function that saves its input: silu, gelu."""
        saved, end, numbers, width = values.storage, values.node, values.numbers, values.width

        def rule(gradient: Storage) -> list[Edge]:
            assert saved
            return [(end, self.gradient(numbers, width))]

        return self.value(numbers, width, rule if values.grows else None)

    def apply_output(self, values: Value) -> Value:
        """An activation function that saves its output: relu, tanh."""
        end, numbers, width, storage = values.node, values.numbers, values.width, self.storage(values.numbers, values.width)

        def rule(gradient: Storage, saved: Storage = storage) -> list[Edge]:
            return [(end, self.gradient(numbers, width))]

        return self.value(numbers, width, rule if values.grows else None, storage)

    def dropout(self, values: Value, share: float) -> Value:
        """On a processor the mask is as wide as the values, and made by itself; a device keeps a byte for each."""
        if not share or not self.training:
            return values
        mask = self.storage(values.numbers, values.width if self.device == "cpu" else 1)
        end, numbers, width = values.node, values.numbers, values.width

        def rule(gradient: Storage) -> list[Edge]:
            assert mask
            return [(end, self.gradient(numbers, width))]

        return self.value(numbers, width, rule if values.grows else None)

    def cast(self, values: Value, width: float) -> Value:
        if values.width == width:
            return values
        end, numbers, former = values.node, values.numbers, values.width

        def rule(gradient: Storage) -> list[Edge]:
            return [(end, self.gradient(numbers, former))]

        return self.value(numbers, width, rule if values.grows else None)

    # ---- norms -------------------------------------------------------------------------------------------------------

    def rms_norm(self, values: Value, rows: float, weight: Parameter) -> Value:
        """Of ``rows`` rows: torch's fused kernel on devices; on a processor a product of products, each of which keeps what it was made of."""
        numbers, width, end = values.numbers, values.width, values.node
        if self.fused_norm:
            saved = (values.storage, self.storage(rows, 4))

            def rule(gradient: Storage) -> list[Edge]:
                assert saved
                if weight.learns:
                    self.receive(weight, self.gradient(weight.numbers, weight.gradient_width))
                return [(end, self.gradient(numbers, width))]

            return self.value(numbers, width, rule if values.grows or weight.learns else None)
        if width < 4:
            return self.cast(self._rms_of_products(self.cast(values, 4), rows, weight), width)
        return self._rms_of_products(values, rows, weight)

    def _rms_of_products(self, values: Value, rows: float, weight: Parameter) -> Value:
        numbers, width, end = values.numbers, values.width, values.node
        inverse, given, grows = self.storage(rows, 4), values.storage, values.grows
        squares = self.storage(numbers, width)  # their mean is taken at once
        del squares
        held: list[Storage] = [given]

        def by_square(gradient: Storage) -> list[Edge]:
            spread, powers, doubled = (self.gradient(numbers, width) for _ in range(3))
            made = self.gradient(numbers, width)
            held.clear()
            return [(end, made)] if spread and powers and doubled else []

        square = self.node(by_square) if grows and self.recording else None

        def by_inverse(gradient: Storage) -> list[Edge]:
            assert inverse
            made, temporary = self.gradient(numbers, width), self.gradient(numbers, width)
            return [(end, made), (square, self.gradient(rows, 4))] if temporary else []

        normal = self.value(numbers, width, by_inverse if grows else None)
        saved, inner = normal.storage if weight.learns else None, normal.node

        def by_weight(gradient: Storage) -> list[Edge]:
            made = self.gradient(numbers, width) if inner else None
            if weight.learns:
                temporary = self.gradient(numbers, width)
                assert saved and temporary
                self.receive(weight, self.gradient(weight.numbers, weight.gradient_width))
            return [(inner, made)] if inner else []

        return self.value(numbers, width, by_weight if grows or weight.learns else None)

    def layer_norm(self, values: Value, rows: float, weight: Parameter, bias: Parameter) -> Value:
        saved, numbers, width, end = (values.storage, self.storage(2 * rows, 4)), values.numbers, values.width, values.node

        def rule(gradient: Storage) -> list[Edge]:
            assert saved
            made = self.gradient(numbers, width) if end else None
            for one in (weight, bias):
                if one.learns:
                    self.receive(one, self.gradient(one.numbers, one.gradient_width))
            return [(end, made)] if end else []

        return self.value(numbers, width, rule if values.grows or weight.learns else None)

    # ---- products ----------------------------------------------------------------------------------------------------

    def product(self, values: Value, outputs: float, weight: Parameter, bias: Parameter | None = None, tokens: float | None = None) -> Value:
        """[tokens, outputs] of [tokens, inputs]; under autocast weight and input are copied into its type, the weight once a forward pass if it learns."""
        if self.narrow and weight.sides:
            return self._widened(values, outputs, weight, bias, tokens)
        copy = self._weight_copy(weight)
        values = self.cast(values, self.compute)
        numbers, width, end = values.numbers, values.width, values.node
        count = outputs * (tokens or 0)
        saved = (values.storage if weight.learns else None, copy if values.grows else None)
        kept = self._kept(lambda: (self.storage(count, width),))

        def rule(gradient: Storage) -> list[Edge]:
            assert saved
            own = self.gradient(weight.numbers, width) if weight.learns else None
            made = self.gradient(numbers, width) if end else None
            if own is not None:
                if width < weight.gradient_width:
                    own = self.gradient(weight.numbers, weight.gradient_width)
                self.receive(weight, own)
            if bias is not None and bias.learns:
                self.receive(bias, self.gradient(bias.numbers, bias.gradient_width))
            return [(end, made)] if end else []

        learns = weight.learns or values.grows or bool(bias and bias.learns)
        return self.value(count, width, rule if learns else None, kept[0])

    def _weight_copy(self, weight: Parameter) -> Storage | None:
        """The weight in the products' type where that is narrower."""
        if weight.width <= self.compute:
            return None
        if not weight.learns or self.drops:
            return self.storage(weight.numbers, self.compute, "temporary" if not self.recording else "activations")
        if id(weight) not in self.casts:
            self.casts[id(weight)] = self.storage(weight.numbers, self.compute, "weights")
        return self.casts[id(weight)]

    def _widened(self, values: Value, outputs: float, weight: Parameter, bias: Parameter | None, tokens: float | None) -> Value:
        """luban.models.products: the narrow weight is widened for the moment, its gradient float32."""
        values = self.cast(values, self.compute)
        numbers, width, end = values.numbers, values.width, values.node
        saved, count = values.storage if weight.learns else None, outputs * (tokens or 0)
        self.widen(weight, width)
        kept = self._kept(lambda: (self.storage(count, width),))

        def rule(gradient: Storage) -> list[Edge]:
            made = self.gradient(numbers, width) if end else None
            if weight.learns:
                assert saved
                self.receive(weight, self.gradient(weight.numbers, 4))
            if bias is not None and bias.learns:
                self.receive(bias, self.gradient(bias.numbers, 4))
            return [(end, made)] if end else []

        made = self.value(count, width, rule if weight.learns or values.grows else None, kept[0])
        return made if bias is None else self.value(count, width, (lambda gradient, inner=made.node: [(inner, gradient)]) if made.grows else None)

    def widen(self, weight: Parameter, width: float) -> None:
        """The workspace of luban.models.products grows to the largest matrix that was ever widened; one that is as wide is multiplied as it stands."""
        if weight.width == width:
            return
        if self.scratch is None or self.scratch.size < weight.numbers * width:
            self.scratch = None
            self.scratch = self.storage(weight.numbers, width, "temporary")

    def _kept(self, make: Callable[[], tuple[Storage, ...]], product: bool = True) -> tuple[Storage, ...]:
        """The results of a product or of attention: made, or what selective recompute kept of them."""
        if self.give is not None:
            made, self.give.results[self.give.given] = self.give.results[self.give.given], ()
            self.give.given += 1
            if made:
                return made
        made = make()
        if self.keep is not None:
            self.products += product
            dropped = product and self.second_products and self.products % 2
            self.keep.results.append(() if dropped else made)
        return made

    def quantized_product(self, values: Value, outputs: float, weight: Parameter, tokens: float) -> Value:
        """luban.models.quantized: the weight is made again, some rows at a time, in both directions, and nothing is kept."""
        values = self.cast(values, self.compute)
        numbers, width, end = values.numbers, values.width, values.node
        part = min(weight.numbers, (CHUNK_BYTES if self.device == "cpu" else DEVICE_CHUNK_BYTES) / 4)
        kept = self._kept(lambda: (self.storage(outputs * tokens, width),))
        self._dequantized(part, width)

        def rule(gradient: Storage) -> list[Edge]:
            made = self.gradient(numbers, 4)
            self._dequantized(part, width)
            return [(end, made if width == 4 else self.gradient(numbers, width))]

        return self.value(outputs * tokens, width, rule if values.grows else None, kept[0])

    def _dequantized(self, numbers: float, width: float) -> None:
        """Some rows of a weight: indices of their bytes, float32 values, and these in the products' type."""
        made = [self.storage(numbers, each, "temporary") for each in ((2, 4) if width == 4 else (4, width))]
        del made

    # ---- attention ---------------------------------------------------------------------------------------------------

    def attention(self, queries: Value, keys: Value, values: Value, statistics: float) -> Value:
        """A fused kernel: queries, keys, values, the output and ``statistics`` float32 numbers of the softmax are kept."""
        made, norms = self._kept(lambda: (self.storage(queries.numbers, queries.width), self.storage(statistics, 4)), product=False)
        saved = (queries.storage, keys.storage, values.storage, made, norms, self.mask)
        ends = [(value.node, value.numbers, value.width) for value in (queries, keys, values)]
        own = self.device == "cpu" and queries.width == 4

        def rule(gradient: Storage) -> list[Edge]:
            assert saved
            zeros = self.gradient(statistics, 4) if own else None
            found = [(node, self.gradient(numbers, width)) for node, numbers, width in ends]
            return found if zeros is None or zeros.size >= 0 else []

        return self.value(queries.numbers, queries.width, rule if any(node for node, *_ in ends) else None, made)

    def plain_attention(self, queries: Value, keys: Value, values: Value, scores: float, dropout: float, bias: Value | None = None) -> Value:
        """Without a fused kernel (on a processor with dropout, or where the added bias learns): copies of queries, keys and values, the weights, and with dropout its mask and their product are kept, as far as somebody's gradient needs them."""
        width, grows = max(4.0, queries.width), any(value.grows for value in (queries, keys, values))
        wide = [value.storage if value.width == width else self.storage(value.numbers, width) for value in (queries, keys, values)]
        for value in (queries, keys):
            scaled = self.storage(value.numbers, width)
            del scaled
        copies = [self.storage(value.numbers, width) for value in (queries, keys)]
        raw = self.storage(scores, width)
        added = self.storage(scores, width) if bias is not None else raw
        del raw
        weights = self.storage(scores, width)
        del added
        mask = self.storage(scores, width) if dropout else None
        dropped = self.storage(scores, width) if dropout else weights
        copies.append(self.storage(values.numbers, width))
        del wide
        saved = [keys.grows and copies[0], queries.grows and copies[1], (queries.grows or keys.grows or bool(bias and bias.grows)) and [copies[2], weights, mask], values.grows and dropped]  # what the others' gradients need
        ends = [(value.node, value.numbers) for value in (queries, keys, values)]
        toward, narrow = bias.node if bias is not None else None, queries.width

        def rule(gradient: Storage) -> list[Edge]:
            assert saved
            laid = self.gradient(ends[0][1], width)
            by_values = self.gradient(ends[2][1], width)
            by_dropped = self.gradient(scores, width)
            by_weights = self.gradient(scores, width) if dropout else by_dropped
            del by_dropped, laid
            by_scores = self.gradient(scores, width)
            del by_weights
            turned = [self.gradient(numbers, width) for _, numbers in ends[:2]]
            found = [(node, self.gradient(numbers, narrow)) for node, numbers in ends[:2]]
            del turned
            return [*found, (ends[2][0], by_values), *([(toward, by_scores)] if toward else [])]

        made = self.value(queries.numbers, narrow, rule if grows else None)
        end = made.node
        return self.value(queries.numbers, narrow, (lambda gradient: [(end, gradient)]) if end else None)  # heads are joined into a copy

    # ---- recompute ---------------------------------------------------------------------------------------------------

    def through(self, mode: str, block: Callable[..., Value], *inputs: Value | None) -> Value:
        """A block in one of recompute's modes. Its backward pass ends at ``inputs``."""
        if mode == "none" or not self.recording:
            return block(*inputs)
        kept = Kept() if mode == "selective" else None
        self.recording, self.keep = False, kept
        made = block(*inputs)
        self.recording, self.keep = True, None
        given = [value and (value.storage, value.numbers, value.width) for value in inputs]
        ends = [value.node if value else None for value in inputs]

        def rule(gradient: Storage) -> list[Edge]:
            found: dict[int, Storage] = {}
            leaves = [self.node(partial(_catch, found, place)) if end else None for place, end in enumerate(ends)]
            outer, self.casts = self.casts, {}
            self.give = kept
            again = block(*(value and Value(*value, leaf) for value, leaf in zip(given, leaves, strict=True)))
            self.give, self.casts = None, outer
            root = again.node
            del again
            self.backward(root, gradient)
            return [(ends[place], storage) for place, storage in found.items()]

        return Value(made.storage, made.numbers, made.width, self.node(rule))


def _catch(found: dict[int, Storage], place: int, gradient: Storage) -> list[Edge]:
    found[place] = gradient
    return []


def _spent(gradient: Storage) -> Sequence[Edge]:
    raise AssertionError("a step of the backward pass was taken twice")
