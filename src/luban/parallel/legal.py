"""Which layouts there are for a shape and a number of ranks: arithmetic alone, so that a planner can ask in milliseconds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from luban.parallel.plans import CONTEXT, PLANS, STAGES, WITHOUT


@dataclass(frozen=True)
class Parts:
    """How many ranks stand in each dimension of the mesh, outermost first; the experts of a layer are shared out over ``expert`` of the ranks of replicas × shards × context."""

    pipeline: int = 1
    replicas: int = 1
    shards: int = 1
    context: int = 1
    tensor: int = 1
    expert: int = 1

    @property
    def data(self) -> int:
        """Ranks over which a step's rows are shared out."""
        return self.replicas * self.shards

    @property
    def summed(self) -> int:
        """Ranks over which gradients are added up."""
        return self.data * self.context

    @property
    def held(self) -> int:
        """Ranks over which weights are cut into shards, where they are."""
        return self.shards * self.context

    @property
    def ranks(self) -> int:
        return self.pipeline * self.summed * self.tensor

    @property
    def text(self) -> str:
        """As it is written in a recipe; "one process" for none."""
        return ", ".join(f"{name}: {count}" for name, count in asdict(self).items() if count > 1) or "one process"


Refusal = tuple[str, int, str, dict[str, Any]]  # field, its value, why as a template, and the template's values


def refusals(shape: Any, parts: Parts, sequence_length: int = 0, stages: int = 1) -> Iterator[Refusal]:
    """What the shape does not let be shared out like that. ``sequence_length`` 0: not known, and taken to fit. ``stages`` are those of each rank of a pipeline."""
    name, counts = shape.architecture, asdict(parts)
    for field in ("tensor", "context", "expert", "pipeline"):
        if counts[field] > 1:
            for why, values in _reasons(shape, parts, field, name, sequence_length, stages):
                yield field, counts[field], why, values


def _reasons(shape: Any, parts: Parts, field: str, name: str, sequence_length: int, stages: int) -> Iterator[tuple[str, dict[str, Any]]]:
    known, without = {"tensor": (PLANS, WITHOUT), "context": (CONTEXT, {}), "pipeline": (STAGES, {})}.get(field, ((name,), {}))
    if name not in known:
        yield without.get(name, "{name} has no plan for it"), {"name": name}
        return
    if field == "tensor":
        for divided in PLANS[name].divided:
            for count in as_tuple(getattr(shape, divided)):
                if count % parts.tensor:
                    yield "{what} is {count}, which {ranks} do not divide", {"what": divided, "count": count, "ranks": parts.tensor}
    cut = parts.context * parts.tensor
    if field in ("tensor", "context") and sequence_length % cut:
        yield "sequence_length is {count}, which {ranks} do not divide", {"count": sequence_length, "ranks": cut}
    if field == "expert":
        experts = getattr(shape, "experts", 0)
        if not experts:
            yield "{name} has no experts", {"name": name}
        elif experts % parts.expert:
            yield "{what} is {count}, which {ranks} do not divide", {"what": "experts", "count": experts, "ranks": parts.expert}
        if parts.summed % parts.expert:
            yield "they are some of the {count} ranks of replicas, shards and context, which it does not divide", {"count": parts.summed}
    if field == "pipeline" and shape.depth < parts.pipeline * stages:
        yield "the model has {count} layers, and that takes {stages} stages", {"count": shape.depth, "stages": parts.pipeline * stages}


def as_tuple(value: Any) -> tuple[int, ...]:
    """The sizes of both sides of a model that has two, or the one."""
    return tuple(value) if isinstance(value, tuple) else (value,)


def legal_layouts(shape: Any, ranks: int, sequence_length: int = 0, stages: int = 1, **fixed: int) -> list[Parts]:
    """Every layout of so many ranks that the shape allows, the simplest first; ``fixed`` gives dimensions a size. ``stages`` as in :func:`refusals`."""
    found = []
    names = ("pipeline", "replicas", "shards", "context", "tensor")
    for sizes in _factors(ranks, len(names)):
        summed = math.prod(sizes[1:4])
        for expert in _divisors(summed) if getattr(shape, "experts", 0) else [1]:
            parts = Parts(*sizes, expert=expert)
            if all(getattr(parts, name) == size for name, size in fixed.items()) and not any(refusals(shape, parts, sequence_length, stages)):
                found.append(parts)
    return sorted(found, key=_complexity)


def nearest(shape: Any, wanted: Parts, ranks: int, sequence_length: int = 0, stages: int = 1, count: int = 3, **fixed: int) -> list[Parts]:
    """The legal layouts of so many ranks that differ the least from the wanted one, by the factors that their sizes are apart."""

    def distance(parts: Parts) -> tuple[float, Any]:
        apart = (abs(math.log(size / other)) for size, other in zip(asdict(parts).values(), asdict(wanted).values(), strict=True))
        return round(sum(apart), 9), _complexity(parts)

    return sorted(legal_layouts(shape, ranks, sequence_length, stages, **fixed), key=distance)[:count]


def _complexity(parts: Parts) -> tuple[int, tuple[int, ...]]:
    sizes = tuple(asdict(parts).values())
    return sum(size > 1 for size in sizes), tuple(-size for size in (parts.replicas, parts.shards, parts.tensor, parts.expert, parts.context, parts.pipeline))


def _divisors(number: int) -> list[int]:
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return [*small, *(number // size for size in reversed(small) if size * size != number)]


def _factors(number: int, count: int) -> Iterator[tuple[int, ...]]:
    """Every way to write a number as a product of so many."""
    if count == 1:
        yield (number,)
        return
    for size in _divisors(number):
        for rest in _factors(number // size, count - 1):
            yield size, *rest
